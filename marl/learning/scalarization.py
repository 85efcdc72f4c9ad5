"""Scalarizations turn the advantages of K channels and N agents into one number for each agent, then each decider."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, final

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from envs.core import Continuous, Discrete, InputError, Observation, import_dotted
from marl.config.schema import Section
from marl.learning.batch import Batch
from marl.learning.learner import Progress
from marl.learning.losses import normalize_by_policy


class AdvantageConfig(Section):
    """Configuration of the scalarization: advantages of all reward channels and agents to one for each agent."""

    kind: str = Field(
        "own",
        description="own: each agent's own advantage; team: the living team's mean; normalized: own, each channel in "
        "units of its deviation; or a class by dotted path, module:Class",
    )
    weights: tuple[float, ...] = Field(
        (), description="what each reward channel counts, at first; empty: each counts 1"
    )
    weights_end: tuple[float, ...] | None = Field(
        None, description="at the end of training, where they get in a straight line; null keeps them"
    )
    args: dict[str, Any] = Field(default_factory=dict, description="for a class of your own to read")


NO_WEIGHTS = AdvantageConfig()


class TeamAdvantageConfig(AdvantageConfig):
    """The same, where the whole team answers for what it earns."""

    kind: str = Field(
        "team",
        description="team: the living team's mean advantage; own: each agent's own; normalized: own, each channel in "
        "units of its deviation; or a class by dotted path, module:Class",
    )


class Scalarization(ABC):
    """(advantage [B,N,K], batch) -> [B,N]. Abstract: a subclass defines `__call__`, and its state if it has one.

    A config names one of your own by dotted path in `advantage.kind`. It is made by

        MyScalarization(channels, config, policies=P, device=device, progress=progress)

    with the names of the K reward channels, the section `advantage`, how many policies are trained at once (rows are
    policy-major) and the learner's clock, which the learner itself saves. A state is a tree of tensors, policy-major
    on their first axis, so that seeds trained as one can be taken apart.

    Raises InputError for weights that are not one for each channel.
    """

    def __init__(
        self,
        channels: tuple[str, ...],
        config: AdvantageConfig = NO_WEIGHTS,
        *,
        policies: int = 1,
        device: torch.device | str = "cpu",
        progress: Progress | None = None,
    ):
        self.channels, self.config, self.policies, self.device = channels, config, policies, torch.device(device)
        self.progress = Progress(1) if progress is None else progress
        self._first = self._weights("weights", config.weights or None)
        self._last = self._weights("weights_end", config.weights_end)
        if self._first is None and self._last is not None:
            self._first = torch.ones_like(self._last)

    @abstractmethod
    def __call__(self, advantage: Float[Tensor, "B N K"], batch: Batch) -> Float[Tensor, "B N"]:
        """One advantage for each agent, [B,N], of the type of `advantage` and finite for the dead as well.

        advantage: in the units of raw rewards, before any weight: `weighed` applies them.
        """

    def of(self, advantage: Float[Tensor, "B N K"], batch: Batch) -> Float[Tensor, "B N"]:
        """`self(advantage, batch)`. Raises InputError unless it is a tensor of that shape and type, and finite."""
        found: Any = self(advantage, batch)
        name, (rows, agents, channels) = type(self).__name__, advantage.shape
        if not isinstance(found, Tensor) or found.shape != (rows, agents) or found.dtype != advantage.dtype:
            came = f"{list(found.shape)} {found.dtype}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
            raise InputError(
                f"{name} must turn advantages [B,N,K] = [{rows}, {agents}, {channels}] into one for each agent, [B,N] "
                f"= [{rows}, {agents}] of {advantage.dtype}; it gave {came}. Sum over the last axis alone."
            )
        # One's own is looked at once a batch, which makes a GPU wait; Concord's own are finite where advantages are.
        if type(self) not in KINDS.values() and not found.isfinite().all() and advantage.isfinite().all():
            raise InputError(f"{name} gave NaN or infinite numbers for finite advantages; give dead agents 0.")
        return found

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue exactly: by default nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state` was taken. Raises InputError for one that nobody here would read."""
        if state:
            raise InputError(f"{type(self).__name__} keeps no state, and one was saved: {', '.join(state)}.")

    @property
    def weights(self) -> Float[Tensor, " K"] | None:
        """Weight of each channel now; None where each counts 1."""
        return None if self._first is None else self.progress.along(self._first, self._last)

    def weighed(self, advantage: Float[Tensor, "B N K"]) -> Float[Tensor, "B N"]:
        """Σ_k w_k A_k with the weights of now."""
        weights = self.weights
        return advantage.sum(-1) if weights is None else (advantage * weights).sum(-1)

    def _weights(self, name: str, values: tuple[float, ...] | None) -> Float[Tensor, " K"] | None:
        if values is None:
            return None
        if len(values) != len(self.channels):
            raise InputError(
                f"advantage.{name} must have {len(self.channels)} numbers, one for each reward channel "
                f"({', '.join(self.channels)}); got {list(values)}."
            )
        return torch.tensor(values, device=self.device)


@final
class Own(Scalarization):
    """Each agent's own advantage, Σ_k w_k A_k."""

    def __call__(self, advantage: Float[Tensor, "B N K"], batch: Batch) -> Float[Tensor, "B N"]:
        """The weighted sum of channels."""
        return self.weighed(advantage)


@final
class Team(Scalarization):
    """The mean over the living team of Σ_k w_k A_k: every agent answers for all."""

    def __call__(self, advantage: Float[Tensor, "B N K"], batch: Batch) -> Float[Tensor, "B N"]:
        """The same for every agent of a row."""
        living = batch.obs.alive.to(advantage.dtype)
        count = living.sum(-1, keepdim=True).clamp(min=1)
        total = (self.weighed(advantage) * living).sum(-1, keepdim=True)
        return (total / count).expand_as(living)


@final
class Normalized(Scalarization):
    """Σ_k w_k (A_k - mean) / deviation, over the entries of each policy's living agents.

    So a channel counts by its weight, not by its units. A channel without variance counts nothing.
    """

    def __call__(self, advantage: Float[Tensor, "B N K"], batch: Batch) -> Float[Tensor, "B N"]:
        """The weighted sum of normalized channels."""
        channels = advantage.unbind(-1)
        normal = [normalize_by_policy(channel, batch.obs.alive, self.policies) for channel in channels]
        return self.weighed(torch.stack(normal, -1))


KINDS: dict[str, type[Scalarization]] = {"own": Own, "team": Team, "normalized": Normalized}


def build_scalarization(
    channels: tuple[str, ...],
    config: AdvantageConfig,
    *,
    policies: int = 1,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Scalarization:
    """The scalarization that the config asks for. Raises InputError for a kind that is none."""
    maker = KINDS.get(config.kind)
    if maker is None:
        if ":" not in config.kind:
            raise InputError(
                f"advantage.kind must be one of {', '.join(KINDS)}, or a class by dotted path such as "
                f"'my_package.weighing:MyScalarization'; got {config.kind!r}."
            )
        maker = import_dotted(config.kind)
        if not (isinstance(maker, type) and issubclass(maker, Scalarization)):
            raise InputError(
                f"advantage.kind must name a marl.learning.scalarization.Scalarization; {config.kind} is {maker!r}."
            )
    elif config.args:
        raise InputError(f"advantage.args is for a class of your own; advantage.kind {config.kind} reads none.")
    return maker(channels, config, policies=policies, device=device, progress=progress)


def by_decider(
    advantage: Float[Tensor, "B N"],
    alive: Bool[Tensor, "B N"],
    choosing: Bool[Tensor, "B N"],
    members: Bool[Tensor, "M N"] | None,
) -> tuple[Float[Tensor, "B M"], Bool[Tensor, "B M"]]:
    """Each decider's advantage, the mean over the living agents it decides for, and whether any of them has a choice.

    members None: every agent decides for itself (M = N).
    """
    if members is None:
        return advantage, choosing
    living, owner = alive.to(advantage.dtype), members.T.to(advantage.dtype)
    count = (living @ owner).clamp(min=1)
    return (advantage * living) @ owner / count, choosing.to(advantage.dtype) @ owner > 0


def choosing(obs: Observation, space: Discrete | Continuous) -> Bool[Tensor, "B N"]:
    """True for agents alive with more than one choice. The others decide nothing, so no loss may hear of them."""
    if obs.legal is None:
        return obs.alive
    if isinstance(space, Continuous):
        return obs.alive & obs.legal.any(-1)
    several = [part.sum(-1) > 1 for part in obs.legal.split(space.choices, -1)]
    return obs.alive & torch.stack(several).any(0)
