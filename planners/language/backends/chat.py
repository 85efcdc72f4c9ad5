"""Chats and choices in a model's own tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from envs.core import InputError
from planners.language.base import Message

TREES_KEPT = 256  # sets of choices whose tokens are remembered; a world has few of them, and asks each many times
PROMPTS_KEPT = 50_000  # of their tokens, some kilobytes each

MARK = "mark"  # an answer by which one sees how a template closes it


@dataclass(frozen=True, slots=True, eq=False)
class Choices:
    """Texts that a model may choose from. tokens: of each, the end included. following: what may come after a prefix.
    longest: tokens of the longest. deciding: the tokens of each up to the last that another choice could differ from.

    No prefix of a choice is without a successor, its last token aside, since the end is a token like any other: that
    also tells a choice from a longer one that begins with it.
    """

    texts: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]
    following: dict[tuple[int, ...], list[int]]
    longest: int
    deciding: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, texts: tuple[str, ...], tokens: tuple[tuple[int, ...], ...]) -> Choices:
        """The tree that these choices make."""
        following: dict[tuple[int, ...], dict[int, None]] = {}
        for path in tokens:
            for place, token in enumerate(path):
                following.setdefault(path[:place], {})[token] = None
        tree = {prefix: list(successors) for prefix, successors in following.items()}
        deciding = tuple(_up_to_last_branch(path, tree) for path in tokens)
        return cls(texts, tokens, tree, max(len(path) for path in tokens), deciding)


def _up_to_last_branch(path: tuple[int, ...], tree: dict[tuple[int, ...], list[int]]) -> tuple[int, ...]:
    """A path as far as others go on from it; its first token where there is no other."""
    branches = [place for place in range(len(path)) if len(tree[path[:place]]) > 1]
    return path[: branches[-1] + 1] if branches else path[:1]


class Chat:
    """A tokenizer with its chat template.

    end: the token that closes an answer, by which choices end. ends: all tokens that stop one that is written freely:
    some models have two, the end of a turn and the end of a text.
    """

    def __init__(self, tokenizer: Any, ends: Sequence[int]):
        if not tokenizer.chat_template:
            raise InputError(
                "A model is asked through the chat template of its tokenizer, and this one has none: it is a base "
                "model, not one made for instructions. Take the instruct version, or write a template (Jinja) to "
                "chat_template.jinja in the model's folder."
            )
        self.tokenizer = tokenizer
        special = {*ends, *tokenizer.all_special_ids} - {tokenizer.unk_token_id}
        closing = [token for token in self._closing() if token in special]
        known = [*closing[:1], tokenizer.eos_token_id, *ends]
        self.ends = tuple(dict.fromkeys(token for token in known if token is not None))
        if not self.ends:
            raise InputError(
                "This model never ends an answer: neither its generation config (eos_token_id), nor its tokenizer "
                "(eos_token), nor its chat template names a token for that. Set tokenizer.eos_token."
            )
        self.end = self.ends[0]
        self._opening = self._generation_prompt()
        self._prompts: dict[tuple[Message, ...], list[int]] = {}  # who is asked again reads the same
        self.choices = lru_cache(TREES_KEPT)(self._choices)

    def prompts(self, chats: Sequence[Sequence[Message]]) -> list[list[int]]:
        """Tokens of each chat, up to where the model's answer begins."""
        told = [tuple(chat) for chat in chats]
        new = [chat for chat in dict.fromkeys(told) if chat not in self._prompts]
        if len(self._prompts) + len(new) > PROMPTS_KEPT:
            self._prompts.clear()
            new = list(dict.fromkeys(told))
        self._prompts |= zip(new, self.encode([self._render(chat, True) for chat in new]) if new else (), strict=True)
        return [self._prompts[chat] for chat in told]

    def text(self, tokens: Sequence[int]) -> str:
        """The text that these tokens write, without special ones."""
        return self.tokenizer.decode(tokens, skip_special_tokens=True)

    def _choices(self, texts: tuple[str, ...]) -> Choices:
        """Choices as they follow a prompt, checked: each has its own tokens, and these say all of it."""
        opening, *whole = self.encode([self._opening, *(self._opening + text for text in texts)])
        bare = self.encode(texts)
        paths: dict[tuple[int, ...], str] = {}
        for text, joined, alone in zip(texts, whole, bare):
            # Where the text grows into the tokens before it, the model, which is given those, meets it alone.
            tokens = joined[len(opening) :] if joined[: len(opening)] == opening else alone
            self._check_choice(text, tokens)
            path = (*tokens, self.end)
            if path in paths:
                raise InputError(
                    f"The model's tokenizer writes the choices {paths[path]!r} and {text!r} with the same tokens, so "
                    "it cannot tell which is meant. Word one of them otherwise."
                )
            paths[path] = text
        return Choices.of(texts, tuple(paths))

    def _check_choice(self, text: str, tokens: list[int]) -> None:
        """Refuse a choice that does not come out as it went in, spaces aside, which some tokenizers add or drop."""
        foreign = {self.tokenizer.unk_token_id, *self.ends} & set(tokens)
        written = self.text(tokens)
        if foreign or not tokens or "".join(written.split()) != "".join(text.split()):
            raise InputError(
                f"The model's tokenizer cannot write the choice {text!r}: {self.tokenizer.decode(tokens)!r} comes of "
                "it. Word it with what the vocabulary has, and without special tokens."
            )

    def _render(self, chat: Sequence[Message], answering: bool) -> str:
        """The template, filled in. answering: with the opening of the model's answer."""
        from jinja2 import TemplateError

        messages = [{"role": message.role, "content": message.content} for message in chat]
        try:
            return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answering)
        except TemplateError as error:
            roles = ", ".join(message.role for message in chat)
            raise InputError(
                f"The model's chat template refuses a chat of the roles {roles}: {error}. Some templates want no "
                "system message, or user and assistant in turn."
            ) from error

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of texts, many at once; the template writes all special ones that there shall be."""
        encoded = self.tokenizer(
            list(texts), add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False
        )
        return encoded["input_ids"]

    def _generation_prompt(self) -> str:
        """The end of every prompt: the template's opening of an answer, "" where it has none of its own."""
        chat = [Message("user", MARK)]
        return self._render(chat, True).removeprefix(self._render(chat, False))

    def _closing(self) -> list[int]:
        """Tokens that the template writes after an answer; none where it takes no answers."""
        try:
            text = self._render([Message("user", MARK), Message("assistant", MARK)], False)
        except InputError:
            return []
        return self.encode([text.rpartition(MARK)[2]])[0]
