"""A language model that a Python function plays: for tests, and for baselines that need none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from envs.core import InputError
from planners.language.base import Answer, Completion, Message, Query, Scores
from planners.language.encoding import well_formed

END = -1  # the token that ends a choice


class Scripted:
    """Texts by `function(query, number)`, number in {0, …, n-1}; a word is a token.

    name: tells this function from others, and its versions from one another, in the identity. log_probs(query, text):
    log-probability, in nats, of a text and nothing more; without it nothing can be scored. Equal queries should get
    equal texts: what is to vary follows from `query.seed`, `query.attempt` and the number.
    """

    def __init__(
        self,
        function: Callable[[Query, int], str],
        name: str,
        log_probs: Callable[[Query, str], float] | None = None,
    ):
        self.identity = f"scripted:{name}"
        self.scores = log_probs is not None
        self._function, self._log_probs = function, log_probs

    def complete(self, queries: Sequence[Query]) -> Iterator[tuple[int, Answer]]:
        """Completions, one query at a time and only when it is taken."""
        for number, query in enumerate(queries):
            completions = tuple(self._completion(query, each) for each in range(query.n))
            yield number, Answer(completions, self.count_tokens(query.messages), 0.0)

    def score(self, queries: Sequence[Query]) -> Iterator[tuple[int, Scores]]:
        """Log-probabilities of choices, of which each is one token and an end that is certain."""
        if self._log_probs is None:
            raise InputError(
                f"{self.identity} only writes texts: to score choices, give Scripted a function log_probs(query, text)."
            )
        return self._scored(queries, self._log_probs)

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Words of a prompt, at least one."""
        return max(1, sum(len(message.content.split()) for message in messages))

    def close(self) -> None:
        """Nothing is held."""

    def _scored(
        self, queries: Sequence[Query], log_probs: Callable[[Query, str], float]
    ) -> Iterator[tuple[int, Scores]]:
        for number, query in enumerate(queries):
            tokens = tuple((choice, END) for choice in range(len(query.choices)))
            parts = tuple((float(log_probs(query, text)), 0.0) for text in query.choices)
            yield number, Scores(tokens, parts, self.count_tokens(query.messages), 0.0)

    def _completion(self, query: Query, number: int) -> Completion:
        text = self._function(query, number)
        if not isinstance(text, str):
            raise InputError(f"The function of {self.identity} must return a text; got {type(text).__name__}.")
        text = well_formed(text)
        log_prob = None if self._log_probs is None else float(self._log_probs(query, text))
        return Completion(text, len(text.split()) + 1, log_prob)
