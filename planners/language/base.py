"""One interface to language models: whoever asks does not know where the model runs."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal, Protocol, TypeVar, runtime_checkable

from envs.core import ConcordError, InputError

T = TypeVar("T")


class ModelError(ConcordError):
    """A language model that does not answer as it should. The run ends; what was answered is kept, and can resume."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Query:
    """Everything that decides an answer, beside the model.

    choices: the texts among which the answer shall be, all different; () where anything may be said. n: how many
    completions. temperature: 0 takes the likeliest. max_tokens: of a completion. seed, attempt: which of many equal
    queries this is; one asked again with another attempt may be answered otherwise, with the same it is not.
    """

    messages: tuple[Message, ...]
    choices: tuple[str, ...] = ()
    n: int = 1
    temperature: int | float = 1.0
    max_tokens: int = 64
    seed: int = 0
    attempt: int = 0

    def __post_init__(self) -> None:
        if not self.messages:
            raise InputError("A query needs at least one message.")
        if self.n < 1 or self.max_tokens < 1 or not 0 <= self.temperature < math.inf:
            raise InputError(
                "A query asks for n >= 1 completions of max_tokens >= 1, at a finite temperature >= 0; got "
                f"n={self.n}, max_tokens={self.max_tokens}, temperature={self.temperature}."
            )
        if len(set(self.choices)) < len(self.choices) or not all(self.choices):
            raise InputError(f"The choices of a query must differ, and none be empty; got {list(self.choices)}.")
        object.__setattr__(self, "temperature", float(self.temperature))  # 0 and 0.0 are one query, with one key

    def key(self, kind: str, identity: str) -> str:
        """A number, in letters, that tells this query to this model from all others. kind: complete or score."""
        # Not by asdict, which copies every text: a run makes thousands of keys.
        values = [getattr(self, field.name) for field in fields(self)]
        text = json.dumps([kind, identity, values], ensure_ascii=True, separators=(",", ":"), default=_plain)
        return hashlib.sha256(text.encode()).hexdigest()


def _plain(message: Message) -> list[str]:
    return [message.role, message.content]


@dataclass(frozen=True, slots=True)
class Completion:
    """A text that a model wrote.

    tokens: how many it wrote, the end included. log_prob: of these, in nats, under the model without constraint at
    temperature 1; None where the model does not say.
    """

    text: str
    tokens: int
    log_prob: float | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """The n completions of a query; the tokens of its prompt, and the seconds that it took.

    cached: nothing was asked, since the same query had been answered before.
    """

    completions: tuple[Completion, ...]
    prompt_tokens: int
    seconds: float
    cached: bool = False

    @property
    def tokens(self) -> int:
        """Tokens written."""
        return sum(completion.tokens for completion in self.completions)


@dataclass(frozen=True, slots=True)
class Scores:
    """Log-probabilities of a query's choices as its completion, in nats, under the model without constraint.

    tokens, token_log_probs: of each choice, by token; the last token is the end of the completion.
    """

    tokens: tuple[tuple[int, ...], ...]
    token_log_probs: tuple[tuple[float, ...], ...]
    prompt_tokens: int
    seconds: float
    cached: bool = False

    @property
    def whole(self) -> tuple[float, ...]:
        """Log-probability of each choice and nothing more, the end included."""
        return tuple(math.fsum(parts) for parts in self.token_log_probs)

    @property
    def per_token(self) -> tuple[float, ...]:
        """The mean over the tokens of each choice, its end left out (TWOSOME, Tan et al., ICLR 2024, eq. 4)."""
        return tuple(math.fsum(parts[:-1]) / max(1, len(parts) - 1) for parts in self.token_log_probs)

    def among(self, choices: Sequence[int]) -> Scores:
        """The same of these choices alone."""
        tokens, log_probs = self.tokens, self.token_log_probs
        return replace(
            self, tokens=tuple(tokens[n] for n in choices), token_log_probs=tuple(log_probs[n] for n in choices)
        )

    def constrained(self, temperature: int | float = 1.0) -> tuple[float, ...]:
        """Log-probability that each choice is drawn where a model may write nothing but the choices.

        At every token the model's distribution, at this temperature, is renormalized over the tokens with which some
        choice goes on. At temperature 0 the likeliest goes on, of equal ones the first.
        """
        following: dict[tuple[int, ...], dict[int, float]] = {}
        for path, parts in zip(self.tokens, self.token_log_probs, strict=True):
            for place, token in enumerate(path):
                following.setdefault(path[:place], {})[token] = parts[place]
        shares = {before: _log_shares(after, temperature) for before, after in following.items()}
        return tuple(math.fsum(shares[path[:n]][token] for n, token in enumerate(path)) for path in self.tokens)


def _log_shares(following: dict[int, float], temperature: int | float) -> dict[int, float]:
    """Log of the share of each token among those that may follow."""
    most = max(following.values())
    if temperature == 0:
        first = next(token for token, x in following.items() if x == most)
        return {token: 0.0 if token == first else -math.inf for token in following}
    if most == -math.inf:
        return dict.fromkeys(following, -math.log(len(following)))
    total = math.log(math.fsum(math.exp((x - most) / temperature) for x in following.values()))
    return {token: (x - most) / temperature - total for token, x in following.items()}


@runtime_checkable
class LanguageModel(Protocol):
    """A language model. Answers come in whatever order they are ready, each with the number of its query.

    identity: the backend, the model and its revision; two models of one identity give the same answers. scores: it can
    tell log-probabilities of texts that it did not write.
    """

    identity: str
    scores: bool

    def complete(self, queries: Sequence[Query]) -> Iterator[tuple[int, Answer]]:
        """Completions. What is not taken from the iterator need not have been asked."""

    def score(self, queries: Sequence[Query]) -> Iterator[tuple[int, Scores]]:
        """Log-probabilities of each query's choices. Raises InputError for a model that cannot tell them."""

    def count_tokens(self, messages: Sequence[Message]) -> int | None:
        """Tokens of a prompt, without asking anything; None where only the model's owner knows."""

    def close(self) -> None:
        """Free what the model holds; a second call does nothing."""


def in_order(answers: Iterable[tuple[int, T]]) -> list[T]:
    """All answers, in the order of their queries."""
    return [answer for _, answer in sorted(answers, key=lambda pair: pair[0])]
