"""`check_env` passes whatever keeps the contract, and says what is wrong with whatever does not."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from worlds import ALTERED, DOUBLE, Misformed

from envs.aloha import Aloha
from envs.core import Discrete, EnvSpec, InputError, Observation, Step, Tree
from envs.foraging import Foraging
from envs.games import (
    BudgetGame,
    Constant,
    CoordinationGame,
    CopyGame,
    DecTiger,
    Identity,
    MatrixGame,
    PermutationGame,
    WhoIsInformed,
    climbing,
)
from envs.particles import SimpleSpread
from envs.speaker_listener import SpeakerListener
from envs.testing import check_env
from envs.world import TensorEnv, Transition, World


class Parting(World[Tensor]):
    """Two unequal agents with random lifetimes; the state is the age, then the lifetimes. All paddings are in use."""

    def __init__(self, horizon: int | None = None):
        self.spec = EnvSpec(
            agents=("long", "short"),
            kind=(0, 1),
            channels=("age", "one"),
            observation_sizes=(3, 2),
            actions=(Discrete((3,)), Discrete((2,))),
            state_size=3,
            horizon=horizon,
        )

    def initial_noise(self, num: int, generator: torch.Generator) -> Tensor:
        return torch.randint(2, 9, (num, 2), generator=generator)

    def initial(self, noise: Tensor) -> Tensor:
        return torch.cat([torch.zeros(len(noise), 1), noise], -1)

    def transition(self, state: Tensor, action: Tensor, noise: Tree) -> Transition:
        state = state + torch.tensor([1.0, 0, 0])
        reward = torch.stack([state[:, :1].expand(-1, 2), torch.ones(len(state), 2)], -1)
        return Transition(state, reward, state[:, :1] >= state[:, 1:])

    def observe(self, state: Tensor) -> Observation:
        legal = self.spec.legal
        assert legal is not None
        short = torch.cat([state[:, :2], torch.zeros(len(state), 1)], -1)
        alive = torch.ones(len(state), 2, dtype=torch.bool)
        return Observation(torch.stack([state, short], 1), state, alive, legal.expand(len(state), -1, -1))


def altered(tree: Any, **fields: Any) -> Any:
    """A copy with other fields, which no type check sees."""
    tree = copy.copy(tree)
    for name, value in fields.items():
        object.__setattr__(tree, name, value)
    return tree


@pytest.mark.parametrize(
    ("world", "time_limit"),
    [
        (climbing(), None),
        (MatrixGame(torch.zeros(2, 3, 4)), None),
        (PermutationGame(3), None),
        (CopyGame(), None),
        (WhoIsInformed(3), None),
        (CoordinationGame(3, horizon=9), None),
        (CoordinationGame(2, horizon=None), 7),
        (Constant(2, horizon=5), None),
        (Constant(1), 3),
        (Identity(3, agents=2), None),
        (SimpleSpread(3), 25),
        (SpeakerListener(), 25),
        (Aloha(), None),
        (DecTiger(3), None),
        (Foraging(5, 3, 1, cooperative=False, horizon=9), None),
        (Foraging(horizon=None), 7),
        (BudgetGame(), None),
        (Parting(), None),
        (Parting(horizon=5), None),
        (Parting(), 5),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, World) else str(value),
)
def test_every_native_world_keeps_the_contract(world: World[Any], time_limit: int | None) -> None:
    check_env(lambda num_envs: TensorEnv(world, num_envs, time_limit=time_limit), steps=20)


def test_rows_that_are_selected_and_instances_keep_the_contract_too() -> None:
    check_env(lambda: TensorEnv(Parting(), 4, select_rows=True), steps=20)
    check_env(TensorEnv(Parting(), 3), steps=20)
    check_env(TensorEnv(Parting(), 1), steps=20)


def test_what_a_function_made_is_closed_again() -> None:
    opened: list[Counted] = []

    class Counted(TensorEnv):
        def __init__(self, num_envs: int):
            super().__init__(Parting(), num_envs)
            self.closed = 0
            opened.append(self)

        def close(self) -> None:
            self.closed += 1

    check_env(Counted, steps=10)
    assert len(opened) > 3
    assert all(env.closed for env in opened)


class Broken(TensorEnv):
    """An environment whose steps and starts are altered on the way out."""

    def __init__(
        self,
        num_envs: int,
        *,
        step: Callable[[Step], Step] = lambda step: step,
        start: Callable[[Observation], Observation] = lambda obs: obs,
        world: World[Any] | None = None,
        time_limit: int | None = None,
    ):
        super().__init__(world or Parting(), num_envs, time_limit=time_limit)
        self.alter_step, self.alter_start = step, start

    def reset(self, seed: int | Sequence[int]) -> Observation:
        return self.alter_start(super().reset(seed))

    def step(self, action: Tensor) -> Step:
        return self.alter_step(super().step(action))


def in_view(alter: Callable[[Observation], Observation]) -> Callable[[Step], Step]:
    return lambda step: altered(step, obs=alter(step.obs))


def both_out(step: Step) -> Step:
    return altered(step, truncated=step.terminated)


def unflagged(step: Step) -> Step:
    return altered(step, terminated=torch.zeros_like(step.terminated))


def reborn(step: Step) -> Step:
    return altered(step, obs=altered(step.obs, alive=torch.ones_like(step.obs.alive)))


ALTERED_STEPS: dict[str, tuple[Callable[[Step], Step], str]] = {
    "a reward without channels": (
        lambda s: altered(s, reward=s.reward[..., 0]),
        r"reward must be float32 \[E,N,K\] = \[6, 2, 2\]",
    ),
    "integer flags": (lambda s: altered(s, ended=s.ended.long()), r"ended must be bool \[E\] = \[6\].* is int64 \[6\]"),
    "a missing observation": (
        in_view(lambda o: altered(o, agent=None)),
        r"obs\.agent must be .*; it is of type NoneType",
    ),
    "views too narrow": (
        in_view(lambda o: altered(o, agent=o.agent[..., :2])),
        r"agent must be float32 \[E,N,D\] = \[6, 2, 3\]",
    ),
    "NaN": (in_view(lambda o: altered(o, state=o.state / 0)), "obs.state must be finite"),
    "infinite rewards": (lambda s: altered(s, reward=s.reward / 0), "rewards must be finite"),
    "dirty padding": (in_view(lambda o: altered(o, agent=o.agent + 1)), r"agent\[:, 1, 2:\] must be zero"),
    "no legal mask": (in_view(lambda o: altered(o, legal=None)), "legal must rule out .* it is None"),
    "all legal": (in_view(lambda o: altered(o, legal=torch.ones_like(o.legal))), "legal must rule out .* allows some"),
    "nothing legal": (in_view(lambda o: altered(o, legal=torch.zeros_like(o.legal))), "at least one choice"),
    "rewards of the dead": (lambda s: altered(s, reward=s.reward + 1), "not alive is rewarded"),
    "terminated and truncated": (both_out, "both terminated and truncated"),
    "no flags": (unflagged, "neither terminated nor truncated"),
    "no ends": (lambda s: altered(s, ended=torch.zeros_like(s.ended)), "alive in obs"),
    "always ended": (lambda s: altered(s, ended=torch.ones_like(s.ended)), "ended though an agent was left"),
    "the dead alive": (reborn, "alive in obs"),
    "restarted final_obs": (
        lambda s: altered(s, final_obs=altered(s.obs, alive=s.final_obs.alive)),
        "before restarting",
    ),
    "final_obs of the survivors": (lambda s: altered(s, final_obs=s.obs), r"final_obs.alive must tell who acted"),
    "another final_obs": (
        lambda s: altered(s, final_obs=altered(s.final_obs, state=s.final_obs.state + 1)),
        "final_obs differs from obs",
    ),
}


@pytest.mark.parametrize("name", ALTERED_STEPS)
def test_a_broken_step_is_named(name: str) -> None:
    step, message = ALTERED_STEPS[name]
    with pytest.raises(InputError, match=message):
        check_env(lambda num_envs: Broken(num_envs, step=step), steps=12)


def test_several_violations_are_told_at_once_each_with_how_to_mend_it() -> None:
    def step(s: Step) -> Step:
        return altered(both_out(s), reward=s.reward + 1)

    with pytest.raises(InputError) as caught:
        check_env(lambda num_envs: Broken(num_envs, step=step), steps=12)
    message = str(caught.value)
    assert "in 2 ways" in message
    assert message.count("\n- ") == 2
    assert "Multiply rewards by alive." in message
    assert "Choose: the task ended" in message


def test_a_start_with_nobody_alive_is_named() -> None:
    def start(obs: Observation) -> Observation:
        return altered(obs, alive=torch.zeros_like(obs.alive))

    with pytest.raises(InputError, match="nobody is alive at the start"):
        check_env(lambda num_envs: Broken(num_envs, start=start), steps=10)


def test_a_horizon_that_truncates_is_named() -> None:
    def step(s: Step) -> Step:
        return altered(s, truncated=s.terminated, terminated=s.truncated)

    with pytest.raises(InputError, match=r"reaching spec\.horizon must terminate"):
        check_env(lambda num_envs: Broken(num_envs, step=step, world=Constant(2, horizon=3)), steps=10)


def test_a_horizon_that_passes_is_named() -> None:
    def step(s: Step) -> Step:
        return altered(s, terminated=s.truncated, ended=torch.zeros_like(s.ended))

    with pytest.raises(InputError, match=r"goes on after spec\.horizon = 3 steps"):
        check_env(lambda num_envs: Broken(num_envs, step=step, world=Constant(2, horizon=3)), steps=10)


class Overwriting(TensorEnv):
    """Hands out one and the same buffer at every step."""

    def __init__(self, num_envs: int):
        super().__init__(Parting(), num_envs)
        self.buffer = torch.zeros(num_envs, 2, 2)

    def step(self, action: Tensor) -> Step:
        step = super().step(action)
        self.buffer.copy_(step.reward)
        return altered(step, reward=self.buffer)


class WritingActions(TensorEnv):
    def __init__(self, num_envs: int):
        super().__init__(Parting(), num_envs)

    def step(self, action: Tensor) -> Step:
        step = super().step(action)
        action += 1
        return step


class Unseeded(TensorEnv):
    calls = 0

    def __init__(self, num_envs: int):
        super().__init__(Parting(), num_envs)

    def reset(self, seed: int | Sequence[int]) -> Observation:
        Unseeded.calls += 1
        return super().reset(Unseeded.calls if isinstance(seed, int) else [s + Unseeded.calls for s in seed])


class SeedIgnoring(TensorEnv):
    def __init__(self, num_envs: int):
        super().__init__(Parting(), num_envs)

    def reset(self, seed: int | Sequence[int]) -> Observation:
        return super().reset(0 if isinstance(seed, int) else [0] * len(seed))


class Repeating(Parting):
    """Rows come in pairs with the same chance, as if two workers had got one seed."""

    def initial_noise(self, num: int, generator: torch.Generator) -> Tensor:
        return super().initial_noise((num + 1) // 2, generator).repeat(2, 1)[:num]


class Forgetful(TensorEnv):
    """Loads everything but the random streams."""

    def __init__(self, num_envs: int):
        super().__init__(Parting(), num_envs)

    def load_state_dict(self, state: dict[str, Any]) -> Observation:
        streams = TensorEnv(Parting(), self.num_envs)
        streams.reset(123)
        return super().load_state_dict(state | {"streams": streams.state_dict()["streams"]})


class ForgettingPlace(Forgetful):
    def load_state_dict(self, state: dict[str, Any]) -> Observation:
        return self.reset(0)


class Pickling(Forgetful):
    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"world": self.world}


class SharingSeeds(TensorEnv):
    """All rows draw from the first of several seeds."""

    def __init__(self, num_envs: int):
        super().__init__(Parting(), num_envs)

    def reset(self, seed: int | Sequence[int]) -> Observation:
        return super().reset(seed if isinstance(seed, int) else seed[0])


class CountingSeeds(TensorEnv):
    """Seeds that mean something else among several."""

    def __init__(self, num_envs: int):
        super().__init__(Parting(), num_envs)

    def reset(self, seed: int | Sequence[int]) -> Observation:
        return super().reset(seed if isinstance(seed, int) else [100 + s for s in seed])


class ClosingOnce(TensorEnv):
    def __init__(self, num_envs: int):
        super().__init__(Parting(), num_envs)
        self.workers: list[int] | None = [1]

    def close(self) -> None:
        assert self.workers is not None, "closed twice"
        self.workers = None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Overwriting, r"reward of step \d+ was overwritten later"),
        (WritingActions, "wrote to the action"),
        (Unseeded, "same seed and actions must give the same episodes"),
        (SeedIgnoring, "Seeds 0 and 1 gave the same 12 steps"),
        (lambda num_envs: TensorEnv(Repeating(), num_envs), "row 3 of seed 0 and row 0 of seed 0 were the same"),
        (Forgetful, "must continue identically; .* after loading"),
        (ForgettingPlace, "must return the observation that was current"),
        (Pickling, r"got a Parting at state_dict\(\)\['world'\]"),
        (SharingSeeds, "each seed must rule its own half"),
        (CountingSeeds, "must be as an environment of 3 rows with seed s1"),
        (ClosingOnce, r"second close\(\) must do nothing; it raised AssertionError"),
    ],
)
def test_a_broken_environment_is_told_what_is_wrong(make: Callable[[int], TensorEnv], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_env(make, steps=12)


@pytest.mark.parametrize("altered", ALTERED | DOUBLE)
def test_a_world_of_another_form_than_its_spec_is_a_listed_problem(altered: str) -> None:
    with pytest.raises(InputError, match=(ALTERED | DOUBLE)[altered][1]) as caught:
        check_env(lambda num_envs: TensorEnv(Misformed(altered), num_envs), steps=10)
    assert "breaks the contract of VectorEnv in" in str(caught.value)


def test_what_an_environment_raises_is_a_listed_problem() -> None:
    class Raising(TensorEnv):
        def step(self, action: Tensor) -> Step:
            raise ZeroDivisionError("no such step")

    with pytest.raises(InputError, match=r"in 1 way.*\n- ZeroDivisionError in step \(.*, line \d+\): no such step"):
        check_env(lambda num_envs: Raising(Parting(), num_envs), steps=10)
