"""Returns and advantages: pure recursions over time, axis 0."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def gae(
    reward: Float[Tensor, "T *B N K"],
    value: Float[Tensor, "T *B N K"],
    next_value: Float[Tensor, "T *B N K"],
    terminated: Bool[Tensor, "T *B N"],
    truncated: Bool[Tensor, "T *B N"],
    alive: Bool[Tensor, "T *B N"],
    discount: Float[Tensor, "*P K"],
    gae_lambda: float,
) -> Float[Tensor, "T *B N K"]:
    """Generalized advantage estimates, one recursion for each agent and channel.

        δ_t = r_t + γ_k (1 - terminated_t) V(s'_t) - V(s_t)
        A_t = δ_t + γ_k λ (1 - terminated_t) (1 - truncated_t) A_{t+1}

    next_value is the value of the true successor, not of the episode that an automatic reset began; truncation stops
    the recursion and keeps the bootstrap. Slots of agents who are not alive get 0. discount: γ by channel, or by policy
    and channel, where P is the first axis after time. Source: Schulman et al., ICLR 2016
    (arXiv 1506.02438), equations 11-16.
    """
    if discount.dim() > 1:
        discount = discount.view(len(discount), *[1] * (reward.dim() - 3), -1)
    lasting = discount * (~terminated).to(reward.dtype).unsqueeze(-1)
    present = alive.to(reward.dtype).unsqueeze(-1)
    delta = torch.addcmul(reward - value, lasting, next_value) * present
    decay = lasting * (gae_lambda * (~truncated).to(reward.dtype).unsqueeze(-1) * present)
    following = torch.zeros_like(delta[0])
    backwards = []
    for now, kept in zip(reversed(delta.unbind()), reversed(decay.unbind())):
        following = torch.addcmul(now, kept, following)
        backwards.append(following)
    return torch.stack(backwards[::-1])


def discount_by_row(discount: Float[Tensor, "*P K"], rows: int) -> Float[Tensor, "*B K"]:
    """γ as it meets rewards [B,N,K] of so many policy-major rows: by channel, or by row and channel, [B,1,K]."""
    if discount.dim() == 1:
        return discount
    return discount.repeat_interleave(rows // len(discount), 0).unsqueeze(1)


def episode_sums(
    amount: Float[Tensor, "T E F"], ended: Bool[Tensor, "T E"], carry: Float[Tensor, "E F"]
) -> tuple[Float[Tensor, "T E F"], Float[Tensor, "E F"]]:
    """Sums over each episode so far, up to and including step t, and what the unfinished episodes carry onward.

    carry: the sums of the episodes under way before step 0. Where `ended`, the first result is the episode's total.
    """
    # In float64: totals are differences of running sums, right to 2^-53 of the largest one. An infinite reward leaves
    # later episodes without a number; a loop over time would not, and costs eight times as much at 16 environments.
    running = carry.double() + amount.cumsum(0, dtype=torch.float64)
    time = torch.arange(1, len(ended) + 1, device=ended.device).unsqueeze(1)
    last_end = torch.where(ended, time, 0).cummax(0).values  # steps taken when the latest episode ended, 0 if none did
    padded = torch.cat([torch.zeros_like(running[:1]), running])
    base = padded.gather(0, last_end.unsqueeze(-1).expand_as(running))
    before = torch.cat([torch.zeros_like(base[:1]), base[:-1]])
    return (running - before).to(amount.dtype), (running[-1] - base[-1]).to(carry.dtype)


def episode_age(
    ended: Bool[Tensor, "T E"], carry: Float[Tensor, " E"]
) -> tuple[Float[Tensor, "T E"], Float[Tensor, " E"]]:
    """Steps taken in the episode before step t, and the age that the unfinished episodes carry onward."""
    so_far, onward = episode_sums(torch.ones_like(ended, dtype=carry.dtype).unsqueeze(-1), ended, carry.unsqueeze(-1))
    return so_far.squeeze(-1) - 1, onward.squeeze(-1)
