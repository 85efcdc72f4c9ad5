"""Checks before training of everything that could not be evaluated after it."""

from __future__ import annotations

import torch
from torch import Tensor

from envs.core import Actor, Discrete, EnvSpec, InputError, Observation, Streams
from envs.world import Scripted
from marl.training.run import Run

TWIN_ARGS = "evaluation.twin.args"


def check_evaluation(run: Run, spec: EnvSpec) -> None:
    """Raise InputError, before training, where the twin is another task, or where no action is 0."""
    if run.config.evaluation.zero_action:
        zero_action(spec)
    twin = run.config.evaluation.twin
    if twin is None:
        return
    from marl.training.pettingzoo import pettingzoo_spec

    other = pettingzoo_spec(twin.pettingzoo, twin.args, TWIN_ARGS)
    for field in ("observation_sizes", "actions"):
        here, there = getattr(spec, field), getattr(other, field)
        if here != there:
            raise InputError(
                f"evaluation.twin is another task: its {field} are {there}, those of env are {here}. Mend its args, or "
                "set evaluation.twin=null."
            )


def zero_action(spec: EnvSpec) -> Actor:
    """An Actor whose agents do nothing: the action 0. Raises InputError where 0 may be a choice like any other."""
    space = spec.action
    if isinstance(space, Discrete):
        raise InputError(
            "evaluation.zero_action plays the action 0, and these agents have choices; set evaluation.random."
        )

    def nothing(obs: Observation, streams: Streams) -> Tensor:
        return torch.zeros(*obs.alive.shape, space.size, device=obs.alive.device)

    return Scripted(nothing)
