"""Two walkers who earn something once, where they meet: a world of nine states that describes itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from envs.core import Decision, Discrete, EnvSpec, Observation
from envs.tabular import Digits, Table, tabulate
from envs.world import Transition, World
from planners.tiny.config import TinyConfig
from planners.tiny.recipe import new_model
from planners.tiny.tokenizer import train_tokenizer

PRIZE = 3.0


class FirstMeeting(World[Tensor]):
    """Three cells in a row; the walkers begin at the ends, and whoever stands beside the other earns 3, the end."""

    choices = ("left", "stay", "right")
    spec = EnvSpec(("ann", "bob"), (0, 0), ("meeting",), (2, 2), (Discrete((3,)),) * 2, state_size=2, horizon=None)

    def initial_noise(self, num: int, generator: torch.Generator) -> Tensor:
        return torch.zeros(num, 1)

    def initial(self, noise: Tensor) -> Tensor:
        return torch.tensor([0, 2]).expand(len(noise), 2).clone()

    def transition(self, state: Tensor, action: Tensor, noise: Any) -> Transition:
        after = (state + action.squeeze(-1) - 1).clamp(0, 2)
        met = (after[:, :1] == after[:, 1:]).expand(-1, 2)
        return Transition(after, PRIZE * met.float().unsqueeze(-1), met)

    def observe(self, state: Tensor) -> Observation:
        seen = state.float()
        return Observation(seen.unsqueeze(1).expand(-1, 2, -1), seen, torch.ones_like(state, dtype=torch.bool))

    def words(self, obs: Observation, row: int, agent: int | None = None) -> str:
        ann, bob = obs.state[row].long().tolist()
        return f"Ann is at {ann}.\nBob is at {bob}."

    def plans(self, obs: Observation, row: int) -> list[list[str]]:
        return [list(self.choices), list(self.choices)]

    def parse(self, text: str, obs: Observation, row: int) -> Decision | str:
        told = dict(line.split(": ") for line in text.splitlines())
        return Decision(torch.tensor([[[self.choices.index(told["ann"])], [self.choices.index(told["bob"])]]]))

    def state_of(self, code: Tensor) -> Tensor:
        return code.long()

    def digits(self, state: Tensor) -> Digits:
        return Digits(state, (3, 3))

    def table(self, **options: Any) -> Table:
        return tabulate(self, torch.tensor([[0, 2]]), self.digits, **options)


def save_small_model(folder: Path, seed: int = 0) -> None:
    """A random model, with a tokenizer that writes each step as one token."""
    texts = [f"Ann is at {place}.\nBob is at {place}.\n- left\n- stay\n- right\n" for place in range(3)] * 9
    tokenizer = train_tokenizer([*texts, *["left", "stay", "right"] * 9], 400)
    new_model(TinyConfig(hidden=16, layers=1, seed=seed), tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
