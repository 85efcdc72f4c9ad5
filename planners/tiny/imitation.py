"""Imitation of answers by a causal language model of transformers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from envs.core import Decision, Observation
from marl.learning.batch import Batch
from marl.learning.learner import Learner, Progress, Stateful
from marl.learning.optimizers import Stacked, build_optimizer

LEAST = 0.01  # of the first learning rate


@runtime_checkable
class ImitationConfig(Protocol):
    """The settings that imitation needs."""

    @property
    def learning_rate(self) -> float:
        """Of Adam, at first."""

    @property
    def max_grad_norm(self) -> float:
        """The largest gradient norm."""


Target = dict[int, float]  # probabilities of what may be the next token


def text_batch(
    prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], targets: Sequence[Sequence[Target]]
) -> Batch:
    """Prompts, answers and the probabilities of each of the answers' tokens, as a batch of one agent.

    It observes the text, its actions are the answer. obs.agent [B,1,L]: tokens, 0 beyond the text; obs.state [B,2]: how
    many are the prompt's, and how many the answer's; decision.latent: tokens that might be said [B,T,X] and their
    probabilities, 0 where there is none.
    """
    whole = [torch.tensor([*prompt, *answer]) for prompt, answer in zip(prompts, answers, strict=True)]
    tokens = pad_sequence(whole, batch_first=True)
    lengths = torch.tensor([[len(prompt), len(answer)] for prompt, answer in zip(prompts, answers)])
    alive = torch.ones(len(tokens), 1, dtype=torch.bool)
    obs = Observation(tokens.float().unsqueeze(1), lengths.float(), alive)
    said = pad_sequence([torch.tensor(answer) for answer in answers], batch_first=True)
    return Batch(
        policies=1,
        steps=1,
        segment=1,
        obs=obs,
        final_obs=obs,
        decision=Decision(said.unsqueeze(1), latent=_side_by_side(targets)),
        memory=None,
        reward=torch.zeros(len(tokens), 1, 1),
        terminated=alive,
        truncated=~alive,
        ended=alive[:, 0],
    )


def _side_by_side(targets: Sequence[Sequence[Target]]) -> tuple[Int[Tensor, "B T X"], Float[Tensor, "B T X"]]:
    """Tokens and their probabilities in rows of one length."""
    longest = max(len(target) for target in targets)
    widest = max(len(each) for target in targets for each in target)
    tokens = torch.zeros(len(targets), longest, widest, dtype=torch.int64)
    odds = torch.zeros(len(targets), longest, widest)
    for row, target in enumerate(targets):
        for place, each in enumerate(target):
            tokens[row, place, : len(each)] = torch.tensor(list(each))
            odds[row, place, : len(each)] = torch.tensor(list(each.values()))
    return tokens, odds


class Imitation(Learner):
    """Cross-entropy of what a causal language model says to what it should say, with all probabilities of the latter.

        loss = - mean over tokens of answers of Σ_x p(x | all before it) log π(x | all before it)

    By Adam, whose rate falls to a hundredth along half a cosine (Loshchilov and Hutter, ICLR 2017, arXiv 1608.03983).
    Where p is known whole it teaches more than one answer drawn from it (Hinton et al., 2015, arXiv 1503.02531). model:
    of transformers. Batches are those of `text_batch`.
    """

    def __init__(self, model: Any, config: ImitationConfig, updates: int):
        self.model, self.config = model.train(), config
        self.progress = Progress(updates)
        self.optimizer = build_optimizer(config, Stacked(model.parameters(), 1))

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step."""
        self.progress.advance()
        fade = 0.5 * (1 + math.cos(math.pi * self.progress.share))
        self.optimizer.learning_rate = self.config.learning_rate * max(LEAST, fade)
        loss = self.loss(batch)
        self.optimizer.descend(loss)
        return {"cross_entropy": loss.detach().view(1)}

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """Mean cross-entropy of a said token, in nats."""
        prompt, answer = batch.obs.state.long().unbind(1)
        text = batch.obs.agent[:, 0, : int((prompt + answer).max())].long()
        # Text to the right of a place is not seen there, so that no mask is needed.
        hidden = self.model.model(input_ids=text).last_hidden_state
        tokens, odds = batch.decision.latent
        place = torch.arange(tokens.shape[1], device=text.device)
        row, number = (place < answer.unsqueeze(1)).nonzero(as_tuple=True)
        logits = self.model.lm_head(hidden[row, prompt[row] - 1 + number])  # of nothing but what is said
        log_prob = logits.log_softmax(-1).gather(1, tokens[row, number])
        return -(odds[row, number] * log_prob).sum(-1).mean()

    def parts(self) -> dict[str, Stateful | None]:
        """The model, its optimizer and the place in training."""
        return {"model": self.model, "optimizer": self.optimizer, "progress": self.progress}
