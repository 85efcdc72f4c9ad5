"""Tokens of prompts, counted without a model that could answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from marl.config.schema import EnvConfig
from planners.language.backends.replay import Replay
from planners.language.base import Message
from planners.language.config import ModelConfig, open_scripted


@dataclass(frozen=True)
class Counter:
    """Tokens of a prompt, None where they are not known; `unknown` says why."""

    count: Callable[[Sequence[Message]], int | None]
    unknown: str = ""

    def told(self, messages: Sequence[Message]) -> str:
        """The tokens of a prompt in words."""
        tokens = self.count(messages)
        return self.unknown if tokens is None else f"{tokens:,} tokens"


def counter_of(config: ModelConfig, env: EnvConfig, plans: Literal["all", "steps"]) -> Counter:
    """A counter for the model of a config. Nothing is asked, trained or kept; of a local model the tokenizer is read.

    Raises InputError for a local model or a transcript that is not there.
    """
    if config.server is not None:
        return Counter(lambda messages: None, "tokens not counted, which the server does")
    if config.replay is not None:
        replay = Replay(Path(config.replay).expanduser())
        return Counter(replay.count_tokens, "tokens not counted, as the transcript has no such prompt")
    if config.scripted is not None:
        return Counter(open_scripted(config.scripted).count_tokens)
    if config.local is not None:
        return _by_tokenizer(config.local, config.gguf, config.revision)
    from planners.tiny.find import find

    folder = find(config.tiny, env, plans)
    if folder is None:
        return Counter(lambda messages: None, "tokens not counted, as the small model is trained at the first run only")
    return _by_tokenizer(str(folder), None, None)


def _by_tokenizer(name: str, gguf: str | None, revision: str | None) -> Counter:
    """Tokens as a local model reads them."""
    from planners.language.backends.chat import Chat
    from planners.language.backends.loading import load_tokenizer

    tokenizer: Any = load_tokenizer(name, gguf, revision)
    chat = Chat(tokenizer, [])
    return Counter(lambda messages: len(chat.prompts([messages])[0]))
