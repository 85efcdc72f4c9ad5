"""Names, arguments, observations and actions of scenarios."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from envs.core import Continuous, Discrete, EnvSpec, InputError, import_dotted

# Arguments of vmas.make_env that are not the user's: the adapter needs a certain value.
OURS = (
    "scenario",
    "num_envs",
    "device",
    "seed",
    "max_steps",
    "wrapper",
    "wrapper_kwargs",
    "dict_spaces",
    "clamp_actions",
    "grad_enabled",
    "terminated_truncated",
)


def find(scenario: str | Callable[[], Any]) -> tuple[Callable[..., Any], str | Callable[[], Any]]:
    """vmas.make_env, and the scenario: a name of VMAS, or a class. Raises InputError where there is no such thing."""
    try:
        import vmas
    except ImportError as error:
        raise InputError(
            f"The task {scenario} needs the package vmas, which cannot be imported: {error}. It is an optional extra, "
            'licensed under the GPL: pip install "concord-rl[vmas]".'
        ) from error
    if isinstance(scenario, str) and ":" in scenario:
        scenario = import_dotted(scenario)
    if not isinstance(scenario, str):
        if not callable(scenario):
            raise InputError(f"A scenario of your own is a class, module:Class; got a {type(scenario).__name__}.")
        return vmas.make_env, scenario
    known = [*vmas.scenarios, *vmas.mpe_scenarios, *vmas.debug_scenarios]
    if scenario not in known:
        near = difflib.get_close_matches(scenario, known, 1)
        hint = f"Did you mean {near[0]}?" if near else f"It has {', '.join(known)}; your own are module:Class."
        raise InputError(f"VMAS has no scenario {scenario}. {hint}")
    return vmas.make_env, scenario


def allowed(options: Mapping[str, Any]) -> dict[str, Any]:
    """The user's arguments. Raises InputError for one that is not the user's."""
    refused = [name for name in options if name in OURS]
    if refused:
        hint = " Episodes are cut by env.time_limit." if "max_steps" in refused else ""
        raise InputError(f"The adapter itself sets {refused[0]} of vmas.make_env; leave it out.{hint}")
    return dict(options)


def spec_of(simulator: Any) -> EnvSpec:
    """Specification for learners; agents whose names differ in their numbers alone are of one kind."""
    names = [str(agent.name) for agent in simulator.agents]
    sizes = [flat(view).shape[1] for view in simulator.reset()]
    actions = [_action(space) for space in simulator.action_space]
    likeness = list(zip([re.sub(r"_?\d+$", "", name) for name in names], sizes, actions))
    first = [likeness.index(mine) for mine in likeness]
    return EnvSpec(
        agents=tuple(names),
        kind=tuple(sorted(set(first)).index(kind) for kind in first),
        channels=("reward",),
        observation_sizes=tuple(sizes),
        actions=tuple(actions),
        state_size=sum(sizes),
    )


def _action(space: Any) -> Discrete | Continuous:
    """From gym's space to ours, told apart by name: gym comes with VMAS alone."""
    kind = type(space).__name__
    if kind == "Discrete":
        return Discrete((int(space.n),))
    if kind == "MultiDiscrete":
        return Discrete(tuple(int(n) for n in space.nvec))
    if kind == "Box":
        return Continuous(tuple(map(float, space.low)), tuple(map(float, space.high)))
    raise InputError(f"Expected actions that are Discrete, MultiDiscrete or a Box; the scenario has {space}.")


def flat(view: Any) -> Float[Tensor, "E D"]:
    """An agent's observation, a tensor or a dict of them, as numbers side by side."""
    if isinstance(view, Mapping):
        return torch.cat([flat(part) for part in view.values()], 1)
    return view.flatten(1).float()
