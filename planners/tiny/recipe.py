"""Training of the small language model: a teacher's plans in one world, imitated."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import torch

from envs.core import InputError, tree_map
from envs.tabular import HasTable
from envs.world import World
from marl.config.recipe import Recipe
from marl.learning.batch import Batch
from marl.learning.offline_batch import Logged
from marl.output.console import console
from marl.output.report import Metric, Report
from marl.training.environments import make_env
from marl.training.run import Run
from planners.language.backends.chat import Chat
from planners.language.backends.loading import quiet
from planners.language.backends.local import Local
from planners.language.base import Query, in_order
from planners.read.phrases import Phrasebook, require_words
from planners.tiny.config import Config, TinyConfig
from planners.tiny.imitation import Imitation, ImitationConfig, Target, text_batch
from planners.tiny.lessons import Lesson, Lessons
from planners.tiny.teacher import Teacher
from planners.tiny.tokenizer import train_tokenizer

STAGE = "lessons"
MODEL = "tiny"  # folder of the trained model in its run's
FOR_WORDS = 4000  # lessons from which the tokenizer learns
ASKED = 500  # lessons that nobody was taught, by which the model is judged
CONTEXT = 512  # tokens that the model reads, at most


class TinyRecipe(Recipe):
    """Train a small language model to plan in one world, and say how well it has learned to."""

    config = Config
    files = MappingProxyType({"the trained model": MODEL})

    def run(self, config: Config, run: Run) -> Report:
        """Train, save the model where transformers finds it, and ask it what it was not taught."""
        lessons = Lessons(teacher_of(config), run.stage_seeds(STAGE)[0])
        began = time.process_time()
        run.begin()
        model, tokenizer = train(config, run, lessons)
        folder = run.folder / MODEL
        with quiet():
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        metrics = {name: Metric.exact(value) for name, value in run.used(STAGE).items()}
        metrics |= {"parameters": Metric.exact(sum(p.numel() for p in model.parameters()))}
        metrics |= judge(folder, Lessons(lessons.teacher, run.stage_seeds("examination")[0]))
        metrics["total_cpu_seconds"] = Metric.exact(time.process_time() - began)
        return Report(config.recipe, config.seed, config.model_dump(mode="json"), metrics)


def teacher_of(config: Config) -> Teacher:
    """The teacher of a config's world. Raises InputError for one that does not describe itself, or has no table."""
    with console.status("listing the world's states"):
        world = native_world(config)
        require_words(world)
        if not isinstance(world, HasTable):
            raise InputError(
                f"The small model learns from the best play there is, found in a table of all states, and "
                f"{type(world).__name__} has none (envs.tabular.HasTable). Ask another model: model.local or "
                "model.server."
            )
        return Teacher(world, world.table(), Phrasebook(world, config.plans), config.tiny)


def native_world(config: Any) -> World[Any]:
    """The World of a config. Raises InputError for another kind of environment."""
    env = make_env(config.env, num_envs=1)
    world = getattr(env, "world", None)
    if not isinstance(world, World):
        raise InputError("Planning needs a native world, whose states can be told: set env.world.")
    return world


def train(config: Config, run: Run, lessons: Lessons) -> tuple[Any, Any]:
    """The model, taught all lessons, and its tokenizer."""
    taught = iter(lessons)
    with console.status("writing lessons"):
        known = list(islice(taught, config.tiny.lessons))
    tokenizer = train_tokenizer(texts(known[:FOR_WORDS]), config.tiny.vocabulary)
    chat = Chat(tokenizer, [])
    model = new_model(config.tiny, tokenizer)
    teach(config.tiny, run, model, chat, known)
    return model.eval(), tokenizer


class TeachingConfig(ImitationConfig, Protocol):
    """The settings that teaching needs."""

    @property
    def rows(self) -> int:
        """Lessons of an update."""

    @property
    def updates(self) -> int:
        """Steps of training."""


def teach(config: TeachingConfig, run: Run, model: Any, chat: Chat, lessons: list[Lesson], suffix: str = "") -> None:
    """Train a model on lessons. suffix: of the names of stage and seeds, where a run teaches several times."""
    batch = on_device(as_batch(lessons, chat, run.stage_seeds("answers" + suffix)[0]), run.device)
    source = Logged(batch, rows=config.rows, streams=run.streams("order" + suffix))
    run.fit(STAGE + suffix, Imitation(model, config, config.updates), source, config.updates)


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The same texts where they are learned."""
    kept = (batch.obs, batch.decision, batch.reward, batch.terminated, batch.truncated, batch.ended)
    obs, decision, reward, terminated, truncated, ended = tree_map(lambda leaf: leaf.to(device), kept)
    return Batch(1, 1, 1, obs, obs, decision, None, reward, terminated, truncated, ended)


def as_batch(lessons: list[Lesson], chat: Chat, seed: int) -> Batch:
    """Lessons in tokens; each answer is drawn as the teacher would."""
    random = np.random.default_rng(seed)
    prompts = chat.prompts([lesson.messages for lesson in lessons])
    answers, targets = [], []
    for lesson in lessons:
        paths = chat.choices(lesson.choices).tokens
        answer = paths[random.choice(len(paths), p=lesson.odds)]
        answers.append(answer)
        targets.append(next_tokens(paths, lesson.odds.tolist(), answer))
    return text_batch(prompts, answers, targets)


def next_tokens(paths: Sequence[Sequence[int]], odds: Sequence[float], answer: Sequence[int]) -> list[Target]:
    """Probabilities of each token of an answer, and of what might stand in its place, from those of whole answers."""
    targets: list[Target] = []
    agreeing = [(path, chance) for path, chance in zip(paths, odds, strict=True) if chance]
    for place, token in enumerate(answer):
        target: Target = defaultdict(float)
        for path, chance in agreeing:
            target[path[place]] += chance
        total = sum(target.values())
        targets.append({each: chance / total for each, chance in target.items()})
        agreeing = [(path, chance) for path, chance in agreeing if path[place] == token]
    return targets


def texts(lessons: list[Lesson]) -> list[str]:
    """Texts that the tokenizer shall write in few tokens: messages, and answers as they stand alone."""
    chats = ["".join(f"{message.content}\n" for message in lesson.messages) for lesson in lessons]
    return chats + [choice for lesson in lessons for choice in lesson.choices]


def new_model(config: TinyConfig, tokenizer: Any) -> Any:
    """A Llama (Touvron et al., 2023, arXiv 2302.13971) that has learned nothing."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden,
        intermediate_size=2 * config.hidden,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        initializer_range=config.hidden**-0.5,  # the usual .02 is for thousands of units
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return LlamaForCausalLM(shape)


def judge(folder: Path, lessons: Lessons) -> dict[str, Metric]:
    """Probabilities that the model gives to plans, where it was not taught.

    legal: of all legal plans together, nothing else being forbidden. divergence: of the model from the teacher, nats.
    """
    asked = list(islice(iter(lessons), ASKED))
    model = Local(str(folder))
    scores = in_order(model.score([Query(lesson.messages, choices=lesson.choices) for lesson in asked]))
    model.close()
    whole = [torch.tensor(score.whole, dtype=torch.float64) for score in scores]
    loss = [-float(log_probs @ torch.from_numpy(lesson.odds)) for log_probs, lesson in zip(whole, asked, strict=True)]
    least = [-float(np.log(lesson.odds[lesson.odds > 0]) @ lesson.odds[lesson.odds > 0]) for lesson in asked]
    return {
        "legal": Metric.mean([float(log_probs.exp().sum()) for log_probs in whole]),
        "divergence": Metric.mean(np.subtract(loss, least)),
    }


recipe = TinyRecipe()
