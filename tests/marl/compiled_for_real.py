"""Compiled and plain training side by side, with the code that the compiler generates. Run as a program.

simple_spread with the networks that users have, 2x64, and the usual 4 epochs of 4 minibatches.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

from small_runs import Small, build
from torch import Tensor

from envs.particles import SimpleSpread
from marl.learning.unroll import AT_ONCE
from marl.training.compiling import compilable_methods, compiled

USUAL: dict[str, Any] = {
    "policy": {"network": {"hidden": (64, 64)}},
    "critic": {"network": {"hidden": (64, 64)}},
    "steps": 128,
    "epochs": 4,
    "minibatches": 4,
    "time_limit": 25,
}


def spread(seeds: Sequence[int] = (0,)) -> Small:
    run = build(SimpleSpread(), 16, seeds=seeds, **USUAL)
    assert run.source.unroll is not None
    run.source.unroll.at_once = AT_ONCE
    return run


def train(run: Small, updates: int, wanted: bool = True) -> list[Tensor]:
    with compiled(*compilable_methods(run.source, run.learner)) if wanted else nullcontext():
        run.train(updates)
    return [p.detach().clone() for p in run.parameters()]


def distance(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


def sixteen_minibatches_of_one_batch_are_those_of_the_plain_step() -> None:
    """From the same batch: a compiled rollout's last digits differ, and what is drawn from them by and by."""
    plain, fast = spread(), spread()
    batch = next(iter(plain.source))
    start = distance(plain.parameters(), fast.parameters())
    plain.learner.update(batch)
    with compiled((fast.learner, "descent")):
        fast.learner.update(batch)
    apart, moved = distance(plain.parameters(), fast.parameters()), distance(plain.parameters(), spread().parameters())
    print(f"start {start:.1e}, apart {apart:.1e}, moved {moved:.1e}")
    assert start == 0
    assert moved > 1e-3
    assert apart <= 2e-7


def a_rollout_is_that_of_the_plain_steps() -> None:
    plain, fast = spread(), spread()
    wanted = next(iter(plain.source))
    with compiled(*compilable_methods(fast.source, fast.learner)):
        found = next(iter(fast.source))
    same = (found.decision.action == wanted.decision.action).float().mean()
    apart = distance([found.reward], [wanted.reward])
    print(f"{same:.6f} of all decisions are the same; rewards differ by {apart:.1e}")
    assert same == 1
    assert apart <= 1e-5


def a_cut_run_goes_on_byte_for_byte() -> None:
    whole, cut, resumed = spread(), spread(), spread()
    wanted = train(whole, 4)
    train(cut, 2)
    resumed.learner.load_state_dict(cut.learner.state_dict())
    resumed.source.load_state_dict(cut.source.state_dict())
    assert distance(wanted, cut.parameters()) > 1e-3
    assert distance(train(resumed, 2), wanted) == 0


def a_policy_learns_the_same_alone_and_among_others() -> None:
    together = train(spread((3, 4)), 1)
    for p, seed in enumerate((3, 4)):
        alone = train(spread((seed,)), 1)
        apart = max(float((a - t.unflatten(0, (2, -1))[p]).abs().max()) for a, t in zip(alone, together, strict=True))
        print(f"policy {p} of 2 and alone: apart {apart:.1e}")
        assert apart <= 1e-5


SHOWN: dict[str, Callable[[], None]] = {
    "descent": sixteen_minibatches_of_one_batch_are_those_of_the_plain_step,
    "rollout": a_rollout_is_that_of_the_plain_steps,
    "resume": a_cut_run_goes_on_byte_for_byte,
    "alone": a_policy_learns_the_same_alone_and_among_others,
}


if __name__ == "__main__":
    SHOWN[sys.argv[1]]()
