"""A local model that scores choices no further than is open which of them is meant: faster, where nobody reads on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from planners.language.base import Answer, LanguageModel, Message, Query, Scores

if TYPE_CHECKING:
    from planners.language.backends.local import Local


class Deciding:
    """A local model whose scores end at the token that decides, which is all that `Scores.constrained` is made of."""

    scores = True

    def __init__(self, model: Local):
        self.model = model
        self.identity = f"{model.identity}:deciding"  # its scores are others than those of whole choices

    def complete(self, queries: Sequence[Query]) -> Iterator[tuple[int, Answer]]:
        """Completions, as the model writes them."""
        return self.model.complete(queries)

    def score(self, queries: Sequence[Query]) -> Iterator[tuple[int, Scores]]:
        """Log-probabilities of choices up to the token that decides; see `Local.score_deciding`."""
        return self.model.score_deciding(queries)

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of a prompt."""
        return self.model.count_tokens(messages)

    def close(self) -> None:
        """Close the model."""
        self.model.close()


def deciding(model: LanguageModel) -> LanguageModel:
    """A local model as `Deciding`; any other as it is."""
    from planners.language.backends.local import Local  # transformers take their time

    return Deciding(model) if isinstance(model, Local) else model
