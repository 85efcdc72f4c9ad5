"""Prompts of a run that plans, shown before anything is asked."""

from __future__ import annotations

import math
from typing import Any

import torch
from rich.console import Console

from envs.core import Streams
from envs.world import TensorEnv, World
from marl.learning.batch import take_rows
from marl.training.run import stage_seed
from planners.baselines import uniform_prior
from planners.language.base import Message
from planners.language.counting import counter_of
from planners.planning.beside import all_judged
from planners.planning.config import Config
from planners.read.planner import ReadPlanner
from planners.read.prompts import Refused
from planners.read.team import Open

Prompt = tuple[str, tuple[Message, ...]]  # its title, and what is asked


def show_prompts(config: Config, world: World[Any], console: Console) -> None:
    """Print the prompts of the first step with their tokens, and what else the run would do."""
    counter = counter_of(config.model, config.env, config.planner.plans)
    for title, messages in first_prompts(config, world):
        console.print(f"{title}: {counter.told(messages)}", style="bold", markup=False)
        for message in messages:
            console.print(f"{message.role}: {message.content}", markup=False)
        console.print()
    console.print(outlook(config), markup=False)


def first_prompts(config: Config, world: World[Any]) -> list[Prompt]:
    """Prompts at the start of the first episode, where each agent takes its first plan, and one after a refusal."""
    planner = ReadPlanner(world, uniform_prior(), None, config.planner)
    env = TensorEnv(world, config.evaluation.num_envs, time_limit=config.env.time_limit)
    obs = env.reset(stage_seed(config.seed, "evaluation 0"))
    planner.act(take_rows(obs, torch.tensor([0])), None, Streams([0]))
    asked = [one for one in planner.latest[0] if len(one.plans) > 1]
    prompts = [(title_of(one), planner.messages(one)) for one in asked]
    if asked and config.planner.kind == "read" and config.planner.tell and config.critic.kind != "none":
        refused = Refused(asked[0].plans[0], -0.5, "which is too low")
        title = f"{title_of(asked[0])}, after a plan was sent back"
        prompts.append((title, planner.messages(asked[0], [refused])))
    return prompts


def title_of(one: Open) -> str:
    """Whom a prompt is for."""
    after = f" after {'; '.join(one.decided)}" if one.decided else ""
    return f"prompt for {' and '.join(one.names)}{after}"


def outlook(config: Config) -> str:
    """Sentence that says all that the run would do beside these prompts."""
    kind, log, asked = config.critic.kind, config.critic.log, config.evaluation
    play = "random play" if log.play == "random" else "the model's own play"
    critics = {
        "learned": f"learns a critic from {log.steps * log.num_envs:,} steps of {play}",
        "counted": f"counts {log.steps * log.num_envs:,} steps of {play}",
        "exact": f"lists all states for the values of {play}",
        "none": "takes no critic",
    }
    does = critics[kind] if config.critic.run is None else f"takes the critic of {config.critic.run}"
    played = math.ceil(asked.episodes / asked.num_envs) * asked.num_envs
    names = [judged.name for judged in all_judged(config)]
    return f"Nothing was asked. A run {does}, then plays {played:,} episodes of {', '.join(names)}."
