"""A world that describes itself and whose states can be listed, for tests of planners: two walkers who should meet."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from envs.core import Decision, Discrete, EnvSpec, Observation
from envs.tabular import Digits, Table, tabulate
from envs.world import Transition, World


class Meeting(World[Tensor]):
    """Ann and Bob on five cells earn 1 where they meet, which is the end; they begin far apart, or anywhere.

    Plans are three steps, and with them two more names of one of these, so that several plans mean one choice. wording:
    a line that each description begins with. channels: all but the first earn -1 a step.
    """

    choices = ("left", "stay", "right")

    def __init__(self, starts: str = "apart", wording: str = "Five cells.", channels: int = 1):
        self.starts, self.wording = starts, wording
        names = ("meeting", "time", "more_time")[:channels]
        self.spec = EnvSpec(("ann", "bob"), (0, 0), names, (2, 2), (Discrete((3,)),) * 2, state_size=2)

    def initial_noise(self, num: int, generator: torch.Generator) -> Tensor:
        return torch.randint(5, (num, 2), generator=generator, device=generator.device)

    def initial(self, noise: Tensor) -> Tensor:
        return noise if self.starts == "anywhere" else self.first().expand(len(noise), 2)

    def first(self) -> Tensor:
        return torch.tensor([[0, 4]])

    def transition(self, state: Tensor, action: Tensor, noise: None) -> Transition:
        state = (state + action.squeeze(-1) - 1).clamp(0, 4)
        together = (state[:, :1] == state[:, 1:]).expand(-1, 2)
        earned = [together.float(), *[-torch.ones(len(state), 2)] * (len(self.spec.channels) - 1)]
        return Transition(state, torch.stack(earned, -1), together)

    def observe(self, state: Tensor) -> Observation:
        seen = state.float()
        return Observation(seen.unsqueeze(1).expand(-1, 2, -1), seen, torch.ones_like(state, dtype=torch.bool))

    def words(self, obs: Observation, row: int, agent: int | None = None) -> str:
        ann, bob = obs.state[row].long().tolist()
        return f"{self.wording}\nAnn is at {ann}.\nBob is at {bob}."

    def plans(self, obs: Observation, row: int) -> list[list[str]]:
        return [[*self.choices, "go left", "wait"] for _ in range(2)]

    def parse(self, text: str, obs: Observation, row: int) -> Decision | str:
        told = dict(line.split(": ") for line in text.splitlines() if ": " in line)
        known = {name: number for number, name in enumerate(self.choices)} | {"go left": 0, "wait": 1}
        if set(told) != {"ann", "bob"} or not set(told.values()) <= set(known):
            return "expected a line for ann and one for bob"
        return Decision(torch.tensor([[[known[told["ann"]]], [known[told["bob"]]]]]))

    def state_of(self, code: Tensor) -> Tensor:
        return code.long()

    def digits(self, state: Tensor) -> Digits:
        return Digits(state, (5, 5))

    def table(self, **options: Any) -> Table:
        return tabulate(self, self.first(), self.digits, **options)


class Wordless(Meeting):
    """The same without a table."""

    table = None  # type: ignore[assignment]
