"""Teams whose slots are other actors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from envs.core import Actor, Decision, InputError, KeepsRows, Observation, Streams, Tree
from envs.games import climbing
from envs.team import Team
from envs.world import RandomActor, Scripted, TensorEnv
from marl.evaluation.episodes import play
from marl.models.policies import IndependentPolicy, PolicyConfig

SPEC = TensorEnv(climbing(), 1).spec
ONE, OTHER = SPEC.agents


def always(choice: int) -> Scripted:
    def rule(obs: Observation, streams: Streams) -> Tensor:
        return torch.full((*obs.alive.shape, 1), choice)

    return Scripted(rule)


def payoff(team: Actor) -> float:
    episodes = play(TensorEnv(climbing(), 8), team, 8, 0)
    assert len(set(episodes.per_agent.tolist())) == 1
    return float(episodes.per_agent[0])


@pytest.mark.parametrize(
    ("one", "other", "paid"), [(0, 0, 11), (0, 1, -30), (1, 1, 7), (2, 2, 5), (1, 2, 6), (2, 1, 0)]
)
def test_each_member_s_action_is_taken_for_its_own_slots(one: int, other: int, paid: float) -> None:
    assert payoff(Team(SPEC, {ONE: always(one), OTHER: always(other)})) == paid
    assert payoff(Team(SPEC, {1: always(other), 0: always(one)})) == paid


class Learned(IndependentPolicy):
    """Prefers one choice, whoever plays it."""

    def __init__(self, choice: int, network: str = "mlp"):
        super().__init__(SPEC, PolicyConfig.model_validate({"network": {"kind": network, "hidden": [8]}}), Streams([0]))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.zero_()
        self.choice = choice

    def act(self, obs: Observation, memory: Tree, streams: Streams) -> tuple[Decision, Tree]:
        decision, memory = super().act(obs, memory, streams)
        return Decision(torch.full_like(decision.action, self.choice), None, decision.log_prob), memory


def test_two_policies_play_the_climbing_game_together_for_its_known_payoffs() -> None:
    assert payoff(Team(SPEC, {ONE: Learned(0), OTHER: Learned(0)})) == 11
    assert payoff(Team(SPEC, {ONE: Learned(0), OTHER: Learned(1)})) == -30
    assert payoff(Team(SPEC, {ONE: Learned(1), OTHER: Learned(1, "gru")})) == 7
    both = Learned(1)
    assert payoff(Team(SPEC, {(ONE, OTHER): both})) == payoff(Team(SPEC, {ONE: both, OTHER: both})) == 7


def test_members_remember_apart_and_log_probabilities_are_there_where_all_agree() -> None:
    obs = TensorEnv(climbing(), 4).reset(0)
    recurrent, plain = Learned(0, "gru"), Learned(1)
    team = Team(SPEC, {ONE: recurrent, OTHER: plain})
    memory = team.initial_memory(4)
    assert isinstance(memory, tuple)
    assert memory[1] is None
    decision, after = team.act(obs, memory, Streams([0]))
    assert after[0].shape == memory[0].shape
    assert decision.log_prob is not None
    assert decision.log_prob.shape == (4, 2)
    assert decision.log_prob[0].tolist() == pytest.approx([-(torch.tensor(3.0).log().item())] * 2)
    assert team.act(obs, (memory[0], None), Streams([0]))[0].latent is None
    silent = Team(SPEC, {ONE: plain, OTHER: RandomActor(SPEC)})
    assert silent.act(obs, silent.initial_memory(4), Streams([0]))[0].log_prob is None


class Counting:
    """Takes two queries in each row, and keeps something by row."""

    keeps_rows = True

    def initial_memory(self, num_envs: int) -> None:
        return None

    def act(self, obs: Observation, memory: Tree, streams: Streams) -> tuple[Decision, Tree]:
        action = torch.zeros(*obs.alive.shape, 1, dtype=torch.int64)
        return Decision(action, latent=action, counts={"queries": torch.full((len(obs.alive),), 2)}), None


def test_a_team_keeps_rows_and_counts_as_its_members_do() -> None:
    team = Team(SPEC, {ONE: Counting(), OTHER: Counting()})
    assert isinstance(team, Actor)
    assert team.keeps_rows
    assert not Team(SPEC, {(0, 1): always(0)}).keeps_rows
    assert isinstance(Counting(), KeepsRows)
    decision, _ = team.act(TensorEnv(climbing(), 3).reset(0), team.initial_memory(3), Streams([0]))
    assert decision.counts is not None
    assert decision.counts["queries"].tolist() == [4, 4, 4]
    assert len(decision.latent) == 2


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (("nobody", OTHER), r"no agent 'nobody'; the agents are"),
        ((5, 0), "no agent 5"),
        ((ONE,), r"fills every slot once, 0 to 1 .*got \[0\]"),
        ((ONE, 0, 1), r"got \[0, 0, 1\]"),
    ],
)
def test_a_team_with_a_slot_free_twice_filled_or_unknown_is_refused(keys: tuple[str | int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Team(SPEC, {key: always(0) for key in keys})


@pytest.mark.parametrize(
    ("actors", "message"),
    [
        ({ONE: Scripted, OTHER: always(0)}, "got the class Scripted"),
        ({True: always(0), 0: always(1)}, "no agent True"),
    ],
)
def test_a_team_of_what_is_no_actor_or_by_what_is_no_agent_is_refused(actors: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Team(SPEC, actors)


def test_one_member_that_keeps_rows_or_has_a_latent_is_enough_for_the_team() -> None:
    team = Team(SPEC, {ONE: Counting(), OTHER: always(1)})
    assert team.keeps_rows
    decision, _ = team.act(TensorEnv(climbing(), 3).reset(0), team.initial_memory(3), Streams([0]))
    assert decision.latent is not None
    assert decision.latent[0].shape == (3, 2, 1)
    assert decision.latent[1] is None
    assert decision.counts is not None
    assert decision.counts["queries"].tolist() == [2, 2, 2]
