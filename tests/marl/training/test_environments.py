"""Environments as configs name them."""

from typing import Any

import pytest
import torch
from worlds import ALTERED, DOUBLE

from envs.core import InputError
from envs.games import Constant
from envs.world import Transition
from marl.config.schema import EnvConfig
from marl.training.environments import make_env
from marl.training.pettingzoo import pettingzoo_env

SPREAD = "mpe2.simple_spread_v3:parallel_env"


@pytest.mark.parametrize(
    ("path", "args", "message"),
    [
        (SPREAD, {"max_cycle": 3}, r"Did you mean env\.args\.max_cycles"),
        ("pettingzoo.classic.rps.rps:parallel_env", {"num_action": 3}, r"Did you mean env\.args\.num_actions"),
        ("mpe2.simple_spread_v3:paralel_env", {}, "Did you mean parallel_env"),
    ],
)
def test_wrong_names_are_told_before_any_worker_starts(path: str, args: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        pettingzoo_env(path, args, 2, "env.args", workers=2)
    assert "worker" not in str(caught.value)


class Endless(Constant):
    """As Constant, which never ends; or may, if it is told to say so."""

    def __init__(self, may_end: bool = False):
        super().__init__()
        self.may_end = may_end

    def transition(self, state: Any, action: Any, noise: None) -> Transition:
        state, reward, _ = super().transition(state, action, noise)
        return Transition(state, reward, torch.zeros(reward.shape[:2], dtype=torch.bool) if self.may_end else None)


def test_a_world_that_never_ends_needs_a_time_limit_and_one_that_may_end_is_believed() -> None:
    path = f"{__name__}:Endless"
    with pytest.raises(InputError, match="never end"):
        make_env(EnvConfig(world=path))
    make_env(EnvConfig(world=path, time_limit=5))
    make_env(EnvConfig(world=path, args={"may_end": True}))
    make_env(EnvConfig(world="envs.games:Constant", args={"horizon": 3}))


def test_arguments_reach_the_environment_in_a_worker() -> None:
    env = pettingzoo_env(SPREAD, {"N": 2}, 1, workers=1)
    env.close()
    assert len(env.spec.agents) == 2


@pytest.mark.parametrize("altered", ALTERED | DOUBLE)
def test_a_world_whose_first_step_has_another_form_than_its_spec_is_told_the_field(altered: str) -> None:
    message = (ALTERED | DOUBLE)[altered][1]
    with pytest.raises(InputError, match=message):
        make_env(EnvConfig(world="worlds:Misformed", args={"altered": altered}, time_limit=5))


def test_no_environments_at_all_are_refused() -> None:
    with pytest.raises(InputError, match="num_envs must be at least 1; got 0"):
        make_env(EnvConfig(world="envs.games:Constant", time_limit=3), num_envs=0)
