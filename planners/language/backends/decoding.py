"""Random choice of the next token, by each completion's own random numbers, among what may be said."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from planners.language.backends.chat import Choices
from planners.language.base import Query

HOTTEST = 1e30  # float32 holds no more once the noise is multiplied; every token is as likely long before


def generator_of(query: Query, number: int) -> np.random.Generator:
    """Random numbers of one completion of a query, fixed by seed, attempt, messages and the completion's number."""
    messages = [[message.role, message.content] for message in query.messages]
    text = json.dumps([query.seed, query.attempt, number, messages])
    digest = hashlib.sha256(text.encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


class Draw:
    """Scores whose argmax is a draw: a processor of logits for greedy `generate`, and a record of log-probabilities.

    To each logit z is added T g, with temperature T and g = -log e, e exponential of rate 1. Then argmax (z + T g) is
    distributed as softmax(z / T) over the tokens that are allowed (Gumbel-max; Maddison et al., NeurIPS 2014),
    and at T = 0 it is the likeliest. Each row draws from its own generator, so that its answer does not hang on its
    neighbors in the batch.

    Transformers' own `prefix_allowed_tokens_fn` makes the same constraint, but what comes after it no longer sees the
    model's own logits; `generate` would have to keep those of every step, gigabytes with a large vocabulary.
    """

    def __init__(
        self,
        generators: Sequence[np.random.Generator],
        temperatures: Sequence[int | float],
        choices: Sequence[Choices | None],
        prompt_length: int,
        end: int,
    ):
        self.generators, self.choices = generators, choices
        self.temperatures = np.minimum(np.asarray(temperatures, float), HOTTEST)
        self.prompt_length, self.end = prompt_length, end
        self.free = [row for row, among in enumerate(choices) if among is None]
        self.log_probs: list[Float[Tensor, " B"]] = []

    def __call__(self, input_ids: Int[Tensor, "B L"], scores: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
        """Scores to take the argmax of. Records the log-probability that the model gave to what it picks."""
        drawn = torch.full_like(scores, -torch.inf)
        written = input_ids[:, self.prompt_length :].tolist()
        allowed = [self.allowed(row, tuple(tokens)) for row, tokens in enumerate(written)]
        rows = [row for row, tokens in enumerate(allowed) for _ in tokens]
        columns = [token for tokens in allowed for token in tokens]
        # What a model rules out stays possible where nothing else is allowed.
        possible = scores[rows, columns].clamp(min=torch.finfo(scores.dtype).min)
        drawn[rows, columns] = possible + self._noise([len(tokens) for tokens in allowed]).to(scores.device)
        if self.free:
            words = scores.shape[1]
            noise = self._noise([words if among is None else 0 for among in self.choices])
            drawn[self.free] = scores[self.free] + noise.view(-1, words).to(scores.device)
        picked = drawn.argmax(-1, keepdim=True)
        log_prob = scores.gather(-1, picked) - scores.logsumexp(-1, keepdim=True)
        self.log_probs.append(log_prob.squeeze(-1))
        return drawn

    def allowed(self, row: int, written: tuple[int, ...]) -> list[int]:
        """Tokens with which a row may go on, at least one; a finished row repeats its end. A free row names none."""
        choices = self.choices[row]
        if choices is None:
            return []
        if written and written[-1] == self.end:
            return [self.end]
        return choices.following[written]

    def _noise(self, counts: Sequence[int]) -> Float[Tensor, " X"]:
        """T g, so many of each row, one row after the other."""
        drawn = [generator.standard_exponential(count) for generator, count in zip(self.generators, counts)]
        exponential = np.concatenate(drawn).clip(min=np.finfo(float).tiny)  # log 0 is nothing to multiply by T = 0
        return torch.from_numpy(np.repeat(self.temperatures, counts) * -np.log(exponential)).float()
