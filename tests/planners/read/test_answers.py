"""Whatever a model writes is one of the plans that it was offered, or none."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from envs.kitchen import Kitchen
from envs.world import TensorEnv
from planners.read.answers import read_plan
from planners.read.thoughts import read_thought

AGENTS = ("cook_0", "cook_1")
JOINT = ("cook_0: north\ncook_1: stay", "cook_0: stay\ncook_1: interact")
SINGLE = ("north", "stay", "put the onion into the pot")
PIECES = st.sampled_from(
    ["cook_0", "Cook_1:", ": ", "north", "STAY", "\n", "```", "- ", "**", "Plan:", "Thought:", "\x00"]
)
TEXT = st.one_of(st.text(), st.lists(PIECES | st.text(max_size=3), max_size=12).map("".join))
OBS = TensorEnv(Kitchen(horizon=None), 1).reset(0)


def means(text: str, plan: str) -> bool:
    """True where each word of a plan stands in a text."""
    words = set(text.lower().replace(":", " ").split())
    return all(any(word in told for told in words) for word in plan.lower().replace(":", " ").split())


@given(TEXT, st.sampled_from([SINGLE, JOINT]))
@example("cook_0: north\ncook_1: stay\ncook_1: interact", JOINT)
@example("cook_1: north", SINGLE)
@example("\u2028north", SINGLE)
def test_any_text_is_a_plan_that_it_tells_or_none(text: str, plans: tuple[str, ...]) -> None:
    found = read_plan(text, plans, AGENTS)
    assert found is None or means(text, plans[found])


@given(
    st.sampled_from(SINGLE), st.sampled_from(["", "- ", "* ", " ", '"']), st.sampled_from(["", ".", "\n", "!", "```"])
)
def test_a_plan_is_found_in_what_people_put_around_it(plan: str, before: str, after: str) -> None:
    assert read_plan(f"{before}{plan.upper()}{after}", SINGLE, AGENTS) == SINGLE.index(plan)


@given(TEXT, st.integers(1, 3))
def test_a_thought_leaves_no_more_lines_than_a_plan_has(text: str, lines: int) -> None:
    thought, plan = read_thought(text, lines)
    assert len(plan.splitlines()) <= lines
    assert set(thought) | set(plan) <= set(text) | {"\n"}


@settings(deadline=None)
@given(TEXT)
def test_a_world_reads_any_text_as_a_decision_or_a_reason(text: str) -> None:
    found = Kitchen(horizon=None).parse(text, OBS, 0)
    assert isinstance(found, str) or found.action.shape == (1, 2, 1)
