"""From advantages of agents and channels to one number a decider."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from envs.core import Continuous, Decision, Discrete, InputError, Observation
from marl.config.load import resolve
from marl.learning.batch import Batch
from marl.learning.learner import Progress
from marl.learning.scalarization import (
    AdvantageConfig,
    Normalized,
    Own,
    Scalarization,
    Team,
    build_scalarization,
    by_decider,
    choosing,
)

ADVANTAGE = torch.tensor([[[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]], [[3.0, 0.0], [5.0, 0.0], [7.0, 0.0]]])
ALIVE = torch.tensor([[True, True, False], [False, False, False]])


CHANNELS = ("apples", "pears")


def batch(alive: Tensor = ALIVE) -> Batch:
    """Scalarizations look at nothing but who lives, unless they are somebody's own."""
    blank = Observation(torch.zeros(*alive.shape, 1), torch.zeros(len(alive), 1), alive)
    nothing = torch.zeros_like(alive)
    decision = Decision(torch.zeros(*alive.shape, 1))
    reward = torch.zeros(*alive.shape, 2)
    return Batch(1, len(alive), 1, blank, blank, decision, None, reward, nothing, nothing, nothing[:, 0])


def test_own_adds_the_channels() -> None:
    assert Own(CHANNELS)(ADVANTAGE, batch()).tolist() == [[11, 22, 44], [3, 5, 7]]


def test_team_is_the_mean_over_the_living_for_everybody() -> None:
    assert Team(CHANNELS)(ADVANTAGE, batch()).tolist() == [[16.5] * 3, [0] * 3]


@pytest.mark.parametrize(("kind", "wanted"), [(Own, [9, 18, 36]), (Team, [13.5] * 3)])
def test_channels_count_by_their_weights(kind: type[Scalarization], wanted: list[float]) -> None:
    config = AdvantageConfig(weights=(-1.0, 1.0))
    assert kind(CHANNELS, config)(ADVANTAGE, batch())[0].tolist() == wanted


def test_weights_go_to_their_end_in_a_straight_line() -> None:
    progress = Progress(5)
    fading = Own(CHANNELS, AdvantageConfig(weights=(1.0, 1.0), weights_end=(1.0, 0.0)), progress=progress)
    found = []
    for _ in range(6):
        progress.advance()
        found.append(float(fading(ADVANTAGE, batch())[0, 0]))
    assert found == [11, 8.5, 6, 3.5, 1, 1]
    alone = Own(CHANNELS, AdvantageConfig(weights_end=(1.0, 0.0)), progress=progress)
    assert float(alone(ADVANTAGE, batch())[0, 0]) == 1


def test_normalized_channels_have_mean_0_and_deviation_1_over_the_living_and_those_that_do_not_vary_count_nothing() -> (
    None
):
    draw = torch.Generator().manual_seed(0)
    alive = torch.rand(40, 3, generator=draw) < 0.7
    advantage = torch.randn(40, 3, 3, generator=draw) * torch.tensor([1e-4, 1.0, 0.0]) + torch.tensor([0.0, 50.0, 7.1])
    names = ("tiny", "far", "constant")
    for weights in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)):
        found = Normalized(names, AdvantageConfig(weights=weights))(advantage, batch(alive))
        assert float(found[alive].mean()) == pytest.approx(0, abs=1e-4)
        assert float(found[alive].std(correction=0)) == pytest.approx(1, abs=1e-4)
    assert not Normalized(names, AdvantageConfig(weights=(0.0, 0.0, 1.0)))(advantage, batch(alive)).any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": (1.0,)}, r"advantage\.weights must have 2 numbers.*apples, pears"),
        ({"weights_end": (1.0, 2.0, 3.0)}, r"advantage\.weights_end must have 2 numbers"),
        ({"kind": "mine"}, "one of own, team, normalized, or a class by dotted path"),
        ({"kind": "os:getcwd"}, "must name a marl.learning.scalarization.Scalarization"),
        ({"args": {"a": 1}}, "for a class of your own"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_scalarization(CHANNELS, AdvantageConfig(**settings))


def test_a_config_names_the_kind_alone_or_a_section_and_weights_that_fade_need_a_known_end() -> None:
    raw = {"recipe": "marl.algorithms.mappo", "env": {"world": "small_runs:Mortals", "time_limit": 5}}
    assert resolve(raw, {}).advantage.kind == "own"  # type: ignore[attr-defined]
    assert resolve(raw, {"advantage": "team"}).advantage.kind == "team"  # type: ignore[attr-defined]
    section = resolve(raw, {"advantage.weights": [1, 2]}).advantage  # type: ignore[attr-defined]
    assert (section.kind, section.weights) == ("own", (1, 2))
    bnpg = {**raw, "recipe": "marl.algorithms.bnpg"}
    assert resolve(bnpg, {"advantage.weights": [1, 2]}).advantage.kind == "team"  # type: ignore[attr-defined]
    assert resolve(bnpg, {"advantage": "own"}).advantage.kind == "own"  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=r"advantage\.weights_end follows the steps of training"):
        resolve(raw, {"advantage.weights_end": [1, 0], "train.cpu_seconds": 5})


def test_without_members_every_agent_decides_for_itself() -> None:
    advantage = Own(CHANNELS)(ADVANTAGE, batch())
    weighed, acting = by_decider(advantage, ALIVE, ALIVE, None)
    assert torch.equal(weighed, advantage)
    assert torch.equal(acting, ALIVE)


def test_an_identity_of_members_changes_nothing_for_the_living() -> None:
    advantage = Own(CHANNELS)(ADVANTAGE, batch())
    weighed, acting = by_decider(advantage, ALIVE, ALIVE, torch.eye(3, dtype=torch.bool))
    assert torch.equal(acting, ALIVE)
    assert torch.equal(weighed, advantage * ALIVE)


def test_one_more_decider_for_all_gets_the_mean_over_the_living() -> None:
    members = torch.cat([torch.eye(3, dtype=torch.bool), torch.ones(1, 3, dtype=torch.bool)])
    weighed, acting = by_decider(Own(CHANNELS)(ADVANTAGE, batch()), ALIVE, ALIVE, members)
    assert weighed.tolist() == [[11, 22, 0, 16.5], [0, 0, 0, 0]]
    assert acting.tolist() == [[True, True, False, True], [False] * 4]


def test_a_single_decider_for_the_swarm_gets_the_mean_over_the_living() -> None:
    weighed, acting = by_decider(Own(CHANNELS)(ADVANTAGE, batch()), ALIVE, ALIVE, torch.ones(1, 3, dtype=torch.bool))
    assert weighed.tolist() == [[16.5], [0]]
    assert acting.tolist() == [[True], [False]]


def test_a_decider_for_some_hears_of_no_others() -> None:
    members = torch.tensor([[True, False, True], [False, True, True]])
    weighed, acting = by_decider(Own(CHANNELS)(ADVANTAGE, batch()), ALIVE, ALIVE, members)
    assert weighed.tolist() == [[11, 22], [0, 0]]
    assert acting.tolist() == [[True, True], [False, False]]


def test_a_decider_whose_living_members_have_no_choice_does_not_act() -> None:
    free = torch.tensor([[True, False, False], [False, False, False]])
    members = torch.cat([torch.eye(3, dtype=torch.bool), torch.ones(1, 3, dtype=torch.bool)])
    weighed, acting = by_decider(Own(CHANNELS)(ADVANTAGE, batch()), ALIVE, free, members)
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


class Odd(Scalarization):
    """Gives whatever `give` makes of the weighted sum."""

    give: Any = staticmethod(lambda summed: summed)

    def __call__(self, advantage: Tensor, batch: Batch) -> Any:
        return self.give(self.weighed(advantage))


@pytest.mark.parametrize(
    ("give", "came"),
    [
        (lambda x: x.unsqueeze(-1).expand(-1, -1, 2), r"\[2, 3, 2\] torch.float32"),
        (lambda x: x[:, 0], r"\[2\] torch"),
        (lambda x: x[:1], r"\[1, 3\] torch"),
        (lambda x: x[:, :1], r"\[2, 1\] torch"),
        (lambda x: None, "a NoneType"),
        (lambda x: x.double(), r"\[2, 3\] torch.float64"),
    ],
)
def test_what_is_no_number_for_each_agent_is_refused_by_the_name_of_the_class(give: Any, came: str) -> None:
    odd = Odd(CHANNELS)
    odd.give = give
    wanted = r"Odd must turn advantages .* = \[2, 3, 2\] .*\[B,N\] = \[2, 3\] of torch.float32; it gave "
    with pytest.raises(InputError, match=wanted + came):
        odd.of(ADVANTAGE, batch())


def test_numbers_that_are_none_are_the_class_s_fault_only_where_advantages_are_numbers() -> None:
    odd = Odd(CHANNELS)
    odd.give = lambda x: x / 0
    with pytest.raises(InputError, match="Odd gave NaN or infinite numbers for finite advantages"):
        odd.of(ADVANTAGE, batch())
    assert odd.of(ADVANTAGE / 0, batch()).isinf().any()


def test_each_policy_s_channels_are_normalized_over_its_own_rows() -> None:
    draw = torch.Generator().manual_seed(0)
    everybody = torch.ones(20, 3, dtype=torch.bool)
    advantages = [3 * p + 10**p * torch.randn(20, 3, 2, generator=draw) for p in range(2)]
    together = Normalized(CHANNELS, policies=2)(torch.cat(advantages), batch(everybody.repeat(2, 1)))
    alone = [Normalized(CHANNELS)(advantage, batch(everybody)) for advantage in advantages]
    torch.testing.assert_close(together, torch.cat(alone))


def test_weights_that_are_given_for_the_end_alone_begin_at_1() -> None:
    progress = Progress(5)
    progress.advance()
    fading = Own(CHANNELS, AdvantageConfig(weights_end=(1.0, 0.0)), progress=progress)
    assert float(fading(ADVANTAGE, batch())[0, 0]) == 11
