"""Problems that one stretch of random play shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from envs.core import Discrete, EnvSpec, Observation, Step, Streams, VectorEnv, tree_map
from envs.forms import Form, misfits, observation_form, transition_form
from envs.world import RandomActor


class Problem(NamedTuple):
    """Rule that is broken (each is told once), and the message."""

    what: str
    message: str


Problems = Iterator[Problem]
Same = Callable[[Tensor, Tensor], bool]


def of_reset(env: VectorEnv, steps: int, seed: int) -> Problems:
    """The start of an episode."""
    obs = env.reset(seed)
    yield from _of_observation(env, obs, "reset's observation")
    if obs.alive.shape[:1] == (env.num_envs,) and not bool(obs.alive.any(-1).all()):
        yield Problem("nobody at start", f"{_rows(~obs.alive.any(-1))} nobody is alive at the start of an episode.")


def _of_observation(env: VectorEnv, obs: Observation, name: str) -> Problems:
    form = list(_of_form(observation_form(env.spec, env.num_envs), env, obs, name))
    yield from form
    if form:
        return
    spec = env.spec
    for part, values in (("agent", obs.agent), ("state", obs.state)):
        if not bool(values.isfinite().all()):
            yield Problem(f"finite {part}", f"{name}.{part} must be finite; it holds NaN or infinity. Mend the world.")
    for agent, size in enumerate(spec.observation_sizes):
        if bool(obs.agent[:, agent, size:].any()):
            yield Problem(
                "padding",
                f"{name}.agent[:, {agent}, {size}:] must be zero, as spec.observation_sizes[{agent}] is {size} for "
                f"{spec.agents[agent]}; it is not. Pad with zeros, or give the true size.",
            )
    if isinstance(spec.action, Discrete):
        yield from _of_choices(spec, obs, name)
    elif obs.legal is not None:
        yield from _of_components(spec, obs.legal, name)


def _of_choices(spec: EnvSpec, obs: Observation, name: str) -> Problems:
    assert isinstance(spec.action, Discrete)
    if spec.legal is not None:
        forbidden = ~spec.legal.to(obs.alive.device)
        if obs.legal is None or bool((obs.legal & forbidden).any()):
            yield Problem(
                "legal padding",
                f"{name}.legal must rule out choices that exist only for other agents (env.spec.legal); "
                f"{'it is None' if obs.legal is None else 'it allows some'}. Combine it with env.spec.legal.",
            )
    if obs.legal is None:
        return
    for component, choices in enumerate(obs.legal.split(spec.action.choices, -1)):
        stuck = obs.alive & ~choices.any(-1)
        if bool(stuck.any()):
            yield Problem(
                "no legal choice",
                f"{name}.legal must allow a living agent at least one choice; {_rows(stuck.any(-1))} component "
                f"{component} allows none. Allow a no-op, or mark the agent as not alive.",
            )


def _of_components(spec: EnvSpec, legal: Tensor, name: str) -> Problems:
    """Of real actions `legal` tells the components that count."""
    for agent, space in enumerate(spec.actions):
        if bool(legal[:, agent, space.size :].any()):
            yield Problem(
                "legal padding",
                f"{name}.legal[:, {agent}, {space.size}:] must be false, as {spec.agents[agent]} has {space.size} "
                "action components; it is not. Let only components count that exist.",
            )


def _step_form(env: VectorEnv) -> dict[str, Form]:
    """Fields of a `Step` beside its observations."""
    rows, agents = env.num_envs, len(env.spec.agents)
    flags = Form("[E,N]", (rows, agents), torch.bool)
    reward = transition_form(env.spec, rows)["reward"]
    return {"reward": reward, "terminated": flags, "truncated": flags, "ended": Form("[E]", (rows,), torch.bool)}


def _of_form(forms: dict[str, Form], env: VectorEnv, tree: Any, name: str) -> Problems:
    """Shape, type and device of each field."""
    for part, sentence in misfits(forms, tree, name, env.device):
        yield Problem(f"form {name} {part}", sentence)


def of_play(env: VectorEnv, steps: int, seed: int) -> Problems:
    """Everything that one stretch of random play shows."""
    actor, streams = RandomActor(env.spec), Streams([seed], env.device)
    obs = env.reset(seed)
    handed_out: list[tuple[str, Any, Any]] = [("reset's observation", obs, copied(obs))]
    age = torch.zeros(env.num_envs, dtype=torch.int64, device=env.device)
    changes, restarts, restarts_seen = False, 0, False
    for t in range(steps):
        decision, _ = actor.act(obs, None, streams)
        given = decision.action.clone()
        step = env.step(decision.action)
        name = f"step {t}"
        if not torch.equal(given, decision.action):
            yield Problem("action overwritten", f"{name}: the environment wrote to the action it was given. Clone it.")
        form = list(_of_form(_step_form(env), env, step, name))
        for part in ("obs", "final_obs"):
            form += list(_of_observation(env, getattr(step, part), f"{name}'s {part}"))
        yield from form
        if any(problem.what.startswith("form") for problem in form):
            return
        age = age + 1
        yield from _of_leaving(step, obs.alive, name)
        yield from _of_ending(env.spec, step, obs.alive, age, name)
        yield from _of_final_obs(step, obs.alive, name)
        changes |= bool((~_same_view(obs, step.obs) & ~step.ended).any())
        restarts += int(step.ended.sum())
        restarts_seen |= bool((step.ended & ~_same_view(step.final_obs, step.obs)).any())
        age = age.masked_fill(step.ended, 0)
        handed_out.append((name, step, copied(step)))
        obs = step.obs
    if changes and restarts > 1 and not restarts_seen:
        yield Problem(
            "final_obs restarted",
            f"final_obs must be the true successor, seen before the row starts anew; all {restarts} times that a row "
            "ended it equals obs, the next episode's start. Observe before restarting.",
        )
    for name, tree, copy in handed_out:
        for part in differences(tree, copy):
            yield Problem(
                "overwritten",
                f"Tensors handed out belong to the receiver; {part} of {name} was overwritten later. Return new ones.",
            )


def _of_leaving(step: Step, acted: Tensor, name: str) -> Problems:
    leaving = step.terminated | step.truncated
    if bool((step.terminated & step.truncated).any()):
        yield Problem(
            "both",
            f"{name}: {_rows((step.terminated & step.truncated).any(-1))} an agent is both terminated and truncated. "
            "Choose: the task ended (terminated) or only its time (truncated).",
        )
    if bool((leaving & ~acted).any()):
        yield Problem(
            "left twice",
            f"{name}: {_rows((leaving & ~acted).any(-1))} an agent that was not alive is terminated or truncated. Both "
            "are true only at the one step at which the agent leaves.",
        )
    if not bool(step.reward.isfinite().all()):
        yield Problem("finite reward", f"{name}: rewards must be finite; there is NaN or infinity. Mend the world.")
    paid = (step.reward != 0).any(-1) & ~acted
    if bool(paid.any()):
        yield Problem(
            "dead rewarded",
            f"{name}: {_rows(paid.any(-1))} an agent that was not alive is rewarded. Multiply rewards by alive.",
        )
    going_on = ~step.ended.unsqueeze(-1)
    vanished = acted & ~step.obs.alive & ~leaving & going_on
    if bool(vanished.any()):
        yield Problem(
            "vanished",
            f"{name}: {_rows(vanished.any(-1))} an agent is no longer alive but neither terminated nor truncated. Flag "
            "it at the step at which it leaves.",
        )
    lingering = leaving & step.obs.alive & going_on
    if bool(lingering.any()):
        yield Problem(
            "lingering",
            f"{name}: {_rows(lingering.any(-1))} an agent that is terminated or truncated is alive in obs. Whoever "
            "leaves is not alive then, and comes back, if at all, at a later step, as a new life.",
        )


def _of_ending(spec: EnvSpec, step: Step, acted: Tensor, age: Tensor, name: str) -> Problems:
    everybody = (step.terminated | step.truncated | ~acted).all(-1)
    early, late = step.ended & ~everybody, ~step.ended & ~step.obs.alive.any(-1)
    if bool(early.any()):
        yield Problem(
            "ended early",
            f"{name}: {_rows(early)} the row ended though an agent was left. Flag all who leave as terminated or "
            "truncated; a row ends when nobody is left.",
        )
    if bool(late.any()):
        yield Problem(
            "not ended", f"{name}: {_rows(late)} nobody is left but the row did not end. Set ended and start it anew."
        )
    deserted = step.ended & ~step.obs.alive.any(-1)
    if bool(deserted.any()):
        yield Problem(
            "nobody at start", f"{name}: {_rows(deserted)} the row ended, but nobody is alive in obs, its new start."
        )
    if spec.horizon is None:
        return
    over = age >= spec.horizon
    if bool((over & ~step.ended).any()):
        yield Problem(
            "horizon passed",
            f"{name}: {_rows(over & ~step.ended)} the episode goes on after spec.horizon = {spec.horizon} steps. End "
            "it, or leave the horizon out of the spec.",
        )
    cut = over.unsqueeze(-1) & step.truncated
    if bool(cut.any()):
        yield Problem(
            "horizon truncates",
            f"{name}: {_rows(cut.any(-1))} reaching spec.horizon must terminate, as it is part of the task; it "
            "truncated. A mere time limit does not belong in the spec.",
        )


def _of_final_obs(step: Step, acted: Tensor, name: str) -> Problems:
    if not torch.equal(step.final_obs.alive, acted):
        rows = _rows((step.final_obs.alive != acted).any(-1))
        yield Problem(
            "final_obs alive",
            f"{name}: {rows} final_obs.alive must tell who acted, as alive of the observation before did; it does not.",
        )
    quiet = ~step.ended & ~(step.terminated | step.truncated).any(-1)
    different = quiet & ~_same_view(step.final_obs, step.obs)
    if bool(different.any()):
        yield Problem(
            "final_obs differs",
            f"{name}: {_rows(different)} final_obs differs from obs although nobody left. Both are then the successor.",
        )


def copied(tree: Any) -> Any:
    """The same values in tensors of their own."""
    return tree_map(lambda leaf: leaf.clone(), tree)


def leaves(tree: Any, name: str = "") -> dict[str, Tensor]:
    """The tensors of an observation or a step, by name."""
    named = {f: getattr(tree, f) for f in type(tree).__dataclass_fields__}
    tensors: dict[str, Tensor] = {}
    for part, value in named.items():
        if isinstance(value, Tensor):
            tensors[f"{name}{part}"] = value
        elif value is not None:
            tensors |= leaves(value, f"{name}{part}.")
    return tensors


def equal(one: Tensor, other: Tensor) -> bool:
    """True if all values are the same; NaN equals NaN."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(torch.equal(one, other) or torch.equal(one.nan_to_num(), other.nan_to_num()))


def differences(one: Any, other: Any, same: Same = equal) -> list[str]:
    """The names of the fields in which two observations or steps differ."""
    left, right = leaves(one), leaves(other)
    return [n for n in left | right if n not in left or n not in right or not same(left[n], right[n])]


def _same_view(one: Observation, other: Observation) -> Tensor:
    """Rows in which agents and critic see the same, [E]."""
    same = (one.agent == other.agent).flatten(1).all(-1) & (one.state == other.state).all(-1)
    if one.legal is None or other.legal is None:
        return same
    return same & (one.legal == other.legal).flatten(1).all(-1)


def _rows(mask: Tensor) -> str:
    rows = mask.nonzero().squeeze(-1).tolist()
    return f"in row {rows[0]}" if len(rows) == 1 else f"in rows {', '.join(map(str, rows[:4]))}{' …' * (len(rows) > 4)}"
