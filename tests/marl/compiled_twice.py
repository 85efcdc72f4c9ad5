"""Compiled and plain training side by side, in a process whose shapes nobody checks: such checks cannot be compiled.

Run as a program; the compiler traces, caches and guards as always, and generates no code, which takes most of its time.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from small_runs import Mortals, Small, build
from torch import Tensor
from torch._dynamo.utils import counters

from envs.world import TensorEnv, Transition
from marl.learning.learner import Chain
from marl.output.console import console
from marl.training.compiling import compilable_methods, compiled

CLIPS = (0.2, 0.02)


class Doubled(Mortals):
    """Pays twice as much."""

    def transition(self, state: Any, action: Tensor, noise: Tensor) -> Transition:
        step = super().transition(state, action, noise)
        return step._replace(reward=2 * step.reward)


class Branching(Mortals):
    """Looks at a number, which no compiler can foresee."""

    def transition(self, state: Any, action: Tensor, noise: Tensor) -> Transition:
        step = super().transition(state, action, noise)
        return step if bool(step.reward.sum() > 0) else step._replace(reward=2 * step.reward)


def small(clip: float) -> Small:
    """Two steps at once: tracing more tells nothing more."""
    run = build(Mortals(), clip=clip, learning_rate=0.02, epochs=4)
    assert run.source.unroll is not None
    run.source.unroll.at_once = 2
    return run


def trained(clip: float, wanted: bool) -> list[Tensor]:
    run = small(clip)
    with compiled(*compilable_methods(run.source, run.learner)) if wanted else nullcontext():
        run.train(3)
    return run.parameters()


def assert_same(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def two_configs_are_each_compiled_with_their_own_constants() -> None:
    plain = {clip: trained(clip, False) for clip in CLIPS}
    assert not torch.allclose(plain[0.2][0], plain[0.02][0], atol=1e-3)
    for clip in (*CLIPS, *reversed(CLIPS)):
        assert_same(trained(clip, True), plain[clip])


def two_learners_of_a_chain_are_each_compiled_with_their_own_constants() -> None:
    def parameters(wanted: bool) -> list[Tensor]:
        runs = [small(clip) for clip in CLIPS]
        chain = Chain({str(run.learner.config.clip): run.learner for run in runs})
        with compiled(*compilable_methods(runs[0].source, chain)) if wanted else nullcontext():
            for _, batch in zip(range(3), runs[0].source):
                chain.update(batch)
        return [p for run in runs for p in run.parameters()]

    assert_same(parameters(True), parameters(False))


def earned(world: Mortals, wanted: bool) -> Tensor:
    env = TensorEnv(world, 3)
    env.reset(0)
    with compiled((env, "advance")) if wanted else nullcontext():
        return torch.stack([env.step(torch.zeros(3, 3, 1, dtype=torch.int64)).reward for _ in range(4)])


def two_worlds_are_each_compiled_with_their_own_physics() -> None:
    plain = earned(Mortals(), True)
    assert bool(plain.any())
    torch.testing.assert_close(earned(Doubled(), True), 2 * plain)
    torch.testing.assert_close(earned(Mortals(), False), plain)


def what_cannot_be_compiled_as_a_whole_says_so_once_and_runs_as_it_is() -> None:
    with console.capture() as told:
        found = earned(Branching(), True)
    printed = told.get()
    assert printed.count("compiling steps of the world") == printed.count("not compiled: steps of the world") == 1
    torch.testing.assert_close(found, earned(Branching(), False))


def each_method_is_compiled_once_also_for_a_run_that_goes_on() -> None:
    run = small(CLIPS[0])
    before = counters["stats"]["unique_graphs"]
    with compiled(*compilable_methods(run.source, run.learner)):
        run.train(2)
        run.source.load_state_dict(run.source.state_dict())
        run.train(2)
    assert counters["stats"]["unique_graphs"] - before == len(compilable_methods(run.source, run.learner)) == 2


class Tempered(torch.nn.Module):
    """Holds a number that changes and a function that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = 4.0
        self.shape = torch.tanh

    def loss(self, x: Tensor) -> Tensor:
        """Cooler and cooler."""
        return self.shape(x / self.temperature)


def a_number_that_changes_is_compiled_anew_and_so_are_other_shapes() -> None:
    owner, x = Tempered(), torch.linspace(-1, 1, 12)
    with compiled((owner, "loss")):
        for temperature in (4.0, 2.0, 1.0, 0.5, 0.25, 0.125, 1 / 16, 1 / 32, 1 / 64, 1 / 128):
            owner.temperature = temperature
            torch.testing.assert_close(owner.loss(x), torch.tanh(x / temperature))
        for other in (x.view(3, 4), x.double(), x.view(4, 3).T):
            torch.testing.assert_close(owner.loss(other), torch.tanh(other / owner.temperature))


if __name__ == "__main__":
    torch.compile = functools.partial(torch.compile, backend="eager")
    a_number_that_changes_is_compiled_anew_and_so_are_other_shapes()
    two_configs_are_each_compiled_with_their_own_constants()
    two_learners_of_a_chain_are_each_compiled_with_their_own_constants()
    two_worlds_are_each_compiled_with_their_own_physics()
    what_cannot_be_compiled_as_a_whole_says_so_once_and_runs_as_it_is()
    each_method_is_compiled_once_also_for_a_run_that_goes_on()
