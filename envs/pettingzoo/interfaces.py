"""PettingZoo's two interfaces played in one way: everybody's actions in, what they led to out."""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pettingzoo.utils.conversions import aec_to_parallel_wrapper
from pettingzoo.utils.env import AECEnv, ParallelEnv


class BrokenContractError(Exception):
    """An environment broke the contract of its interface; the message is for the person who wrote it."""


class EnvironmentRaisedError(Exception):
    """An environment's own code raised, or its process stopped."""


class Turn(NamedTuple):
    """Consequences of one step, in the environment's words. `acting` is the agent in turn, None where all act at once.

    living: who is still there; the mappings also cover those who have just left.
    """

    living: list[Any]
    observations: Mapping[Any, Any]
    infos: Mapping[Any, Any]
    rewards: Mapping[Any, Any]
    terminated: Mapping[Any, Any]
    truncated: Mapping[Any, Any]
    acting: Any = None


class Simultaneous:
    """The parallel interface: everybody acts at once."""

    in_turns = False

    def __init__(self, env: Any):
        self.env = env

    def reset(self, seed: int) -> Turn:
        """Start an episode."""
        result = self.env.reset(seed=seed)
        _require_form(result, "reset(seed)", "observations, infos")
        return Turn(list(self.env.agents), result[0], result[1], {}, {}, {})

    def step(self, actions: dict[Any, Any]) -> Turn:
        """Everybody acts."""
        result = self.env.step(actions)
        _require_form(result, "step(actions)", "observations, rewards, terminations, truncations, infos")
        observations, rewards, terminated, truncated, infos = result
        living = _living(self.env.agents, terminated, truncated)
        return Turn(living, observations, infos, rewards, terminated, truncated)


class Cycled(Simultaneous):
    """The parallel interface of PettingZoo's `aec_to_parallel`, without the observations that it makes and throws away.

    That wrapper asks for an agent's observation before every single turn and drops it; in particle worlds that is a
    quarter of all the time.
    """

    def step(self, actions: dict[Any, Any]) -> Turn:
        """Every agent acts in turn; rewards of the cycle are summed."""
        aec, rewards = self.env.aec_env, dict[Any, Any]()
        for agent in list(aec.agents):
            if aec.agent_selection != agent:
                raise BrokenContractError(
                    f"An AEC environment used through the parallel interface must take its agents in order; expected "
                    f"{agent!r}, but {aec.agent_selection!r} is in turn. Use its AEC interface (its `env` function)."
                )
            aec.step(actions[agent])
            for name, reward in aec.rewards.items():
                rewards[name] = rewards.get(name, 0.0) + reward
        terminated, truncated, infos = dict(aec.terminations), dict(aec.truncations), dict(aec.infos)
        observations = {agent: aec.observe(agent) for agent in aec.agents}
        living = _living(aec.agents, terminated, truncated)
        if living:
            _remove_dead(aec)
        self.env.agents = aec.agents
        return Turn(living, observations, infos, rewards, terminated, truncated)


class InTurns:
    """The AEC interface: one agent acts per step, everybody is looked at after it."""

    in_turns = True

    def __init__(self, env: Any):
        self.env = env

    def reset(self, seed: int) -> Turn:
        """Start an episode."""
        self.env.reset(seed=seed)
        return self._turn({}, {}, {}, {})

    def step(self, actions: dict[Any, Any]) -> Turn:
        """The agent in turn acts; the environment's `step(None)` for agents who died is done here."""
        env = self.env
        env.step(actions[env.agent_selection])
        rewards, terminated, truncated = dict(env.rewards), dict(env.terminations), dict(env.truncations)
        last = {name: env.observe(name) for name in env.agents if terminated.get(name) or truncated.get(name)}
        if len(last) < len(env.agents):
            _remove_dead(env)
        return self._turn(rewards, terminated, truncated, last)

    def _turn(
        self, rewards: dict[Any, Any], terminated: dict[Any, Any], truncated: dict[Any, Any], last: dict[Any, Any]
    ) -> Turn:
        env = self.env
        living = _living(env.agents, env.terminations, env.truncations)
        if living and env.agent_selection not in living:
            raise BrokenContractError(
                f"agent_selection must be an agent that is alive; it is {env.agent_selection!r}, alive are {living}."
            )
        observations = last | {name: env.observe(name) for name in living}
        acting = env.agent_selection if living else None
        return Turn(living, observations, dict(env.infos), rewards, terminated, truncated, acting)


Play = Simultaneous | InTurns


def interface(env: Any) -> Play:
    """Interface that plays `env`. Raises BrokenContractError for what is no PettingZoo environment."""
    if hasattr(env, "possible_agents") and hasattr(env, "reset") and hasattr(env, "step"):
        if type(env) is aec_to_parallel_wrapper:
            return Cycled(env)
        aec = hasattr(env, "last") and hasattr(env, "observe") and not isinstance(env, ParallelEnv)
        return InTurns(env) if aec or isinstance(env, AECEnv) else Simultaneous(env)
    raise BrokenContractError(
        "Expected a function that makes a PettingZoo environment (ParallelEnv or AECEnv, with possible_agents); it "
        f"made a {type(env).__module__}.{type(env).__name__}. For example: mpe2.simple_spread_v3:parallel_env."
    )


@contextlib.contextmanager
def explained(who: Callable[[], str]) -> Iterator[None]:
    """Put who did it before the message of whatever goes wrong within."""
    try:
        yield
    except BrokenContractError as error:
        raise BrokenContractError(f"{who()}: {error}") from error.__cause__
    except EnvironmentRaisedError:
        raise
    except (Exception, SystemExit) as error:  # an environment that calls sys.exit() has failed, and not succeeded
        at = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{os.path.basename(at.filename)}, line {at.lineno}, in {at.name}"
        raise EnvironmentRaisedError(f"{who()} raised {type(error).__name__}: {error} ({where}).") from error


def _require_form(result: Any, call: str, parts: str) -> None:
    expected = parts.count(",") + 1
    if not isinstance(result, tuple) or len(result) != expected:
        came = f"a tuple of {len(result)}" if isinstance(result, tuple) else f"a {type(result).__name__}"
        raise BrokenContractError(
            f"{call} must return ({parts}), {expected} dictionaries by agent; got {came}. Upgrade the environment to "
            "PettingZoo 1.24 or later."
        )


def _living(agents: Sequence[Any], terminated: Mapping[Any, Any], truncated: Mapping[Any, Any]) -> list[Any]:
    """Agents who are listed and have not just been said to leave."""
    if any(terminated.values()) or any(truncated.values()):
        return [name for name in agents if not (terminated.get(name) or truncated.get(name))]
    return list(agents)


def _remove_dead(env: Any) -> None:
    """Take the empty steps that an AEC environment wants of agents who have died."""
    for _ in range(2 * len(env.possible_agents)):
        selected = env.agent_selection
        if not env.agents or not (env.terminations.get(selected) or env.truncations.get(selected)):
            return
        env.step(None)
    raise BrokenContractError(
        f"step(None) must remove an agent that has died, but {env.agent_selection!r} stays. Call _was_dead_step there."
    )
