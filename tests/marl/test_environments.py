"""Environments as configs name them."""

from typing import Any

import pytest

from envs.core import InputError
from marl.environments import pettingzoo_env

SPREAD = "mpe2.simple_spread_v3:parallel_env"


@pytest.mark.parametrize(
    ("path", "args", "message"),
    [
        (SPREAD, {"max_cycle": 3}, r"Did you mean args\.max_cycles"),
        ("pettingzoo.classic.rps.rps:parallel_env", {"num_action": 3}, r"Did you mean args\.num_actions"),
        ("mpe2.simple_spread_v3:paralel_env", {}, "Did you mean parallel_env"),
    ],
)
def test_wrong_names_are_told_before_any_worker_starts(path: str, args: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        pettingzoo_env(path, args, 2, workers=2)
    assert "worker" not in str(caught.value)


def test_arguments_reach_the_environment_in_a_worker() -> None:
    env = pettingzoo_env(SPREAD, {"N": 2}, 1, workers=1)
    env.close()
    assert len(env.spec.agents) == 2
