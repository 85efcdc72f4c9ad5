"""From advantages of agents and channels to one number a decider."""

from __future__ import annotations

import torch

from envs.core import Continuous, Discrete, Observation
from marl.learning.scalarization import by_decider, choosing, own, team

ADVANTAGE = torch.tensor([[[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]], [[3.0, 0.0], [5.0, 0.0], [7.0, 0.0]]])
ALIVE = torch.tensor([[True, True, False], [False, False, False]])


def test_own_adds_the_channels() -> None:
    assert own(ADVANTAGE, ALIVE, None).tolist() == [[11, 22, 44], [3, 5, 7]]


def test_team_is_the_mean_over_the_living_for_everybody() -> None:
    assert team(ADVANTAGE, ALIVE, None).tolist() == [[16.5] * 3, [0] * 3]


def test_without_members_every_agent_decides_for_itself() -> None:
    advantage = own(ADVANTAGE, ALIVE, None)
    weighed, acting = by_decider(advantage, ALIVE, ALIVE, None)
    assert torch.equal(weighed, advantage)
    assert torch.equal(acting, ALIVE)


def test_an_identity_of_members_changes_nothing_for_the_living() -> None:
    advantage = own(ADVANTAGE, ALIVE, None)
    weighed, acting = by_decider(advantage, ALIVE, ALIVE, torch.eye(3, dtype=torch.bool))
    assert torch.equal(acting, ALIVE)
    assert torch.equal(weighed, advantage * ALIVE)


def test_one_more_decider_for_all_gets_the_mean_over_the_living() -> None:
    members = torch.cat([torch.eye(3, dtype=torch.bool), torch.ones(1, 3, dtype=torch.bool)])
    weighed, acting = by_decider(own(ADVANTAGE, ALIVE, None), ALIVE, ALIVE, members)
    assert weighed.tolist() == [[11, 22, 0, 16.5], [0, 0, 0, 0]]
    assert acting.tolist() == [[True, True, False, True], [False] * 4]


def test_a_single_decider_for_the_swarm_gets_the_mean_over_the_living() -> None:
    weighed, acting = by_decider(own(ADVANTAGE, ALIVE, None), ALIVE, ALIVE, torch.ones(1, 3, dtype=torch.bool))
    assert weighed.tolist() == [[16.5], [0]]
    assert acting.tolist() == [[True], [False]]


def test_a_decider_for_some_hears_of_no_others() -> None:
    members = torch.tensor([[True, False, True], [False, True, True]])
    weighed, acting = by_decider(own(ADVANTAGE, ALIVE, None), ALIVE, ALIVE, members)
    assert weighed.tolist() == [[11, 22], [0, 0]]
    assert acting.tolist() == [[True, True], [False, False]]


def test_a_decider_whose_living_members_have_no_choice_does_not_act() -> None:
    free = torch.tensor([[True, False, False], [False, False, False]])
    members = torch.cat([torch.eye(3, dtype=torch.bool), torch.ones(1, 3, dtype=torch.bool)])
    weighed, acting = by_decider(own(ADVANTAGE, ALIVE, None), ALIVE, free, members)
    assert acting.tolist() == [[True, False, False, True], [False] * 4]
    assert weighed[0].tolist() == [11, 22, 0, 16.5]


def seen(legal: list[list[bool]] | None) -> Observation:
    """Three agents, the last one dead."""
    alive = torch.tensor([[True, True, False]])
    return Observation(torch.zeros(1, 3, 1), torch.zeros(1, 1), alive, None if legal is None else torch.tensor([legal]))


def test_whoever_lives_and_has_more_than_one_legal_choice_in_some_component_is_choosing() -> None:
    space = Discrete((2, 3))
    legal = [[True, False, True, True, False], [False, True, False, False, True], [True] * 5]
    assert choosing(seen(None), space).tolist() == [[True, True, False]]
    assert choosing(seen(legal), space).tolist() == [[True, False, False]]


def test_whoever_lives_and_has_a_real_component_that_counts_is_choosing() -> None:
    space = Continuous((-1.0, -1.0), (1.0, 1.0))
    assert choosing(seen([[False, True], [False, False], [True, True]]), space).tolist() == [[True, False, False]]
