"""The contract of `VectorEnv`, checked on any environment by playing it at random."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from envs.core import Discrete, EnvSpec, InputError, Observation, Step, Streams, VectorEnv, tree_map
from envs.world import RandomActor

ROWS = 6  # asked of a factory that takes a number of rows; even, so that two policies can share them
OBSERVATION_FIELDS = ("agent", "state", "alive", "legal")


def check_env(make_env: VectorEnv | Callable[..., VectorEnv], steps: int = 200, seed: int = 0) -> None:
    """Play `steps` random steps several times over; raise one InputError that lists everything that is wrong.

    make_env: an environment, a function that makes one, or (which checks most) a function of the number of rows. A
    function also lets the check load a saved state into a fresh environment, compare two seeds' rows with an
    environment each, and close what it made. Choose `steps` above the length of a few episodes: only what happens can
    be checked.

    Checked: shapes, types and devices against `spec`; finite numbers; zeros in the padding; a legal choice for whoever
    is alive; agents leave flagged as either terminated or truncated, and earn nothing until they come back, if they do;
    rows end where and only where nobody is left, at the horizon at the latest, which terminates; `final_obs` is the
    true successor; tensors that were handed out are never overwritten; a seed fixes whole episodes; other seeds and
    other rows differ where the world is random; a saved state continues identically; each of P seeds rules its own rows
    as if alone.
    """
    problems: dict[str, str] = {}
    for what, problem in _violations(_maker(make_env), steps, seed):
        problems.setdefault(what, problem)
    if problems:
        ways = "1 way" if len(problems) == 1 else f"{len(problems)} ways"
        listed = "\n".join(f"- {problem}" for problem in problems.values())
        raise InputError(f"The environment breaks the contract of VectorEnv in {ways}:\n{listed}")


class _Problem(NamedTuple):
    """What is broken (told once each), and the message."""

    what: str
    message: str


Problems = Iterator[_Problem]
Same = Callable[[Tensor, Tensor], bool]


class _Maker(NamedTuple):
    """Gives environments to check: fresh ones of any size, fresh ones, or the same one again and again."""

    make: Callable[[int], VectorEnv]
    fresh: bool
    sized: bool

    @contextmanager
    def env(self, rows: int = ROWS) -> Iterator[VectorEnv]:
        """An environment, closed afterwards if it was made for this."""
        env = self.make(rows)
        try:
            yield env
        finally:
            if self.fresh:
                env.close()


@dataclass(frozen=True)
class _Rollout:
    """A stretch of random play, copied as it was handed out."""

    first: Observation
    steps: list[Step] = field(default_factory=list)


def _maker(make_env: VectorEnv | Callable[..., VectorEnv]) -> _Maker:
    if not callable(make_env):
        instance = make_env
        return _Maker(lambda rows: instance, fresh=False, sized=False)
    make, parameters = make_env, inspect.signature(make_env).parameters.values()
    if any(p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters):
        return _Maker(make, fresh=True, sized=True)
    return _Maker(lambda rows: make(), fresh=True, sized=False)


def _violations(maker: _Maker, steps: int, seed: int) -> Problems:
    with maker.env() as env:
        for check in (_of_reset, _of_play):
            problems = list(check(env, steps, seed))
            yield from problems
            if any(problem.what.startswith("form") for problem in problems):
                return  # nothing further can be judged
        yield from _of_seeds(maker, env, steps, seed)
        yield from _of_saved_state(maker, env, steps, seed)
        yield from _of_blocks(maker, env, steps, seed)
    if maker.fresh:
        yield from _of_closing(maker)


def _of_reset(env: VectorEnv, steps: int, seed: int) -> Problems:
    obs = env.reset(seed)
    yield from _of_observation(env, obs, "reset's observation")
    if obs.alive.shape[:1] == (env.num_envs,) and not bool(obs.alive.any(-1).all()):
        yield _Problem("nobody at start", f"{_rows(~obs.alive.any(-1))} nobody is alive at the start of an episode.")


def _of_observation(env: VectorEnv, obs: Observation, name: str) -> Problems:
    form = list(_of_form(_observation_form(env), env, obs, name))
    yield from form
    if form:
        return
    spec = env.spec
    for part, values in (("agent", obs.agent), ("state", obs.state)):
        if not bool(values.isfinite().all()):
            yield _Problem(f"finite {part}", f"{name}.{part} must be finite; it holds NaN or infinity. Mend the world.")
    for agent, size in enumerate(spec.observation_sizes):
        if bool(obs.agent[:, agent, size:].any()):
            yield _Problem(
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
            yield _Problem(
                "legal padding",
                f"{name}.legal must rule out choices that exist only for other agents (env.spec.legal); "
                f"{'it is None' if obs.legal is None else 'it allows some'}. Combine it with env.spec.legal.",
            )
    if obs.legal is None:
        return
    for component, choices in enumerate(obs.legal.split(spec.action.choices, -1)):
        stuck = obs.alive & ~choices.any(-1)
        if bool(stuck.any()):
            yield _Problem(
                "no legal choice",
                f"{name}.legal must allow a living agent at least one choice; {_rows(stuck.any(-1))} component "
                f"{component} allows none. Allow a no-op, or mark the agent as not alive.",
            )


def _of_components(spec: EnvSpec, legal: Tensor, name: str) -> Problems:
    """Of real actions `legal` tells the components that count."""
    for agent, space in enumerate(spec.actions):
        if bool(legal[:, agent, space.size :].any()):
            yield _Problem(
                "legal padding",
                f"{name}.legal[:, {agent}, {space.size}:] must be false, as {spec.agents[agent]} has {space.size} "
                "action components; it is not. Let only components count that exist.",
            )


Form = dict[str, tuple[tuple[int, ...], str]]


def _observation_form(env: VectorEnv) -> Form:
    spec, rows, agents = env.spec, env.num_envs, len(env.spec.agents)
    choices = sum(spec.action.choices) if isinstance(spec.action, Discrete) else spec.action.size
    return {
        "agent": ((rows, agents, spec.observation_size), "float"),
        "state": ((rows, spec.state_size), "float"),
        "alive": ((rows, agents), "bool"),
        "legal": ((rows, agents, choices), "bool"),
    }


def _step_form(env: VectorEnv) -> Form:
    rows, agents = env.num_envs, len(env.spec.agents)
    return {
        "reward": ((rows, agents, len(env.spec.channels)), "float"),
        "terminated": ((rows, agents), "bool"),
        "truncated": ((rows, agents), "bool"),
        "ended": ((rows,), "bool"),
    }


def _of_form(form: Form, env: VectorEnv, tree: Any, name: str) -> Problems:
    """Shape, type and device of each field."""
    for part, (shape, kind) in form.items():
        value = getattr(tree, part)
        if part == "legal" and value is None:
            continue
        if not isinstance(value, Tensor):
            yield _Problem(f"form {name} {part}", f"{name}.{part} must be a tensor; it is a {type(value).__name__}.")
            continue
        right = value.dtype == torch.bool if kind == "bool" else value.is_floating_point()
        if tuple(value.shape) != shape or not right or value.device.type != env.device.type:
            came = f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)} on {value.device}"
            yield _Problem(
                f"form {name} {part}",
                f"{name}.{part} must be {kind} {list(shape)} on {env.device} by spec, num_envs and device; it is "
                f"{came}. Mend it or the spec.",
            )


def _of_play(env: VectorEnv, steps: int, seed: int) -> Problems:
    """Everything that one stretch of random play shows."""
    actor, streams = RandomActor(env.spec), Streams([seed], env.device)
    obs = env.reset(seed)
    handed_out: list[tuple[str, Any, Any]] = [("reset's observation", obs, _copy(obs))]
    age = torch.zeros(env.num_envs, dtype=torch.int64, device=env.device)
    changes, restarts, restarts_seen = False, 0, False
    for t in range(steps):
        decision, _ = actor.act(obs, None, streams)
        given = decision.action.clone()
        step = env.step(decision.action)
        name = f"step {t}"
        if not torch.equal(given, decision.action):
            yield _Problem("action overwritten", f"{name}: the environment wrote to the action it was given. Clone it.")
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
        handed_out.append((name, step, _copy(step)))
        obs = step.obs
    if changes and restarts > 1 and not restarts_seen:
        yield _Problem(
            "final_obs restarted",
            f"final_obs must be the true successor, seen before the row starts anew; all {restarts} times that a row "
            "ended it equals obs, the next episode's start. Observe before restarting.",
        )
    for name, tree, copy in handed_out:
        for part in _differences(tree, copy):
            yield _Problem(
                "overwritten",
                f"Tensors handed out belong to the receiver; {part} of {name} was overwritten later. Return new ones.",
            )


def _of_leaving(step: Step, acted: Tensor, name: str) -> Problems:
    leaving = step.terminated | step.truncated
    if bool((step.terminated & step.truncated).any()):
        yield _Problem(
            "both",
            f"{name}: {_rows((step.terminated & step.truncated).any(-1))} an agent is both terminated and truncated. "
            "Choose: the task ended (terminated) or only its time (truncated).",
        )
    if bool((leaving & ~acted).any()):
        yield _Problem(
            "left twice",
            f"{name}: {_rows((leaving & ~acted).any(-1))} an agent that was not alive is terminated or truncated. Both "
            "are true only at the one step at which the agent leaves.",
        )
    if not bool(step.reward.isfinite().all()):
        yield _Problem("finite reward", f"{name}: rewards must be finite; there is NaN or infinity. Mend the world.")
    paid = (step.reward != 0).any(-1) & ~acted
    if bool(paid.any()):
        yield _Problem(
            "dead rewarded",
            f"{name}: {_rows(paid.any(-1))} an agent that was not alive is rewarded. Multiply rewards by alive.",
        )
    going_on = ~step.ended.unsqueeze(-1)
    vanished = acted & ~step.obs.alive & ~leaving & going_on
    if bool(vanished.any()):
        yield _Problem(
            "vanished",
            f"{name}: {_rows(vanished.any(-1))} an agent is no longer alive but neither terminated nor truncated. Flag "
            "it at the step at which it leaves.",
        )
    lingering = leaving & step.obs.alive & going_on
    if bool(lingering.any()):
        yield _Problem(
            "lingering",
            f"{name}: {_rows(lingering.any(-1))} an agent that is terminated or truncated is alive in obs. Whoever "
            "leaves is not alive then, and comes back, if at all, at a later step, as a new life.",
        )


def _of_ending(spec: EnvSpec, step: Step, acted: Tensor, age: Tensor, name: str) -> Problems:
    everybody = (step.terminated | step.truncated | ~acted).all(-1)
    early, late = step.ended & ~everybody, ~step.ended & ~step.obs.alive.any(-1)
    if bool(early.any()):
        yield _Problem(
            "ended early",
            f"{name}: {_rows(early)} the row ended though an agent was left. Flag all who leave as terminated or "
            "truncated; a row ends when nobody is left.",
        )
    if bool(late.any()):
        yield _Problem(
            "not ended", f"{name}: {_rows(late)} nobody is left but the row did not end. Set ended and start it anew."
        )
    deserted = step.ended & ~step.obs.alive.any(-1)
    if bool(deserted.any()):
        yield _Problem(
            "nobody at start", f"{name}: {_rows(deserted)} the row ended, but nobody is alive in obs, its new start."
        )
    if spec.horizon is None:
        return
    over = age >= spec.horizon
    if bool((over & ~step.ended).any()):
        yield _Problem(
            "horizon passed",
            f"{name}: {_rows(over & ~step.ended)} the episode goes on after spec.horizon = {spec.horizon} steps. End "
            "it, or leave the horizon out of the spec.",
        )
    cut = over.unsqueeze(-1) & step.truncated
    if bool(cut.any()):
        yield _Problem(
            "horizon truncates",
            f"{name}: {_rows(cut.any(-1))} reaching spec.horizon must terminate, as it is part of the task; it "
            "truncated. A mere time limit does not belong in the spec.",
        )


def _of_final_obs(step: Step, acted: Tensor, name: str) -> Problems:
    if not torch.equal(step.final_obs.alive, acted):
        rows = _rows((step.final_obs.alive != acted).any(-1))
        yield _Problem(
            "final_obs alive",
            f"{name}: {rows} final_obs.alive must tell who acted, as alive of the observation before did; it does not.",
        )
    quiet = ~step.ended & ~(step.terminated | step.truncated).any(-1)
    different = quiet & ~_same_view(step.final_obs, step.obs)
    if bool(different.any()):
        yield _Problem(
            "final_obs differs",
            f"{name}: {_rows(different)} final_obs differs from obs although nobody left. Both are then the successor.",
        )


def _of_seeds(maker: _Maker, env: VectorEnv, steps: int, seed: int) -> Problems:
    first = _play(env, env.reset(seed), steps, seed)
    with maker.env() as again:
        second = _play(again, again.reset(seed), steps, seed)
    difference = _first_difference(first, second)
    if difference:
        yield _Problem(
            "seed",
            f"The same seed and actions must give the same episodes; {difference}. Draw all random numbers from "
            "generators that reset seeds.",
        )
        return
    # Equal random numbers in all rows, so that equal rows get equal actions and only the world's own chance differs.
    actions = [seed] * env.num_envs
    plays = [_play(env, env.reset(s), steps, actions) for s in (seed, seed + 1)]
    rows = [row for play in plays for row in _by_row(play)]
    if all(row == rows[0] for row in rows):
        return
    if rows[: env.num_envs] == rows[env.num_envs :]:
        yield _Problem(
            "seed ignored",
            f"Seeds {seed} and {seed + 1} gave the same {steps} steps in all rows, though rows differ. Use the seed.",
        )
        return
    for i, row in enumerate(rows):
        if row in rows[:i]:
            twin = rows.index(row)
            i_name, twin_name = (f"row {k % env.num_envs} of seed {seed + k // env.num_envs}" for k in (i, twin))
            yield _Problem(
                "equal rows",
                f"Rows must have their own random numbers; {i_name} and {twin_name} were the same for {steps} steps, "
                "though others differ. Seed each row apart; if chance is rare in this world, raise `steps`.",
            )
            return


def _of_saved_state(maker: _Maker, env: VectorEnv, steps: int, seed: int) -> Problems:
    half = max(1, steps // 2)
    before = _play(env, env.reset(seed), half, seed)
    obs = before.steps[-1].obs
    saved = env.state_dict()
    strange = list(_strange_leaves(saved, "state_dict()"))
    if strange:
        yield _Problem(
            "state form",
            "A saved state is a tree of tensors and JSON values with text keys; got "
            f"{'; '.join(strange)}. Save tensors or plain values, never objects.",
        )
        return
    kept = _copy_state(saved)
    after = _play(env, obs, half, seed + 1)
    if _state_bytes(saved) != _state_bytes(kept):
        yield _Problem(
            "state overwritten",
            "What state_dict() returned was overwritten by later steps. Return copies or new tensors.",
        )
    with maker.env() as other:
        if not maker.fresh:
            other.reset(seed + 1)
        loaded = other.load_state_dict(kept)
        missing = _differences(loaded, obs)
        if missing:
            yield _Problem(
                "state observation",
                f"load_state_dict must return the observation that was current at saving; {missing[0]} differs.",
            )
            return
        difference = _first_difference(after, _play(other, loaded, half, seed + 1))
    if difference:
        yield _Problem(
            "state",
            f"A saved state must continue identically; {difference} after loading. Save clocks and generators too.",
        )


def _of_blocks(maker: _Maker, env: VectorEnv, steps: int, seed: int) -> Problems:
    """Each of two seeds rules its half of the rows, wherever the half lies and whatever the other seed is."""
    if env.num_envs % 2:
        return
    half, one, other = env.num_envs // 2, seed, seed + 1
    together = _play(env, env.reset([one, other]), steps, [one, other])
    swapped = _play(env, env.reset([other, one]), steps, [other, one])
    difference = _first_difference(together, _mapped(lambda leaf: torch.cat(leaf.chunk(2)[::-1]), swapped), _close)
    if difference:
        yield _Problem(
            "blocks",
            f"With reset([s1, s2]) each seed must rule its own half of the rows; with the seeds exchanged, "
            f"{difference}. Give each seed its own generator, and draw each half's numbers from it alone.",
        )
        return
    if not maker.sized:
        return
    with maker.env(half) as alone:
        single = _play(alone, alone.reset(one), steps, one)
    difference = _first_difference(_mapped(lambda leaf: leaf[:half], together), single, _close)
    if difference:
        yield _Problem(
            "blocks alone",
            f"With reset([s1, s2]) the first half of the rows must be as an environment of {half} rows with seed s1; "
            f"{difference}. Draw each half's numbers as if it were alone.",
        )


def _of_closing(maker: _Maker) -> Problems:
    env = maker.make(ROWS)
    env.close()
    try:
        env.close()
    except Exception as error:
        yield _Problem("close", f"A second close() must do nothing; it raised {type(error).__name__}: {error}.")


def _play(env: VectorEnv, obs: Observation, steps: int, seed: int | list[int]) -> _Rollout:
    """Random legal play from `obs` on; several seeds of the actions share the rows equally."""
    actor = RandomActor(env.spec)
    streams = Streams([seed] if isinstance(seed, int) else seed, env.device)
    rollout = _Rollout(_copy(obs))
    for _ in range(steps):
        decision, _ = actor.act(obs, None, streams)
        step = env.step(decision.action)
        rollout.steps.append(_copy(step))
        obs = step.obs
    return rollout


def _copy(tree: Any) -> Any:
    return tree_map(lambda leaf: leaf.clone(), tree)


def _leaves(tree: Any, name: str = "") -> dict[str, Tensor]:
    """The tensors of an observation or a step, by name."""
    named = {f: getattr(tree, f) for f in type(tree).__dataclass_fields__}
    leaves: dict[str, Tensor] = {}
    for part, value in named.items():
        if isinstance(value, Tensor):
            leaves[f"{name}{part}"] = value
        elif value is not None:
            leaves |= _leaves(value, f"{name}{part}.")
    return leaves


def _equal(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(torch.equal(one, other) or torch.equal(one.nan_to_num(), other.nan_to_num()))


def _close(one: Tensor, other: Tensor) -> bool:
    """Equal up to what the number of rows changes in a matrix product's rounding, and contacts then amplify."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.allclose(one.double(), other.double(), rtol=1e-2, atol=1e-2, equal_nan=True)


def _differences(one: Any, other: Any, same: Same = _equal) -> list[str]:
    """The names of the fields in which two observations or steps differ."""
    left, right = _leaves(one), _leaves(other)
    return [n for n in left | right if n not in left or n not in right or not same(left[n], right[n])]


def _first_difference(one: _Rollout, other: _Rollout, same: Same = _equal) -> str | None:
    """Where two stretches of play part, in words."""
    differences = _differences(one.first, other.first, same)
    if differences:
        return f"{differences[0]} of the first observation differs"
    for t, (a, b) in enumerate(zip(one.steps, other.steps, strict=True)):
        differences = _differences(a, b, same)
        if differences:
            return f"{differences[0]} of step {t} differs"
    return None


def _same_view(one: Observation, other: Observation) -> Tensor:
    """Rows in which agents and critic see the same, [E]."""
    same = (one.agent == other.agent).flatten(1).all(-1) & (one.state == other.state).all(-1)
    if one.legal is None or other.legal is None:
        return same
    return same & (one.legal == other.legal).flatten(1).all(-1)


def _by_row(play: _Rollout) -> list[bytes]:
    """Everything that happened in each row."""
    stretch = [*_leaves(play.first).values(), *(leaf for step in play.steps for leaf in _leaves(step).values())]
    table = torch.cat(
        [leaf.flatten(1).double() if leaf.dim() > 1 else leaf.double().unsqueeze(1) for leaf in stretch], 1
    )
    return [row.numpy().tobytes() for row in table.cpu()]


def _mapped(function: Callable[[Tensor], Tensor], play: _Rollout) -> _Rollout:
    first, steps = tree_map(function, (play.first, tuple(play.steps)))
    return _Rollout(first, list(steps))


def _strange_leaves(tree: Any, path: str) -> Iterator[str]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            if not isinstance(key, str):
                yield f"the key {key!r} in {path}"
            yield from _strange_leaves(value, f"{path}[{key!r}]")
    elif isinstance(tree, list | tuple):
        for index, value in enumerate(tree):
            yield from _strange_leaves(value, f"{path}[{index}]")
    elif not (tree is None or isinstance(tree, Tensor | bool | int | float | str)):
        yield f"a {type(tree).__name__} at {path}"


def _copy_state(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _copy_state(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_copy_state(value) for value in tree)
    return tree.clone() if isinstance(tree, Tensor) else tree


def _state_bytes(tree: Any) -> Any:
    """A saved state with plain values in place of tensors, to be compared."""
    if isinstance(tree, dict):
        return {key: _state_bytes(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_state_bytes(value) for value in tree]
    return tree.cpu().contiguous().view(-1).numpy().tobytes() if isinstance(tree, Tensor) else tree


def _rows(mask: Tensor) -> str:
    rows = mask.nonzero().squeeze(-1).tolist()
    return f"in row {rows[0]}" if len(rows) == 1 else f"in rows {', '.join(map(str, rows[:4]))}{' …' * (len(rows) > 4)}"
