"""What a model's text means among the plans that it was offered."""

from __future__ import annotations

from collections.abc import Sequence

EDGES = " \t.!`\"'*-"  # what people and models put around a plan


def plain(text: str) -> str:
    """A plan without what stands around it, in lower case: "- North." is north."""
    return " ".join(text.strip(EDGES).lower().split())


def read_plan(text: str, plans: Sequence[str], agents: Sequence[str]) -> int | None:
    """The number of the plan that a text names; None for a text that names none.

    A text that is a plan to the letter is that plan. Else case, spaces, bullets and marks around it do not count, empty
    lines and fences neither, nor the order of lines "name: plan" in which all agents' plans are told; a single plan may
    have its agent's name in front.
    """
    if text in plans:
        return plans.index(text)
    unfenced = [plain(line) for line in text.splitlines() if not line.strip().startswith("```")]
    told = [line for line in unfenced if line]
    known = {_key(plan.splitlines(), agents): number for number, plan in enumerate(plans)}
    found = known.get(_key(told, agents))
    if found is None and len(told) == 1:
        name, _, rest = told[0].partition(":")
        if name.strip() in {agent.lower() for agent in agents}:
            found = known.get((plain(rest),))
    return found


def _key(lines: Sequence[str], agents: Sequence[str]) -> tuple[str, ...]:
    """Lines in the order of the agents that they begin with; others as they are."""
    order = {name.lower(): place for place, name in enumerate(agents)}
    clean = [plain(line) for line in lines]

    def place(line: str) -> int:
        return order.get(line.partition(":")[0].strip(), len(order))

    return tuple(": ".join(plain(part) for part in line.split(":", 1)) for line in sorted(clean, key=place))
