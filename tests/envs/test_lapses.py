"""Agents who lapse: how often, who, and to what."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from envs.core import Discrete, InputError
from envs.kitchen import Kitchen
from envs.lapses import Lapsing, lapsing
from envs.testing import check_env
from envs.world import TensorEnv

KITCHEN = {"layout": "cramped_room_small", "horizon": None}


def world(**settings: Any) -> Lapsing:
    made = lapsing("envs.kitchen:Kitchen", KITCHEN, **settings)
    assert isinstance(made, Lapsing)
    return made


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_without_lapses_it_is_the_world_itself() -> None:
    assert type(lapsing("envs.kitchen:Kitchen", KITCHEN, share=0)) is Kitchen


def test_a_share_of_episodes_has_one_agent_who_lapses_by_a_chance_of_its_own() -> None:
    made = world(share=0.25, idle=4)
    state = made.initial(made.initial_noise(20_000, generator()))
    lapses = state.chance > 0
    assert int(lapses.sum(1).max()) == 1
    assert lapses.any(1).float().mean() == pytest.approx(0.25, abs=0.015)
    assert lapses[:, 0].float().mean() == pytest.approx(0.125, abs=0.01)
    chance = state.chance.sum(1)[lapses.any(1)]
    assert torch.quantile(chance, torch.tensor([0.1, 0.5, 0.9])).tolist() == pytest.approx([0.1, 0.5, 0.9], abs=0.03)
    assert state.calm[lapses.any(1)].float().mean() == pytest.approx(0.5, abs=0.03)
    assert not bool(world(share=0.25).initial(made.initial_noise(100, generator())).calm.any())


@pytest.mark.parametrize("calm", [True, False])
def test_a_lapse_takes_the_place_of_the_choice_of_that_agent_alone(calm: bool) -> None:
    made, rows = world(idle=4), 12_000
    first = made.initial(made.initial_noise(rows, generator()))
    state = first._replace(
        chance=torch.tensor([[0.5, 0.0]]).expand(rows, 2), calm=torch.full((rows,), calm), state=named_start(rows)
    )
    seen: list[torch.Tensor] = []
    inner = made.world.transition
    made.world.transition = lambda state, action, noise: seen.append(action) or inner(state, action, noise)  # type: ignore[method-assign,func-returns-value]
    then = made.transition(state, torch.full((rows, 2, 1), 5), made.noise(rows, generator()))
    done = seen[0].squeeze(-1)
    assert bool((done[:, 1] == 5).all())
    counts = torch.bincount(done[:, 0], minlength=6) / rows
    expected = [0, 0, 0, 0, 0.5, 0.5] if calm else [1 / 12] * 5 + [7 / 12]
    assert counts.tolist() == pytest.approx(expected, abs=0.015)
    assert bool((then.state.chance == state.chance).all())
    assert bool((then.state.calm == calm).all())


def named_start(rows: int) -> Any:
    kitchen = Kitchen(**KITCHEN)
    return kitchen.initial(kitchen.initial_noise(rows, generator()))


def test_a_lapse_may_be_to_the_first_choice_and_half_of_all_episodes_have_one() -> None:
    made = world(idle=0)
    assert made.share == 0.5
    assert made.initial(made.initial_noise(1000, generator())).calm.float().mean() == pytest.approx(0.5, abs=0.05)


class Unseen(Kitchen):
    """Cooks who do not see the clock."""

    shows_clock = False

    def __init__(self) -> None:
        super().__init__("cramped_room_small", horizon=30)


def test_who_does_not_see_the_clock_does_not_see_it_here() -> None:
    seen = TensorEnv(lapsing("test_lapses:Unseen"), 2).reset(0).agent.shape[-1]
    assert seen == TensorEnv(Unseen(), 2).reset(0).agent.shape[-1]


def test_nobody_is_told() -> None:
    made, kitchen = world(share=1.0), Kitchen(**KITCHEN)
    state = made.initial(made.initial_noise(4, generator()))
    assert torch.equal(made.observe(state).agent, kitchen.observe(state.state).agent)
    assert made.spec == kitchen.spec


def test_it_keeps_the_contract_of_environments() -> None:
    check_env(TensorEnv(world(share=1.0, idle=4), 4, time_limit=7))


@pytest.mark.parametrize(
    ("path", "settings", "reason"),
    [
        ("envs.kitchen:Kitchen", {"share": 1.5}, "share is the share of episodes"),
        ("envs.kitchen:Kitchen", {"share": True}, "share is the share of episodes"),
        ("envs.kitchen:Kitchen", {"idle": 6}, "idle is a choice, 0 to 5"),
        ("envs.kitchen:Kitchen", {"args": {"layuot": "x"}}, "env.args.args.layuot"),
        ("envs.kitchen:State", {}, "State needs it"),
        ("envs.kitchen:ACTIONS", {}, "is a tuple"),
        ("envs.speaker_listener:SpeakerListener", {}, "always among the same"),
        (5, {}, "module:Class"),
        ("envs.kitchen:Kitchen", {"args": 5}, "args are arguments by name"),
        ("envs.kitchen:layout_names", {}, "gave a list|gave a tuple"),
        ("envs.particles:SimpleSpread", {}, ""),
    ],
)
def test_what_cannot_lapse_is_refused(path: Any, settings: dict[str, Any], reason: str) -> None:
    if not reason:  # discrete choices, so that agents can lapse
        assert isinstance(lapsing(path, **settings).spec.action, Discrete)
        return
    with pytest.raises(InputError, match=reason):
        lapsing(path, **settings)


def test_agents_who_do_not_choose_cannot_lapse() -> None:
    with pytest.raises(InputError, match="Agents lapse who make one choice"):
        lapsing("envs.swarm:Vicsek", {"agents": 3})
