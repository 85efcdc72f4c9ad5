"""Worlds in which one agent now and then does not do what it chose, so that the others learn not to count on it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor

from envs.core import Discrete, InputError, Observation, Tree
from envs.nested import inner_world
from envs.world import Transition, World


class Lapsed(NamedTuple):
    """State of the world, each agent's chance of a lapse in this episode, and whether a lapse is to do nothing."""

    state: Any
    chance: Float[Tensor, "E N"]
    calm: Bool[Tensor, " E"]


class Lapsing(World[Lapsed]):
    """A world in which, in a share of its episodes, one agent lapses: see `lapsing`."""

    def __init__(self, world: World[Any], share: int | float, idle: int | None):
        self.world, self.share, self.idle = world, share, idle
        self.spec, self.shows_clock = world.spec, world.shows_clock
        space = self.spec.action
        assert isinstance(space, Discrete)
        self.choices = space.choices[0]

    def initial_noise(self, num: int, generator: torch.Generator) -> tuple[Tree, Float[Tensor, "E 4"]]:
        """The world's, and uniform numbers: whether anybody lapses, how often, who, and how."""
        return self.world.initial_noise(num, generator), _uniform((num, 4), generator)

    def initial(self, noise: tuple[Tree, Float[Tensor, "E 4"]]) -> Lapsed:
        """The world's start; one agent, each alike, with a chance between 0 and 1, or none."""
        whether, chance, who, how = noise[1].unbind(1)
        agents = len(self.spec.agents)
        lapses = (who * agents).long().unsqueeze(1) == torch.arange(agents, device=who.device)
        chance = torch.where(whether < self.share, chance, 0.0).unsqueeze(1) * lapses
        calm = (how < 0.5) if self.idle is not None else torch.zeros_like(how, dtype=torch.bool)
        return Lapsed(self.world.initial(noise[0]), chance, calm)

    def noise(self, num: int, generator: torch.Generator) -> tuple[Tree, Float[Tensor, "E N 2"]]:
        """The world's, and uniform numbers: whether each agent lapses now, and to what."""
        return self.world.noise(num, generator), _uniform((num, len(self.spec.agents), 2), generator)

    def transition(self, state: Lapsed, action: Num[Tensor, "E N 1"], noise: tuple[Tree, Tensor]) -> Transition:
        """The world's, with other choices in the place of those of whoever lapses."""
        whether, other = noise[1].unbind(-1)
        choice = (other * self.choices).long()
        if self.idle is not None:
            choice = torch.where(state.calm.unsqueeze(1), self.idle, choice)
        done = torch.where(whether < state.chance, choice, action.squeeze(-1).long()).unsqueeze(-1)
        then = self.world.transition(state.state, done, noise[0])
        return then._replace(state=Lapsed(then.state, state.chance, state.calm))

    def observe(self, state: Lapsed) -> Observation:
        """The world's: nobody is told who lapses."""
        return self.world.observe(state.state)

    def frame(self, state: Lapsed) -> Any:
        """The world's picture."""
        return self.world.frame(state.state)


def lapsing(world: Any, args: Any = None, *, share: int | float = 0.5, idle: int | None = None) -> World[Any]:
    """A world, module:Class with these arguments, in which one agent lapses in a share of all episodes.

    Its chance to lapse is drawn for each episode, uniform between 0 and 1; in a lapse it makes any choice, all alike,
    and if the choice `idle` is given, in half of these episodes always that. Nobody sees who lapses, and how often.
    With share 0 it is the world itself, which is how to judge what was trained: `evaluation.args.share=0`.

    Raises InputError for a world whose agents do not all have the same choices, always, and for numbers out of range.
    """
    inner = inner_world(world, args)
    space = inner.spec.action
    first = inner.observe(inner.initial(inner.initial_noise(1, torch.Generator().manual_seed(0))))
    free = inner.spec.legal is None and first.legal is None
    if not isinstance(space, Discrete) or space.size != 1 or not free:
        raise InputError(
            f"Agents lapse who make one choice, all and always among the same; those of {world} have "
            f"{list(inner.spec.actions)}."
        )
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise InputError(f"share is the share of episodes in which one agent lapses, from 0 to 1; got {share!r}.")
    if idle is not None and (type(idle) is not int or not 0 <= idle < space.choices[0]):
        raise InputError(f"idle is a choice, 0 to {space.choices[0] - 1}, or null for none; got {idle!r}.")
    return inner if share == 0 else Lapsing(inner, share, idle)


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> Float[Tensor, "*shape"]:
    return torch.rand(shape, generator=generator, device=generator.device)
