"""What an actor must be and decide to be scored."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from worlds import Walk

from envs.actors import require_actor
from envs.core import Decision, InputError, Observation, Streams, Tree
from envs.foraging import Foraging
from envs.games import climbing
from envs.world import RandomActor, TensorEnv
from marl.evaluation.decisions import Referee
from marl.evaluation.episodes import play, watch


class Mine:
    """Decides what `of` makes of a right action, from its second decision on where `late`."""

    def __init__(self, of: Any, late: bool = False):
        self.of, self.early = of, late

    def initial_memory(self, num_envs: int) -> None:
        return None

    def act(self, obs: Observation, memory: Tree, streams: Streams) -> Any:
        decision = Decision(torch.zeros(*obs.alive.shape, 1, dtype=torch.int64))
        early, self.early = self.early, False
        return (decision, memory) if early else self.of(decision)


def with_action(alter: Any) -> Any:
    def of(decision: Decision) -> Any:
        other = copy.copy(decision)
        object.__setattr__(other, "action", alter(decision.action))  # past the checks of types
        return other, None

    return of


FORMS: dict[str, tuple[Any, str]] = {
    "no components": (
        with_action(lambda a: a[..., 0]),
        r"\[E,N,A\] = \[4, 2, 1\] .* gave torch.int64 \[4, 2\] on cpu",
    ),
    "no rows": (with_action(lambda a: a[0]), r"the actor gave torch.int64 \[2, 1\]"),
    "reals": (with_action(lambda a: a.float()), r"the actor gave torch.float32 \[4, 2, 1\]"),
    "numpy": (with_action(lambda a: a.numpy()), r"it gave Decision\(ndarray\)"),
    "the tensor": (lambda d: d.action, "must give two things, .* it gave one Tensor"),
    "no memory": (lambda d: d, "it gave one Decision"),
    "a tensor and memory": (lambda d: (d.action, None), r"must give a Decision\(action\) .*; it gave Tensor"),
}
CHOICES: dict[str, tuple[Any, str]] = {
    "too far": (with_action(lambda a: a + 50), "in row 0 decided 50 for component 0, which has the choices 0 to 2"),
    "negative": (with_action(lambda a: a - 1), "decided -1 for component 0"),
}


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("name", FORMS | CHOICES)
def test_a_decision_of_another_form_or_a_choice_that_does_not_exist_is_not_scored(name: str, late: bool) -> None:
    of, message = (FORMS | CHOICES)[name]
    env = TensorEnv(climbing(), 4)
    with pytest.raises(InputError, match=message):
        play(env, Mine(of, late), 12, 0)
    with pytest.raises(InputError, match=message):
        next(watch(env, Mine(of), 0, lambda: None))


def test_choices_that_are_not_legal_are_told_and_those_of_the_dead_are_free() -> None:
    env = TensorEnv(Foraging(5, 2, 1), 2)
    obs = env.reset(0)
    legal = torch.ones(2, 2, 6, dtype=torch.bool)
    legal[1, 1, 2] = False
    seen, action = Observation(obs.agent, obs.state, obs.alive, legal), torch.zeros(2, 2, 1, dtype=torch.int64)
    referee = Referee(env.spec, env.device)
    referee.check(Decision(action), seen)
    action[1, 1] = 2
    with pytest.raises(InputError, match=r"in row 1 decided 2 for component 0, where `obs.legal` allows \[0, "):
        referee.check(Decision(action), seen)
    dead = Observation(obs.agent, obs.state, torch.zeros_like(obs.alive), legal)
    referee.check(Decision(action), dead)


def test_where_the_host_does_not_wait_a_later_decision_is_told_when_it_looks() -> None:
    env = TensorEnv(climbing(), 2)
    obs, referee = env.reset(0), Referee(env.spec, env.device)
    referee.waits = False
    for choice in (0, 7, 1):
        referee.check(Decision(torch.full((2, 2, 1), choice)), obs)
    with pytest.raises(InputError, match="decided what is not allowed"):
        referee.settle()


def test_real_actions_must_be_finite_and_may_leave_their_bounds() -> None:
    env = TensorEnv(Walk(), 2)
    obs, referee = env.reset(0), Referee(env.spec, env.device)
    action: Tensor = torch.full((2, 2, 2), 9.0)
    referee.check(Decision(action), obs)
    with pytest.raises(InputError, match="decided nan for component 0; an action must be finite"):
        referee.check(Decision(action * np.nan), obs)
    lost = Observation(obs.agent * np.nan, obs.state, obs.alive)
    referee.check(Decision(action * np.nan), lost)
    with pytest.raises(InputError, match=r"must be torch\.float32 "):
        referee.check(Decision(action.long()), obs)


@pytest.mark.parametrize(
    ("actor", "message"),
    [
        (RandomActor, r"got the class RandomActor\. Make one, RandomActor\(…\)"),
        (lambda obs, streams: obs, r"got a function\. .*Scripted\(function\)"),
        (None, "got a NoneType"),
    ],
)
def test_what_is_no_actor_is_not_played(actor: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        require_actor(actor, "What plays")
