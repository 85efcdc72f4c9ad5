"""Particle worlds of the multi-particle environments (MPE), batched, agreeing with `mpe2` step for step.

The physics is linear except for contacts, so a step is a handful of matrix products whose constant matrices are written
once: coordinates lie on the second axis, [E, 2, entities], and "differences between pairs" is a product with a signed
incidence matrix. Integration follows mpe2: positions advance with the old velocity, then the velocity is damped by a
quarter and pushed (dt = 0.1, force 5, mass 1). Source: Lowe et al., NeurIPS 2017, and the package mpe2 1.1.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Num
from torch import Tensor

from envs.constants import Constants
from envs.core import Discrete, EnvSpec, InputError, Observation
from envs.world import Transition, World

DT, DAMPING, FORCE = 0.1, 0.25, 5.0
CONTACT_FORCE, CONTACT_MARGIN, CONTACT_DISTANCE = 100.0, 1e-3, 0.3
# The force of each choice: none, -x, +x, -y, +y.
PUSHES = torch.tensor([[0.0, 0.0], [-FORCE, 0.0], [FORCE, 0.0], [0.0, -FORCE], [0.0, FORCE]])


class SpreadState(NamedTuple):
    """Places and velocities, and the geometry that the next step, the reward and the observations all need.

    body: the x of the agents' velocities, the agents' positions and the landmarks' positions, then the y of the same.
    seen: the observations side by side. x, y, distance: between the pairs agent - agent (i < j), then agent - landmark.
    """

    body: Float[Tensor, "E columns"]
    seen: Float[Tensor, "E ND"]
    x: Float[Tensor, "E pairs"]
    y: Float[Tensor, "E pairs"]
    distance: Float[Tensor, "E pairs"]


class SimpleSpread(World[SpreadState]):
    """N agents cover N landmarks without touching one another (mpe2 `simple_spread_v3`).

    An observation is own velocity, own position, landmarks and other agents relative to oneself, and the others' silent
    messages (zeros): 6N features. Reward: (1 - local_ratio) times minus the sum over landmarks of the nearest agent's
    distance, plus local_ratio times minus the number of agents one touches. Per agent and episode of 25 steps, random
    play earns about -26.4, the best one-to-one assignment with a simple controller -8.6.
    """

    def __init__(self, agents: int = 3, local_ratio: float = 0.5, dtype: torch.dtype = torch.float32):
        if agents < 1:
            raise InputError(f"simple_spread needs at least one agent; got agents={agents}.")
        if not 0 <= local_ratio <= 1:
            raise InputError(f"local_ratio is a share between 0 and 1; got {local_ratio}.")
        n = agents
        self.spec = EnvSpec(
            agents=tuple(f"agent_{i}" for i in range(n)),
            kind=(0,) * n,
            channels=("spread",),
            observation_sizes=(6 * n,) * n,
            actions=(Discrete((5,)),) * n,
            state_size=6 * n * n,
        )
        self.agents, self.local_ratio, self.dtype = n, local_ratio, dtype
        self._constants = Constants(_SpreadConstants.build(agents, local_ratio, dtype))

    def initial_noise(self, num: int, generator: torch.Generator) -> Float[Tensor, "E 2 M"]:
        """Uniform numbers in [-1, 1) for the positions of agents and landmarks."""
        positions = torch.empty(num, 2, 2 * self.agents, device=generator.device, dtype=self.dtype)
        return positions.uniform_(-1, 1, generator=generator)

    def initial(self, noise: Float[Tensor, "E 2 M"]) -> SpreadState:
        """At rest, uniform in the square [-1, 1]²."""
        return self.at(F.pad(noise, (self.agents, 0)))

    def at(self, body: Float[Tensor, "E 2 columns_per_axis"]) -> SpreadState:
        """The state with these 3N columns: velocities, positions, landmarks."""
        return self._seen_from(body.flatten(1), self._constants.on(body.device))

    def transition(self, state: SpreadState, action: Num[Tensor, "E N 1"], noise: None) -> Transition:
        """One step of dt = 0.1."""
        n, constants = self.agents, self._constants.on(action.device)
        meetings = n * (n - 1) // 2
        distance = state.distance[:, :meetings]
        overlap = F.softplus(constants.contact - distance, beta=1 / CONTACT_MARGIN) / distance
        push = constants.pushes.index_select(0, action.flatten()).view(len(action), -1)
        forces = [state.x[:, :meetings] * overlap, state.y[:, :meetings] * overlap, push]
        state = self._seen_from(torch.cat([state.body, *forces], 1) @ constants.motion, constants)
        touching, to_landmark = state.distance.split_with_sizes((meetings, n * n), 1)
        uncovered = to_landmark.view(-1, n, n).amin(1).sum(1, keepdim=True)
        collisions = (touching < constants.contact).to(self.dtype) @ constants.collision_cost
        return Transition(state, torch.sub(collisions, uncovered, alpha=1 - self.local_ratio).unsqueeze(-1))

    def observe(self, state: SpreadState) -> Observation:
        """Everything is seen; `state` is the agents' observations side by side, as in mpe2."""
        alive = self._constants.on(state.seen.device).alive.expand(len(state.seen), -1)
        return Observation(state.seen.view(len(alive), self.agents, -1), state.seen, alive)

    def frame(self, state: SpreadState) -> Any:
        """Agents as discs, landmarks as dots."""
        from envs.drawing import draw_particles

        n = self.agents
        positions = state.body[0].view(2, -1)[:, n:].T.cpu().numpy()
        return draw_particles([(p, 0.15, "tab:blue") for p in positions[:n]], [(p, "black") for p in positions[n:]])

    def _seen_from(self, body: Float[Tensor, "E columns"], constants: _SpreadConstants) -> SpreadState:
        pairs = (constants.views.shape[1] - self.spec.state_size) // 2
        seen, x, y = (body @ constants.views).split_with_sizes((self.spec.state_size, pairs, pairs), 1)
        # The observations are handed out: a tensor of their own is cheaper to read than columns of a wider one.
        return SpreadState(body, seen.contiguous(), x, y, torch.addcmul(x * x, y, y).sqrt_())


class _SpreadConstants(NamedTuple):
    """The matrices of `SimpleSpread`. Per axis, columns of the body are velocities, agents and landmarks, N each."""

    motion: Float[Tensor, "inputs columns"]  # body, contacts' x, contacts' y, pushes -> the next body
    views: Float[Tensor, "columns outputs"]  # body -> all observations, all differences' x, all differences' y
    pushes: Float[Tensor, "5 2"]
    collision_cost: Float[Tensor, "meetings N"]
    contact: Float[Tensor, ""]  # a number would be made a tensor at every step
    alive: Bool[Tensor, " N"]

    @classmethod
    def build(cls, n: int, local_ratio: float, dtype: torch.dtype) -> _SpreadConstants:
        unit, plane = torch.eye(3 * n, dtype=dtype), torch.eye(2, dtype=dtype)
        velocity, agent, landmark = unit.split(n, 1)
        pairs = torch.combinations(torch.arange(n)) if n > 1 else torch.empty(0, 2, dtype=torch.int64)
        first, second = pairs.unbind(1)
        incidence = torch.eye(n, dtype=dtype)[first] - torch.eye(n, dtype=dtype)[second]
        meetings = agent[:, first] - agent[:, second]
        differences = torch.cat([meetings, (agent.unsqueeze(2) - landmark.unsqueeze(1)).flatten(1)], 1)
        # Positions advance with the old velocity; velocities are damped, then kicked.
        drift = unit + DT * velocity @ agent.T - DAMPING * velocity @ velocity.T
        contact = DT * CONTACT_FORCE * incidence @ velocity.T
        push = DT * torch.kron(plane, velocity.T.contiguous()).unflatten(0, (2, -1)).transpose(0, 1).flatten(0, 1)
        silence = torch.zeros(3 * n, n - 1, dtype=dtype)
        observations = [
            torch.cat([velocity[:, [i]], me, landmark - me, agent[:, :i] - me, agent[:, i + 1 :] - me, silence], 1)
            for i, me in enumerate(agent.split(1, 1))
        ]
        # x and y of a quantity stand side by side in an observation, and blockwise in the body.
        interleaved = torch.kron(torch.cat(observations, 1), plane).unflatten(0, (-1, 2)).transpose(0, 1).flatten(0, 1)
        constants = (
            torch.cat([torch.kron(plane, drift), torch.kron(plane, contact), push]),
            torch.cat([interleaved, torch.kron(plane, differences)], 1),
            PUSHES.to(dtype),
            -local_ratio * incidence.abs(),
            torch.tensor(CONTACT_DISTANCE, dtype=dtype),
            torch.ones(n, dtype=torch.bool),
        )
        return cls(*(constant.contiguous() for constant in constants))


def __getattr__(name: str) -> Any:
    """What this module held once: saved configs name it."""
    if name in ("SpeakerListener", "SpeakerListenerState"):
        from envs import speaker_listener

        return getattr(speaker_listener, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
