"""Checks that play repeats: from a seed, from a saved state, in a block of rows."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from envs.core import Observation, Step, Streams, VectorEnv, tree_map
from envs.testing.play import Problem, Problems, Same, copied, differences, equal, leaves
from envs.world import RandomActor

ROWS = 6  # asked of a factory that takes a number of rows; even, so that two policies can share them


class Maker(NamedTuple):
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


def of_seeds(maker: Maker, env: VectorEnv, steps: int, seed: int) -> Problems:
    """One seed gives one course of events; other seeds and other rows give others, where the world is random."""
    first = _play(env, env.reset(seed), steps, seed)
    with maker.env() as again:
        second = _play(again, again.reset(seed), steps, seed)
    difference = _first_difference(first, second)
    if difference:
        yield Problem(
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
        yield Problem(
            "seed ignored",
            f"Seeds {seed} and {seed + 1} gave the same {steps} steps in all rows, though rows differ. Use the seed.",
        )
        return
    for i, row in enumerate(rows):
        if row in rows[:i]:
            twin = rows.index(row)
            i_name, twin_name = (f"row {k % env.num_envs} of seed {seed + k // env.num_envs}" for k in (i, twin))
            yield Problem(
                "equal rows",
                f"Rows must have their own random numbers; {i_name} and {twin_name} were the same for {steps} steps, "
                "though others differ. Seed each row apart; if chance is rare in this world, raise `steps`.",
            )
            return


def of_saved_state(maker: Maker, env: VectorEnv, steps: int, seed: int) -> Problems:
    """A saved state is plain, stays as it was, and continues identically, in another environment too."""
    half = max(1, steps // 2)
    before = _play(env, env.reset(seed), half, seed)
    obs = before.steps[-1].obs
    saved = env.state_dict()
    strange = list(_strange_leaves(saved, "state_dict()"))
    if strange:
        yield Problem(
            "state form",
            "A saved state is a tree of tensors and JSON values with text keys; got "
            f"{'; '.join(strange)}. Save tensors or plain values, never objects.",
        )
        return
    kept = copy.deepcopy(saved)
    after = _play(env, obs, half, seed + 1)
    if _state_bytes(saved) != _state_bytes(kept):
        yield Problem(
            "state overwritten",
            "What state_dict() returned was overwritten by later steps. Return copies or new tensors.",
        )
    with maker.env() as other:
        if not maker.fresh:
            other.reset(seed + 1)
        loaded = other.load_state_dict(kept)
        missing = differences(loaded, obs)
        if missing:
            yield Problem(
                "state observation",
                f"load_state_dict must return the observation that was current at saving; {missing[0]} differs.",
            )
            return
        difference = _first_difference(after, _play(other, loaded, half, seed + 1))
    if difference:
        yield Problem(
            "state",
            f"A saved state must continue identically; {difference} after loading. Save clocks and generators too.",
        )


def of_blocks(maker: Maker, env: VectorEnv, steps: int, seed: int) -> Problems:
    """Each of two seeds rules its half of the rows, wherever the half lies and whatever the other seed is."""
    if env.num_envs % 2:
        return
    half, one, other = env.num_envs // 2, seed, seed + 1
    together = _play(env, env.reset([one, other]), steps, [one, other])
    swapped = _play(env, env.reset([other, one]), steps, [other, one])
    difference = _first_difference(together, _mapped(lambda leaf: torch.cat(leaf.chunk(2)[::-1]), swapped), _close)
    if difference:
        yield Problem(
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
        yield Problem(
            "blocks alone",
            f"With reset([s1, s2]) the first half of the rows must be as an environment of {half} rows with seed s1; "
            f"{difference}. Draw each half's numbers as if it were alone.",
        )


def of_closing(maker: Maker) -> Problems:
    """An environment may be closed twice."""
    env = maker.make(ROWS)
    env.close()
    try:
        env.close()
    except Exception as error:
        yield Problem("close", f"A second close() must do nothing; it raised {type(error).__name__}: {error}.")


def _play(env: VectorEnv, obs: Observation, steps: int, seed: int | list[int]) -> _Rollout:
    """Random legal play from `obs` on; several seeds of the actions share the rows equally."""
    actor = RandomActor(env.spec)
    streams = Streams([seed] if isinstance(seed, int) else seed, env.device)
    rollout = _Rollout(copied(obs))
    for _ in range(steps):
        decision, _ = actor.act(obs, None, streams)
        step = env.step(decision.action)
        rollout.steps.append(copied(step))
        obs = step.obs
    return rollout


def _close(one: Tensor, other: Tensor) -> bool:
    """Equal up to what the number of rows changes in a matrix product's rounding, and contacts then amplify."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.allclose(one.double(), other.double(), rtol=1e-2, atol=1e-2, equal_nan=True)


def _first_difference(one: _Rollout, other: _Rollout, same: Same = equal) -> str | None:
    """First place where two stretches of play part, in words, or None."""
    differing = differences(one.first, other.first, same)
    if differing:
        return f"{differing[0]} of the first observation differs"
    for t, (a, b) in enumerate(zip(one.steps, other.steps, strict=True)):
        differing = differences(a, b, same)
        if differing:
            return f"{differing[0]} of step {t} differs"
    return None


def _by_row(play: _Rollout) -> list[bytes]:
    """Everything that happened in each row."""
    stretch = [*leaves(play.first).values(), *(leaf for step in play.steps for leaf in leaves(step).values())]
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


def _state_bytes(tree: Any) -> Any:
    """A saved state with plain values in place of tensors, to be compared."""
    if isinstance(tree, dict):
        return {key: _state_bytes(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_state_bytes(value) for value in tree]
    return tree.cpu().contiguous().view(-1).numpy().tobytes() if isinstance(tree, Tensor) else tree
