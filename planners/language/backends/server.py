"""Language models behind any OpenAI-compatible server: vLLM, Ollama, llama.cpp, OpenAI itself."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from typing import Any, Literal

from envs.core import InputError
from planners.language.backends.constraint import LADDER, NONE, Constraint
from planners.language.backends.endpoint import Endpoint, RefusedError, StoppedError
from planners.language.base import Answer, Completion, Message, Query, Scores
from planners.language.encoding import well_formed

ConstraintName = Literal["auto", "structured_outputs", "json_schema", "none"]

LONGEST_TEXT = 200_000  # characters of a completion; what a server writes beyond is cut off

ODD = 3  # queries whose constraint seemed to be ignored, after which a server counts as one that ignores it

# Constraints that servers have shown to obey, queries at which none was, and their locks, by identity.
_FOUND: dict[str, Constraint] = {}
_ODD: Counter[str] = Counter()
_ASKING: dict[str, threading.Lock] = {}


@dataclass(frozen=True, slots=True)
class _Reply:
    """One answer of a server. cut: a text ended since it had become too long."""

    texts: list[str]
    cut: bool
    prompt_tokens: int
    completion_tokens: int


@dataclass(slots=True)
class _Usage:
    """Tokens of all requests that a query took."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class Server:
    """The model `name` behind `url`; `Endpoint` says how it is asked, and where the key comes from.

    concurrency: the most requests under way at once. constraint: how the server is told of a query's choices; auto
    tries in turn what servers know, goes on where one refuses or says something else than a choice, and remembers what
    worked for as long as the process lives; that nothing works it believes after ODD odd answers, since one may be a
    slip. A text that is no choice after all is given as it is, like any other, up to LONGEST_TEXT characters.

    A query takes several requests where a server gives fewer completions than asked for, and where the constraint is
    looked for; its tokens are those of all. They are what the server says: 0 where it says nothing, shared out evenly
    among several completions. Log-probabilities of completions are not asked for, and None: servers leave out the end,
    and do not agree whether a constraint counts.
    """

    scores = False

    def __init__(
        self,
        url: str,
        name: str,
        *,
        key_variable: str | None = None,
        timeout: float = 60.0,
        retries: int = 5,
        concurrency: int = 8,
        constraint: ConstraintName = "auto",
        pause: float = 1.0,
    ):
        self._endpoint = Endpoint(url, key_variable, timeout, retries, pause)
        self.name = name
        found = "" if constraint == "auto" else f":{constraint}"
        self.identity = f"server:{self._endpoint.url}:{name}{found}"
        self._ladder = LADDER if constraint == "auto" else tuple(c for c in LADDER if c.name == constraint)
        self._asking = _ASKING.setdefault(self.identity, threading.Lock())
        self._most: int | None = None  # completions that one request gives, as far as is known
        self._length = "max_tokens"
        self._pool = ThreadPoolExecutor(concurrency, thread_name_prefix="concord-server")
        self._stops: set[threading.Event] = set()

    def complete(self, queries: Sequence[Query]) -> Iterator[tuple[int, Answer]]:
        """Completions as they arrive. Where a query fails, those under way are waited for and given before it raises.

        Closing the iterator cancels what has not been sent; what is under way then is paid and lost.
        """
        stop = threading.Event()
        self._stops.add(stop)
        futures = {self._pool.submit(self._answer, query, stop): place for place, query in enumerate(queries)}
        failure: BaseException | None = None
        try:
            for future in as_completed(futures):
                error = None if future.cancelled() else future.exception()
                if error is not None:
                    failure = failure if isinstance(error, StoppedError) else failure or error
                    _cancel(futures, stop)
                elif not future.cancelled():
                    yield futures[future], future.result()
        finally:
            _cancel(futures, stop)
            self._stops.discard(stop)
        if failure is not None:
            raise failure

    def score(self, queries: Sequence[Query]) -> Iterator[tuple[int, Scores]]:
        """Raises InputError: a chat server cannot tell log-probabilities of texts that it did not write."""
        raise InputError(
            "A server cannot tell log-probabilities of given texts, which reweighing and scoring need: set "
            "model.local, or a planner that only asks for completions."
        )

    def count_tokens(self, messages: Sequence[Message]) -> int | None:
        """None: only the server's owner knows."""
        return None

    def close(self) -> None:
        """Give up what waits, and close the connections; a second call does nothing."""
        for stop in tuple(self._stops):
            stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._endpoint.close()

    def _answer(self, query: Query, stop: threading.Event) -> Answer:
        begun, usage = time.perf_counter(), _Usage()
        if query.choices:
            texts = self._chosen(query, usage, stop)
        else:
            texts, _ = self._texts(query, NONE, usage, stop)
        share, rest = divmod(usage.completion_tokens, query.n)
        completions = tuple(Completion(text, share + (place < rest)) for place, text in enumerate(texts))
        return Answer(completions, usage.prompt_tokens, time.perf_counter() - begun)

    def _chosen(self, query: Query, usage: _Usage, stop: threading.Event) -> list[str]:
        """Texts under the constraint that this server is known to obey, which the first query finds out."""
        if self.identity not in _FOUND and len(self._ladder) > 1:
            with self._asking:
                if self.identity not in _FOUND:
                    return self._explored(query, usage, stop)
        known = _FOUND.get(self.identity, self._ladder[0])
        rungs = self._ladder[self._ladder.index(known) :]
        for constraint in rungs[:-1]:
            try:
                return self._texts(query, constraint, usage, stop)[0]
            except RefusedError:
                continue  # this query only, such as one with more choices than a server takes
        return self._texts(query, rungs[-1], usage, stop)[0]

    def _explored(self, query: Query, usage: _Usage, stop: threading.Event) -> list[str]:
        """Texts under the first constraint that the server neither refuses nor ignores."""
        refused = 0
        for constraint in self._ladder[:-1]:
            try:
                texts, cut = self._texts(query, constraint, usage, stop)
            except RefusedError:
                refused += 1
                continue
            if cut or all(text in query.choices for text in texts):
                _FOUND[self.identity] = constraint
                return texts
        texts, _ = self._texts(query, self._ladder[-1], usage, stop)
        _ODD[self.identity] += 1
        if refused == len(self._ladder) - 1 or _ODD[self.identity] == ODD:
            _FOUND[self.identity] = self._ladder[-1]
        return texts

    def _texts(
        self, query: Query, constraint: Constraint, usage: _Usage, stop: threading.Event
    ) -> tuple[list[str], bool]:
        """The n texts of a query, in as many requests as it takes; true where one was cut off."""
        texts: list[str] = []
        any_cut, most, length = False, self._most or query.n, self._length
        while len(texts) < query.n:
            count = min(most, query.n - len(texts))
            body = self._body(query, constraint, count, len(texts)) | {
                length: query.max_tokens + constraint.spare_tokens
            }
            try:
                reply = self._endpoint.post(body, _read, stop)
            except RefusedError as refusal:
                if length == "max_tokens" and "max_completion_tokens" in refusal.words:
                    length = "max_completion_tokens"  # what newer models of OpenAI call it
                elif count > 1:
                    most = 1  # some servers refuse any other number
                else:
                    raise
                continue
            usage.prompt_tokens += reply.prompt_tokens
            usage.completion_tokens += reply.completion_tokens
            any_cut |= reply.cut
            texts += [self._given(constraint.text(text)) for text in reply.texts[:count]]
            most = min(most, max(1, len(reply.texts)))
        # Only now is it known that the request was refused for its number, and not for something else.
        self._length = length
        self._most = most if most < query.n else self._most
        return texts, any_cut

    def _body(self, query: Query, constraint: Constraint, count: int, given: int) -> dict[str, Any]:
        """A request. Its seed differs by attempt and by what was given before, or a server would repeat itself."""
        several = {"n": count} if count > 1 else {}
        return {
            "model": self.name,
            "messages": [asdict(message) for message in query.messages],
            "temperature": query.temperature,
            "seed": (query.seed + 1_000_003 * query.attempt + 7_919 * given) % 2**31,
            **several,
            **constraint.fields(query.choices),
        }

    def _given(self, text: str) -> str:
        return well_formed(self._endpoint.scrub(text))[:LONGEST_TEXT]


def _cancel(futures: dict[Future[Answer], int], stop: threading.Event) -> None:
    """Send nothing more, and wait for no pause."""
    stop.set()
    for future in futures:
        future.cancel()


def _read(raw: Any) -> _Reply:
    """The texts and tokens of a chat completion. Raises ValueError for anything else."""
    choices = raw.get("choices") if isinstance(raw, dict) else None
    if not isinstance(choices, list) or not choices:
        raise ValueError("no choices")
    texts, cut = [], False
    for choice in choices:
        message = choice.get("message") if isinstance(choice, dict) else None
        content = message.get("content") if isinstance(message, dict) else 0
        if not isinstance(content, str | None):
            raise ValueError("no message with a text")
        texts.append(content or "")  # a model that refuses, or only thinks, has no content: an empty text
        cut |= choice.get("finish_reason") == "length"
    usage = raw.get("usage")
    prompt, completion = (_tokens(usage, name) for name in ("prompt_tokens", "completion_tokens"))
    return _Reply(texts, cut, prompt, completion)


def _tokens(usage: Any, name: str) -> int:
    """A number of tokens; 0 where the server does not count them."""
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if type(count) is int and count >= 0 else 0
