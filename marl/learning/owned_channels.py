"""Policies of one batch that learn from different reward channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from envs.core import EnvSpec, InputError
from marl.learning.batch import Batch
from marl.learning.learner import Learner, Stateful


@final
class OwnedChannels(Learner):
    """Shows each policy the rewards that it owns, and no others: the first in a `Chain`, before what learns from them.

    owned: for each of P policies the numbers of its K' channels, as many for each. What follows meets rewards [B,N,K'],
    so that it needs P·K' critics (built from `spec`) where P·K would learn what nobody reads. A discount by channel,
    [K], is `discount[owned]` to it, [P,K'].

    Raises InputError for policies that own nothing, or not equally many channels.
    """

    def __init__(self, owned: Sequence[Sequence[int]], device: torch.device | str = "cpu"):
        sizes = sorted({len(channels) for channels in owned})
        if len(sizes) != 1 or sizes[0] == 0 or any(number < 0 for channels in owned for number in channels):
            raise InputError(
                "Each policy owns equally many reward channels, one at least, by their numbers from 0; got "
                f"{[list(channels) for channels in owned]}."
            )
        self.owned = torch.tensor(owned, device=device)
        self._least = 1 + max(max(channels) for channels in owned)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Nothing to learn."""
        return {}

    def parts(self) -> Mapping[str, Stateful | None]:
        """Nothing to save."""
        return {}

    def relabel(self, batch: Batch) -> Batch:
        """The batch with each policy's own rewards [B,N,K'], and an outcome that tells of these.

        Raises InputError for a batch of another number of policies, or of fewer channels than are owned.
        """
        channels = batch.reward.shape[-1]
        if len(self.owned) != batch.policies or channels < self._least:
            raise InputError(
                f"Channels of {len(self.owned)} policies are owned, {self.owned.tolist()}; the batch has "
                f"{batch.policies} policies and {channels} channels, numbered from 0."
            )
        outcome = batch.outcome
        if outcome is not None:
            own, total = self._own(outcome.discounted), self._own(outcome.total)
            outcome = replace(outcome, discounted=own, total=total, channels=self._names())
        return replace(batch, reward=self._own(batch.reward), outcome=outcome)

    def spec(self, spec: EnvSpec) -> EnvSpec:
        """A spec with K' channels, from which critics are built."""
        return replace(spec, channels=self._names())

    def _names(self) -> tuple[str, ...]:
        return tuple(f"own_{place}" for place in range(self.owned.shape[1]))

    def _own(self, x: Float[Tensor, "B *X K"]) -> Float[Tensor, "B *X own"]:
        """Of the last axis what each row's policy owns; B is policy-major."""
        by_policy = x.unflatten(0, (len(self.owned), -1))
        index = self.owned.view(len(self.owned), *[1] * (by_policy.dim() - 2), -1)
        return by_policy.gather(-1, index.expand(*by_policy.shape[:-1], -1)).flatten(0, 1)
