"""What a config may say of a swarm world, and how wrong types are told."""

from __future__ import annotations

from typing import Any

import jaxtyping
import numpy as np
import pytest

from envs.arguments import require_arguments
from envs.core import InputError
from envs.swarm import SIS, Aggregation, Kuramoto, LinearQuadratic, QuadraticAggregation, Vicsek
from envs.swarm.spec import require_finite, require_whole

WORLDS = (SIS, Aggregation, Kuramoto, LinearQuadratic, QuadraticAggregation, Vicsek)
WHOLE = "must be a whole number; got"


@pytest.fixture(autouse=True)
def _as_users_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the annotations' checks, which only tests have."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", ["agents", "horizon"])
@pytest.mark.parametrize("value", ["many", 2.5, 30.0, [200], None, True])
def test_agents_and_horizon_are_whole_numbers(world: Any, name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"{name} {WHOLE}"):
        world(**{name: value})


@pytest.mark.parametrize(
    ("world", "arguments", "message"),
    [
        (Vicsek, {"radius": [0.1]}, r"radius must be a number; got \[0\.1\]"),
        (Vicsek, {"radius": "abc"}, "radius must be a number; got 'abc'"),
        (Vicsek, {"radius": 1e300}, r"radius must be a finite number, at most 1e\+15 in size; got 1e\+300"),
        (Vicsek, {"radius": 10**400}, "radius must be a finite number"),
        (Vicsek, {"manifold": ["torus"]}, r"manifold must be one of .* got \['torus'\]"),
        (Vicsek, {"manifold": None}, "manifold must be one of .* got None"),
        (Vicsek, {"neighbors": ["tree"]}, "neighbors must be one of"),
        (Vicsek, {"dt": 1e-300}, "dt must be above 0 by at least 1e-15; got 1e-300"),
        (Vicsek, {"size": 1e-320}, "size must be above 0 by at least"),
        (Vicsek, {"sigma": True}, "sigma must be a number; got True"),
        (Vicsek, {"omega0": "fast"}, "omega0 must be a number; got 'fast'"),
        (Vicsek, {"u_max": "abc"}, "u_max must be a number; got 'abc'"),
        (Vicsek, {"count_self": 5}, "count_self must be true or false; got 5"),
        (Kuramoto, {"hold": 1.5}, rf"hold {WHOLE} 1\.5"),
        (Kuramoto, {"coupling": {}}, "coupling must be one of"),
        (SIS, {"infected": "abc"}, "infected must be a number; got 'abc'"),
        (SIS, {"infected": [0.1, None]}, "infected must be a number; got None"),
        (SIS, {"infection": "often"}, "infection must be a number; got 'often'"),
        (SIS, {"error": True}, "error must be a number; got True"),
        (LinearQuadratic, {"initial_variance": "wide"}, "initial_variance must be a number; got 'wide'"),
        (LinearQuadratic, {"b": None}, "b must be a number; got None"),
        (Aggregation, {"v_max": False}, "v_max must be a number; got False"),
    ],
)
def test_wrong_types_and_sizes_are_input_errors(world: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        world(**arguments)


@pytest.mark.parametrize("world", WORLDS)
def test_a_misspelled_constant_is_told_with_the_nearest_one(world: Any) -> None:
    require_arguments(world, {"agents": 5, "horizon": 3}, "env.args")
    with pytest.raises(InputError, match=r"Unknown key env\.args\.horizn\. Did you mean env\.args\.horizon\?"):
        require_arguments(world, {"horizn": 3}, "env.args")
    with pytest.raises(InputError, match=rf"Unknown key env\.args\.spec\. {world.__name__} takes: agents, "):
        require_arguments(world, {"spec": None}, "env.args")


def test_an_unconstrained_control_reaches_every_heading_in_a_step() -> None:
    assert Vicsek(2, dt=0.5).control_limit == pytest.approx(2 * np.pi)
    assert Kuramoto(2).control_limit == 1.0


def test_numbers_of_numpy_are_numbers() -> None:
    require_whole(agents=np.int64(5))  # type: ignore[arg-type]
    require_finite(sigma=np.float32(0.5))  # type: ignore[arg-type]
    assert SIS(infected=(0.1, 0.9)).starts.shape == (2, 2)
