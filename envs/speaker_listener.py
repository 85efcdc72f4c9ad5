"""The speaker and the listener of the multi-agent particle environments, as batched physics."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Num
from torch import Tensor

from envs.constants import Constants
from envs.core import Discrete, EnvSpec, Observation
from envs.particles import DAMPING, DT, PUSHES
from envs.world import Transition, World


class SpeakerListener(World[Any]):
    """A speaker names one of three landmarks to a listener who must go there (mpe2 `simple_speaker_listener_v4`).

    The speaker sees the goal's color (3) and says one of 3 words; the listener sees its velocity, the landmarks
    relative to itself and the word said in the step before (11), and moves (5 choices). Both earn minus the squared
    distance from listener to goal. Positions are [E, 2, 5]: speaker, listener, landmarks.
    """

    def __init__(self, dtype: torch.dtype = torch.float32):
        self.spec = EnvSpec(
            agents=("speaker_0", "listener_0"),
            kind=(0, 1),
            channels=("distance",),
            observation_sizes=(3, 11),
            actions=(Discrete((3,)), Discrete((5,))),
            state_size=14,
        )
        self.dtype = dtype
        assert self.spec.legal is not None
        alive = torch.ones(2, dtype=torch.bool)
        self._constants = Constants(_SpeakerListenerConstants(PUSHES.to(dtype), self.spec.legal, alive))

    def initial_noise(self, num: int, generator: torch.Generator) -> tuple[Float[Tensor, "E 2 5"], Num[Tensor, " E"]]:
        """Uniform numbers for positions, and which landmark is the goal."""
        device = generator.device
        positions = torch.rand(num, 2, 5, generator=generator, device=device, dtype=self.dtype)
        return positions, torch.randint(3, (num,), generator=generator, device=device)

    def initial(self, noise: tuple[Float[Tensor, "E 2 5"], Num[Tensor, " E"]]) -> SpeakerListenerState:
        """At rest and silent, uniform in the square [-1, 1]²."""
        uniform, goal = noise
        still = torch.zeros_like(uniform[:, :, 0])
        return SpeakerListenerState(2 * uniform - 1, still, goal, F.pad(still, (0, 1)))

    def transition(self, state: SpeakerListenerState, action: Num[Tensor, "E 2 1"], noise: None) -> Transition:
        """One step of dt = 0.1."""
        word = F.one_hot(action[:, 0, 0].clamp(max=2), 3).to(self.dtype)
        push = self._constants.on(action.device).pushes[action[:, 1, 0]]
        positions = state.positions + DT * F.pad(state.velocity.unsqueeze(-1), (1, 3))
        velocity = (1 - DAMPING) * state.velocity + DT * push
        state = SpeakerListenerState(positions, velocity, state.goal, word)
        goal = positions[:, :, 2:].gather(2, state.goal.view(-1, 1, 1).expand(-1, 2, 1)).squeeze(-1)
        reward = -(goal - positions[:, :, 1]).square().sum(-1)
        return Transition(state, reward.view(-1, 1, 1).expand(-1, 2, 1))

    def observe(self, state: SpeakerListenerState) -> Observation:
        """The speaker's view is padded to the listener's 11 features."""
        color = 0.15 + 0.5 * F.one_hot(state.goal, 3).to(self.dtype)
        landmarks = (state.positions[:, :, 2:] - state.positions[:, :, 1:2]).transpose(1, 2).flatten(1)
        listener = torch.cat([state.velocity, landmarks, state.word], 1)
        constants = self._constants.on(color.device)
        return Observation(
            torch.stack([F.pad(color, (0, 8)), listener], 1),
            torch.cat([color, listener], 1),
            constants.alive.expand(len(color), -1),
            constants.legal.expand(len(color), -1, -1),
        )

    def frame(self, state: SpeakerListenerState) -> Any:
        """The goal and the listener in the goal's color; the speaker as a disc that wears the word it says."""
        from envs.drawing import draw_particles

        colors = ["tab:red", "tab:green", "tab:blue"]
        positions, goal = state.positions[0].T.cpu().numpy(), int(state.goal[0])
        word = colors[int(state.word[0].argmax())] if bool(state.word[0].any()) else "lightgray"
        discs = [(positions[0], 0.075, word), (positions[1], 0.075, colors[goal])]
        return draw_particles(discs, [(p, c) for p, c in zip(positions[2:], colors)])


class _SpeakerListenerConstants(NamedTuple):
    """Tensors that no step changes."""

    pushes: Float[Tensor, "5 2"]
    legal: Bool[Tensor, "2 5"]
    alive: Bool[Tensor, " 2"]


class SpeakerListenerState(NamedTuple):
    """positions of speaker, listener and landmarks; the listener's velocity; the goal's index; the word in the air."""

    positions: Float[Tensor, "E 2 5"]
    velocity: Float[Tensor, "E 2"]
    goal: Num[Tensor, " E"]
    word: Float[Tensor, "E 3"]
