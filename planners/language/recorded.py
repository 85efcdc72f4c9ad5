"""A language model whose answers are kept, counted and paid from a budget."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import Field

from envs.core import ConcordError, InputError
from marl.config.schema import Section
from planners.language.base import Answer, LanguageModel, Message, ModelError, Query, Scores
from planners.language.encoding import Kind
from planners.language.store import IN_MEMORY, Spent, Store
from planners.language.transcript import Exchange, Transcript

KEPT = 100_000  # answers in memory, some kilobytes each
TEMPLATE = 16  # tokens, at most, that a chat template puts around a message


class Budget(Section):
    """The most that a run may ask for; null sets no limit, and 0 asks nothing: only the cache answers."""

    queries: int | None = Field(None, ge=0, description="queries that a model answers; 0 for the cache alone")
    tokens: int | None = Field(None, ge=0, description="tokens read and written; 0 for the cache alone")
    price: float | None = Field(
        None, ge=0, description="in the currency of prices, which it needs; 0 for the cache alone"
    )


class Prices(Section):
    """Prices of a model, in any one currency."""

    prompt: float = Field(0.0, ge=0, description="of a million tokens read")
    completion: float = Field(0.0, ge=0, description="of a million tokens written")

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Price of so many tokens."""
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6


class BudgetSpent(ConcordError):  # noqa: N818 - an end that was planned, and no error
    """The budget allows no further query. All that was answered is kept, so the run can be reported, or resumed."""


@dataclass(frozen=True, slots=True)
class _Asking:
    """One of the two things that a model can be asked: its name, how to ask, and what it has answered so far.

    recalled: answers that an interrupted run had written down, as they were then, until they are asked for again.
    """

    kind: Kind
    ask: Callable[[Sequence[Query]], Iterator[tuple[int, Any]]]
    known: dict[Query, Any] = field(default_factory=dict)
    recalled: dict[Query, Any] = field(default_factory=dict)


class Recorded:
    """A model that is asked each query once: its answers are kept in `store`, and what they cost is counted there.

    Answers that are known come first, with `cached` set, then the model's as they arrive, each kept before it is given;
    of equal queries in one call the first is asked. The budget is the run's, over all its processes. Tokens and price
    are known only after an answer, so no more queries are sent at once than certainly fit; what a server counts beyond
    a token a byte, or asks twice, may pass the limit once. When the next query does not fit, all that does is answered,
    and BudgetSpent raised after it.

    transcript: a file to which each exchange is added; one that an interrupted run began is continued. Its answers are
    not asked again, cache or no cache, and are `cached` as they were then, so that counts come out the same.
    """

    def __init__(
        self,
        model: LanguageModel,
        store: Store,
        budget: Budget | None = None,
        prices: Prices | None = None,
        transcript: Path | None = None,
    ):
        self.identity, self.scores = model.identity, model.scores
        self.model, self.store = model, store
        self.budget, self.prices = budget or Budget(), prices or Prices()
        if self.budget.price is not None and not self.prices.prompt + self.prices.completion:
            raise InputError(
                "A budget of price needs prices above 0: set model.prices, or model.budget.queries instead."
            )
        self._completing = _Asking("complete", model.complete)
        self._scoring = _Asking("score", model.score)
        self._cached = 0
        self._transcript = Transcript(transcript, model.identity, model.scores) if transcript else None
        self._transcribed: set[str] = set()  # keys of what stands in the transcript, memory or no memory
        if self._transcript:
            self._recall(self._transcript.earlier)

    def complete(self, queries: Sequence[Query]) -> Iterator[tuple[int, Answer]]:
        """Completions, known ones first. Raises BudgetSpent after the last that the budget allows."""
        return self._answers(self._completing, queries)

    def score(self, queries: Sequence[Query]) -> Iterator[tuple[int, Scores]]:
        """Log-probabilities of choices, known ones first. Raises BudgetSpent after the last that the budget allows."""
        if not self.scores:
            self.model.score(queries)  # says why it cannot
            raise InputError(f"{self.identity} cannot tell log-probabilities of texts.")
        return self._answers(self._scoring, queries)

    def count_tokens(self, messages: Sequence[Message]) -> int | None:
        """Tokens of a prompt, without asking anything; None where only the model's owner knows."""
        return self.model.count_tokens(messages)

    def spent(self) -> Spent:
        """Cost of the run so far; `cached` counts this process alone."""
        return replace(self.store.spent(), cached=self._cached)

    def transcribed(self, path: Path) -> Recorded:
        """The same model, store and budget, all of whose exchanges from now on are written to a file.

        What was answered before is known, and written when it is asked for. Either may close what both share.
        """
        return Recorded(self.model, self.store, self.budget, self.prices, path)

    def close(self) -> None:
        """Close the model, the cache and the transcript; a second call does nothing."""
        self.model.close()
        self.store.close()
        if self._transcript:
            self._transcript.close()

    def _answers(self, asking: _Asking, queries: Sequence[Query]) -> Iterator[tuple[int, Any]]:
        places: dict[Query, list[int]] = {}
        for place, query in enumerate(queries):
            places.setdefault(query, []).append(place)
        missing: list[Query] = []
        keys: dict[Query, str] = {}  # making one takes longer than all else that a known query takes
        for query, where in places.items():
            known = asking.recalled.pop(query, None) or asking.known.get(query)
            if known is None:
                keys[query] = query.key(asking.kind, self.identity)
                known = self._found(asking, query, keys[query])
            if known is None:
                missing.append(query)
                continue
            first, *others = where
            self._cached += known.cached + len(others)
            yield first, known
            for place in others:
                yield place, replace(known, cached=True)
        while missing:
            sent = missing[: self._affordable(asking.kind, missing)]
            for query, answer in self._asked(asking, sent, keys):
                first, *others = places[query]
                self._cached += len(others)
                yield first, answer
                for place in others:
                    yield place, replace(answer, cached=True)
            missing = missing[len(sent) :]

    def _found(self, asking: _Asking, query: Query, key: str) -> Any:
        """The answer in the store, now in memory too; None where there is none."""
        found = self.store.find(asking.kind, key)
        if found is not None:
            self._remember(asking, query, key, found)
        return found

    def _asked(self, asking: _Asking, sent: Sequence[Query], keys: dict[Query, str]) -> Iterator[tuple[Query, Any]]:
        """The model's answers, each kept and paid before the next is awaited."""
        open_queries = set(sent)
        answers = asking.ask(sent)
        # A generator is closed with us, so that a model stops asking where nobody listens any more.
        with closing(answers) if isinstance(answers, Generator) else nullcontext():
            for number, answer in answers:
                query = sent[number]
                open_queries.remove(query)
                kept = self._keep(asking, query, keys[query], answer)
                self._cached += answer.cached
                yield query, kept
                self._check_counted(answer)
        if open_queries:
            raise ModelError(f"{self.identity} left {len(open_queries)} of {len(sent)} queries without an answer.")

    def _keep(self, asking: _Asking, query: Query, key: str, answer: Any) -> Any:
        """Write the answer and its cost, at once; a replayed one that cost nothing then costs nothing now."""
        cost = Spent() if answer.cached else self._cost(asking.kind, answer)
        kept = self.store.keep(asking.kind, key, answer, cost)
        self._remember(asking, query, key, kept)
        return kept

    def _remember(self, asking: _Asking, query: Query, key: str, answer: Any) -> None:
        if len(asking.known) >= KEPT:
            asking.known.clear()  # the store has them all
        asking.known[query] = replace(answer, cached=True)
        if self._transcript and key not in self._transcribed:
            self._transcribed.add(key)
            self._transcript.add(Exchange(asking.kind, query, answer))

    def _recall(self, exchanges: Sequence[Exchange]) -> None:
        """Take over what an interrupted run had written down; where no file kept the answers, their cost too."""
        for exchange in exchanges:
            asking = self._completing if exchange.kind == "complete" else self._scoring
            asking.known[exchange.query] = replace(exchange.answer, cached=True)
            asking.recalled[exchange.query] = exchange.answer
            key = exchange.query.key(exchange.kind, self.identity)
            self._transcribed.add(key)
            if self.store.path == IN_MEMORY and not exchange.answer.cached:
                cost = self._cost(exchange.kind, exchange.answer)
                self.store.keep(exchange.kind, key, exchange.answer, cost)

    def _cost(self, kind: Kind, answer: Any) -> Spent:
        written = answer.tokens if kind == "complete" else 0
        price = self.prices.of(answer.prompt_tokens, written)
        return Spent(1, 0, answer.prompt_tokens, written, answer.seconds, price)

    def _check_counted(self, answer: Any) -> None:
        """Refuse a limit that cannot be kept: every prompt has tokens, so 0 means that nobody counted them."""
        if answer.prompt_tokens == 0 and (self.budget.tokens is not None or self.budget.price is not None):
            raise InputError(
                f"{self.identity} does not say how many tokens it read and wrote, so model.budget.tokens and .price "
                "cannot be kept. Set model.budget.queries instead."
            )

    def _affordable(self, kind: Kind, missing: Sequence[Query]) -> int:
        """The number of queries, from the first on, that certainly fit into the budget. Raises BudgetSpent for none."""
        spent, budget = self.spent(), self.budget
        most = len(missing) if budget.queries is None else min(len(missing), budget.queries - spent.queries)
        count = max(0, most)
        if budget.tokens is not None or budget.price is not None:
            tokens, price = spent.tokens, spent.price
            for number, query in enumerate(missing[:count]):
                prompt, written = self._at_most(kind, query)
                tokens += prompt + written
                price += self.prices.of(prompt, written)
                fits = budget.tokens is None or tokens <= budget.tokens
                if not fits or (budget.price is not None and price > budget.price):
                    count = number
                    break
        if count == 0:
            raise BudgetSpent(self._refusal(spent, len(missing)))
        return count

    def _at_most(self, kind: Kind, query: Query) -> tuple[int, int]:
        """Tokens that an answer reads and writes at most; where the model cannot count them, a byte is one."""
        counted = self.count_tokens(query.messages)
        texts = [message.content for message in query.messages]
        prompt = _bytes(texts) + TEMPLATE * (len(texts) + 1) if counted is None else counted
        # Choices are read where they are scored, and by servers that are told of them.
        prompt += _bytes(query.choices) + len(query.choices)
        return prompt, query.n * query.max_tokens if kind == "complete" else 0

    def _refusal(self, spent: Spent, left: int) -> str:
        limits = {name: value for name, value in self.budget if value is not None}
        listed = " and ".join(f"model.budget.{name}={value}" for name, value in limits.items())
        missing = f"{_queries(left)} {'was' if left == 1 else 'were'}"
        if 0 in limits.values():
            return (
                f"{listed} answers from the cache alone, and {missing} not in it. Expected a run that was "
                "asked before, with the same config, seed and cache; otherwise raise the budget, or set it to null."
            )
        return (
            f"The budget is spent: {listed} has no room for another query, after {_queries(spent.queries)}, "
            f"{spent.tokens} tokens and a price of {spent.price:.4g}; {missing} not asked. What was answered "
            "is kept: raise the budget and resume the run, or let it ask less."
        )


def _queries(count: int) -> str:
    return "1 query" if count == 1 else f"{count} queries"


def _bytes(texts: Sequence[str]) -> int:
    return sum(len(text.encode("utf-8", "replace")) for text in texts)
