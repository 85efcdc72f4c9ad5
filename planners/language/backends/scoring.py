"""Log-probabilities of texts that a causal language model did not write itself: the prompt is read once for all."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from envs.core import InputError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Reading:
    """Prompts that a model has read, Q of them, padded on the left to a length of L.

    cache: keys and values. attention: 1 where there is a token. first: log-probabilities of what comes next.
    """

    cache: Any
    attention: Int[Tensor, "Q L"]
    first: Float[Tensor, "Q V"]


def batches(rows: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Rows in order, at most so many at once."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def pad_left(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Int[Tensor, "B L"], Int[Tensor, "B L"]]:
    """Tokens of rows of all lengths, and 1 where there is one. Rows end together, so that all go on from there."""
    lengths = torch.tensor([len(row) for row in rows])
    longest = int(lengths.max())
    tokens = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows])
    attention = (torch.arange(longest) >= longest - lengths.unsqueeze(1)).long()
    return tokens.to(device), attention.to(device)


def read(model: Any, prompts: Sequence[Sequence[int]]) -> Reading:
    """The model after these prompts. Raises InputError for one that remembers otherwise than by keys and values."""
    tokens, attention = pad_left(prompts, model.device)
    output = model(
        input_ids=tokens,
        attention_mask=attention,
        position_ids=(attention.cumsum(1) - 1).clamp(min=0),
        use_cache=True,
        logits_to_keep=1,
    )
    return Reading(_shareable(output.get("past_key_values")), attention, output.logits[:, -1].float().log_softmax(-1))


def read_on(
    model: Any, reading: Reading, rows: Sequence[int], prefixes: Sequence[Sequence[int]]
) -> tuple[list[tuple[float, ...]], Float[Tensor, "G V"]]:
    """Of prefixes of completions, each as it follows the prompt of its row: log-probabilities by token, and those of
    what may come next. All are of one length."""
    index = torch.tensor(rows, device=model.device)
    given = torch.tensor(prefixes, dtype=torch.int64, device=model.device).view(len(rows), -1)
    if not given.shape[1]:
        return [()] * len(rows), reading.first[index]
    before = reading.attention[index]
    log_probs = (
        model(
            input_ids=given,
            attention_mask=torch.cat([before, torch.ones_like(given)], 1),
            position_ids=before.sum(1, keepdim=True) + torch.arange(given.shape[1], device=model.device),
            past_key_values=_of_rows(reading.cache, index),
            use_cache=True,
        )
        .logits.float()
        .log_softmax(-1)
    )
    first = reading.first[index].gather(1, given[:, :1])
    following = log_probs[:, :-1].gather(-1, given[:, 1:].unsqueeze(-1)).squeeze(-1)
    return [tuple(row) for row in torch.cat([first, following], 1).tolist()], log_probs[:, -1]


def _shareable(cache: Any) -> Any:
    """The cache, where all its layers keep keys and values by row."""
    from transformers.cache_utils import DynamicLayer

    if cache is None or not all(isinstance(layer, DynamicLayer) for layer in cache.layers):
        raise InputError(
            "Choices are scored from one reading of their prompt, and this model's memory of it cannot be shared among "
            "them: it has layers without attention. Let it complete queries instead, or take a model with attention in "
            "all layers, such as a Llama or Qwen2."
        )
    return cache


def _of_rows(cache: Any, index: Int[Tensor, " R"]) -> Any:
    """The cache of these rows, each as often as it is named; the original stays, for other rows."""
    # These layers replace their tensors and never write to them, so copies of the shells are enough.
    chosen = copy.copy(cache)
    chosen.layers = [copy.copy(layer) for layer in cache.layers]
    chosen.batch_select_indices(index)
    return chosen
