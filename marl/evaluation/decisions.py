"""What an actor that plays must be and decide: a native world would take any number for an action."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from jaxtyping import Bool, Num
from torch import Tensor

from envs.core import Decision, Discrete, EnvSpec, InputError, Observation, Tree

HUGE = 1e18  # the square of more is no number of 32 bits
RETURN = "Let act(obs, memory, streams) end with `return Decision(action), memory`."


class Referee:
    """Checks decisions against what was seen: the form of each at once, and that its numbers are allowed.

    Choices must exist, and be legal for whoever is alive; real numbers must be finite, since environments clip them to
    their bounds. On a CPU each decision is checked before anything is done with it. On a GPU the first is, and of the
    others `settle` tells whether any was not allowed, so that the host need not wait at every step.
    """

    def __init__(self, spec: EnvSpec, device: torch.device):
        self.spec, self.waits, self.first = spec, device.type == "cpu", True
        self._broken = torch.zeros((), dtype=torch.bool, device=device)
        if isinstance(spec.action, Discrete):
            choices = spec.action.choices
            self._none = torch.zeros(len(choices), dtype=torch.int64, device=device)
            self._last = torch.tensor(choices, device=device) - 1
            self._start = torch.tensor([0, *itertools.accumulate(choices[:-1])], device=device)

    def check(self, decision: Any, obs: Observation) -> None:
        """Raise InputError for a decision that is none, of another form, or not allowed where `obs` was seen."""
        self._require_form(decision, obs)
        action = decision.action
        if not (self.waits or self.first):
            self._broken |= self._wrong(action, obs).any()
        elif not self._plainly_allowed(action, obs):
            wrong = self._wrong(action, obs)
            if bool(wrong.any()):
                self._tell(action, wrong, obs)
        self.first = False

    def settle(self) -> None:
        """Raise InputError where a decision since the first was not allowed and has not been told."""
        if not self.waits and bool(self._broken):
            raise InputError(
                "The actor decided what is not allowed: a choice that does not exist or is not legal, or a real number "
                "that is not finite. Play it on the CPU (device=cpu) to see where; it must respect `obs.legal`."
            )

    def _require_form(self, decision: Any, obs: Observation) -> None:
        action = getattr(decision, "action", None)
        shape = (*obs.alive.shape, self.spec.action.size)
        if not isinstance(decision, Decision) or not isinstance(action, Tensor):
            what = f"Decision({_kind(action)})" if isinstance(decision, Decision) else _kind(decision)
            raise InputError(f"An actor must give a Decision(action) with a tensor [E,N,A]; it gave {what}. {RETURN}")
        whole = isinstance(self.spec.action, Discrete)
        dtype = torch.int64 if whole else torch.float32
        if action.shape != shape or action.dtype != dtype or action.device.type != obs.alive.device.type:
            raise InputError(
                f"An action must be {dtype} {'(the indices of choices) ' if whole else ''}[E,N,A] = {list(shape)} on "
                f"{obs.alive.device}, a number for each row, agent and component; the actor gave {action.dtype} "
                f"{list(action.shape)} on {action.device}."
            )

    def _plainly_allowed(self, action: Num[Tensor, "E N A"], obs: Observation) -> bool:
        """True where it takes few operations to see that nothing is wrong, which is nearly always."""
        if not isinstance(self.spec.action, Discrete):
            return bool(action.isfinite().all())
        near = action.clamp(self._none, self._last)
        if not torch.equal(near, action):
            return False
        return obs.legal is None or bool(obs.legal.gather(-1, near + self._start).all())

    def _wrong(self, action: Num[Tensor, "E N A"], obs: Observation) -> Bool[Tensor, "E N A"]:
        """Components that are not allowed."""
        if not isinstance(self.spec.action, Discrete):
            # Where what was seen is no number, or too large to be squared, the world has failed; its returns will tell.
            sane = (obs.agent.flatten(1).abs() < HUGE).all(1).view(-1, 1, 1)
            return sane & ~action.isfinite()
        # The nearest choice that exists, so that what is looked up below is there.
        near = action.clamp(self._none, self._last)
        wrong = near != action
        if obs.legal is None:
            return wrong
        legal = obs.legal.gather(-1, near + self._start)
        return wrong | (obs.alive.unsqueeze(-1) & ~legal)

    def _tell(self, action: Num[Tensor, "E N A"], wrong: Bool[Tensor, "E N A"], obs: Observation) -> None:
        row, agent, component = wrong.nonzero()[0].tolist()
        came = action[row, agent, component].item()
        where = f"{self.spec.agents[agent]} in row {row} decided {came} for component {component}"
        if not isinstance(self.spec.action, Discrete):
            raise InputError(f"{where}; an action must be finite. What chose it has most likely diverged.")
        choices = self.spec.action.choices[component]
        if not 0 <= came < choices:
            raise InputError(f"{where}, which has the choices 0 to {choices - 1}.")
        assert obs.legal is not None
        start = int(self._start[component])
        allowed = obs.legal[row, agent, start : start + choices].nonzero().squeeze(-1).tolist()
        raise InputError(f"{where}, where `obs.legal` allows {allowed}. An actor must respect it.")


def two_things(given: Any) -> tuple[Any, Tree]:
    """Decision and memory, as `act` must give them. Raises InputError for anything but two things."""
    if isinstance(given, tuple) and len(given) == 2:
        return given
    came = f"{len(given)} things" if isinstance(given, tuple) else f"one {_kind(given)}"
    raise InputError(f"An actor must give two things, a Decision and what it remembers; it gave {came}. {RETURN}")


def _kind(thing: Any) -> str:
    return type(thing).__name__
