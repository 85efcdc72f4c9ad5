"""The small language model of a world, found in the user's cache folder, or trained into it at first use."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch

from envs.core import InputError
from marl.config.schema import EnvConfig
from marl.output.console import console
from marl.output.report import REPORT
from marl.training.run import Run
from planners.language.store import cache_folder
from planners.read.phrases import Phrasebook, Phrases, require_words
from planners.read.prompts import ask_all, ask_one
from planners.tiny.config import Config, TinyConfig
from planners.tiny.recipe import MODEL, native_world, recipe

FORMAT = 1  # raised when the same settings would train another model


def find(tiny: TinyConfig, env: EnvConfig, plans: Literal["all", "steps"]) -> Path | None:
    """The folder of the trained model; None where it was not trained yet."""
    folder = folder_of(config_of(tiny, env, plans))
    return folder / MODEL if (folder / REPORT).is_file() else None


def find_or_train(tiny: TinyConfig, env: EnvConfig, plans: Literal["all", "steps"]) -> Path:
    """The folder of the trained model. Its name is a hash of everything that the training follows from.

    Of two processes that want one, the second waits for the first; what an interrupted one has begun is gone on with.
    """
    config = config_of(tiny, env, plans)
    folder = folder_of(config)
    if not (folder / REPORT).is_file():
        with alone(folder):
            _train(config, folder)
    return folder / MODEL


def folder_of(config: Config) -> Path:
    """The folder of a training in the user's cache."""
    return cache_folder() / "tiny" / fingerprint(config)


def config_of(tiny: TinyConfig, env: EnvConfig, plans: Literal["all", "steps"]) -> Config:
    """The run that trains it: of the environment, the world alone counts."""
    if env.world is None:
        raise InputError(
            "The small model plans in native worlds, whose states can be listed; set env.world, or ask another model: "
            "model.local or model.server."
        )
    world = EnvConfig(world=env.world, args=env.args, agents=env.agents, time_limit=1)
    return Config(recipe="planners.tiny.recipe", seed=tiny.seed, device="cpu", env=world, plans=plans, tiny=tiny)


def fingerprint(config: Config) -> str:
    """A hash of the settings, and of prompts as they are worded today."""
    world = native_world(config)
    require_words(world)
    generator = torch.Generator().manual_seed(0)
    obs = world.observe(world.initial(world.initial_noise(1, generator)))
    book = Phrasebook(world, config.plans)
    start: Phrases = book.of(obs)[0]
    prompts = [ask_one(book.agents, book.agents[0], start.words, start.plans[0], ())]
    prompts.append(ask_all(book.agents, start.words, start.plans))
    said = [[message.content for message in prompt] for prompt in prompts]
    settings = config.model_dump(mode="json", include={"env": {"world", "args", "agents"}, "plans": True, "tiny": True})
    text = json.dumps([FORMAT, settings, said], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, waiting for whoever has it."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        file = folder.with_suffix(".lock").open("w")
    except OSError as error:
        raise InputError(
            f"The small language model is kept in {folder.parent}, and nothing can be written there "
            f"({error.strerror}). Set XDG_CACHE_HOME to a folder that can be written, or ask another model: "
            "model.local or model.server."
        ) from error
    with file as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            with console.status("another process trains the small language model"):
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _train(config: Config, folder: Path) -> None:
    """Train in a folder that nobody else trains in, unless it was done while waiting."""
    if (folder / REPORT).is_file():
        return
    console.print("training a small language model for this world, once; it is kept in", folder, markup=False)
    begun = (folder / "config.yaml").is_file()
    threads = torch.get_num_threads()
    try:
        report = recipe.run(config, Run.open(folder) if begun else Run.create(folder, config))
    finally:
        torch.set_num_threads(threads)  # a Run sets its own, and whoever asks has others
    report.save(folder / REPORT)
