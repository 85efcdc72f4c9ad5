"""Experience that somebody else logged: its transitions as one `Batch`, and a source that draws minibatches from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from envs.core import Decision, Discrete, EnvSpec, InputError, Observation, Streams
from marl.learning.batch import Batch, take_rows


def chooser_spec(features: int, actions: int, channels: Sequence[str], horizon: int | None = 1) -> EnvSpec:
    """One agent that sees D features and chooses among A actions; a bandit, unless the horizon says otherwise."""
    return EnvSpec(
        agents=("chooser",),
        kind=(0,),
        channels=tuple(channels),
        observation_sizes=(features,),
        actions=(Discrete((actions,)),),
        state_size=features,
        horizon=horizon,
    )


def transitions(
    observation: Float[Tensor, "n D"],
    action: Int[Tensor, " n"],
    propensity: Float[Tensor, " n"],
    reward: Float[Tensor, "n K"],
    following: Float[Tensor, "n D"] | None = None,
    terminated: Bool[Tensor, " n"] | None = None,
    legal: Bool[Tensor, "n A"] | None = None,
    legal_following: Bool[Tensor, "n A"] | None = None,
) -> Batch:
    """n logged transitions (s, a, r, s', terminated) of one agent as one batch, with the logger's log-probabilities.

    Without `following` (s') every row is an episode of one step, as in a bandit. An episode that was cut off is not
    terminated: what would have followed is worth what s' is. legal: the actions that there were to choose from; those
    of s' are the same where `legal_following` is not given. Raises InputError for lengths that differ, s' without
    `terminated` or the other way round, a propensity that is not in (0, 1], and an action that was not legal.
    """
    if (following is None) != (terminated is None):
        raise InputError("Logged transitions have both what followed and whether the episode terminated, or neither.")
    named = {"observation": observation, "action": action, "propensity": propensity, "reward": reward}
    more = {"following": following, "terminated": terminated, "legal": legal, "legal_following": legal_following}
    named |= {name: column for name, column in more.items() if column is not None}
    lengths = {name: len(column) for name, column in named.items()}
    if len(set(lengths.values())) > 1 or not len(action):
        raise InputError(f"Logged transitions have one row each in every column, and one at least; got {lengths}.")
    if not bool(((propensity > 0) & (propensity <= 1)).all()):
        raise InputError("A logged propensity is the probability of the action that was taken, in (0, 1].")
    if legal is not None and not bool(legal.gather(1, action.unsqueeze(1)).all()):
        raise InputError("A logged action is one of those that were legal in its row.")
    obs = observed(observation, legal)
    then = legal if legal_following is None else legal_following
    ended = torch.ones_like(action, dtype=torch.bool) if terminated is None else terminated
    return Batch(
        policies=1,
        steps=1,
        segment=1,
        obs=obs,
        final_obs=obs if following is None else observed(following, then),
        decision=Decision(action.view(-1, 1, 1), log_prob=propensity.to(observation.dtype).log().unsqueeze(1)),
        memory=None,
        reward=reward.unsqueeze(1),
        terminated=ended.unsqueeze(1),
        truncated=torch.zeros_like(ended).unsqueeze(1),
        ended=ended,
    )


def observed(features: Float[Tensor, "n D"], legal: Bool[Tensor, "n A"] | None = None) -> Observation:
    """One living agent who sees the whole."""
    alive = torch.ones(len(features), 1, dtype=torch.bool, device=features.device)
    return Observation(features.unsqueeze(1), features, alive, None if legal is None else legal.unsqueeze(1))


class BatchLog:
    """The `Log` of a batch of transitions."""

    def __init__(self, batch: Batch):
        self.batch = batch

    def starts(self, steps: int) -> int:
        """Rows, which are single steps. Raises InputError for longer ones."""
        if steps != 1:
            raise InputError(f"These transitions are single steps, in no order, so steps must be 1; got {steps}.")
        return len(self.batch.ended)

    def take(self, rows: Int[Tensor, " R"], policies: int, steps: int) -> Batch:
        """Those with these numbers, policy-major."""
        log = self.batch
        obs = take_rows(log.obs, rows)
        # The successor of a bandit's row is the row itself, and need not be copied twice.
        final_obs = obs if log.final_obs is log.obs else take_rows(log.final_obs, rows)
        happened = (log.decision, log.reward, log.terminated, log.truncated, log.ended)
        decision, reward, terminated, truncated, ended = take_rows(happened, rows)
        return Batch(policies, 1, 1, obs, final_obs, decision, None, reward, terminated, truncated, ended)


@runtime_checkable
class Log(Protocol):
    """Logged play from which segments of several steps can be drawn."""

    def starts(self, steps: int) -> int:
        """The number of segments of so many steps."""

    def take(self, rows: Int[Tensor, " R"], policies: int, steps: int) -> Batch:
        """Segments with these numbers, policy-major, B = R·steps rows."""


class Logged:
    """Minibatches of a log, drawn with replacement: independent samples of what was logged.

    log: transitions as `transitions` gives them, or a `Log`, on the device where learning takes place; they are kept
    there once, whatever the number of policies. rows: transitions of each policy in a minibatch, in segments of `steps`
    that follow one another. All that is saved are the streams, so it resumes exactly.
    """

    def __init__(self, log: Batch | Log, *, rows: int, streams: Streams, steps: int = 1):
        if rows < 1 or steps < 1 or rows % steps:
            raise InputError(f"rows must be a multiple of steps, both at least 1; got rows={rows}, steps={steps}.")
        self.log = BatchLog(log) if isinstance(log, Batch) else log
        self.rows, self.steps, self.streams = rows, steps, streams
        self.segments = self.log.starts(steps)

    def __iter__(self) -> Iterator[Batch]:
        segments, policies, device = self.segments, len(self.streams), self.streams.device

        def draw(rows: int, generator: torch.Generator) -> Int[Tensor, " rows"]:
            return torch.randint(segments, (rows,), generator=generator, device=device)

        while True:
            picked = self.streams.draw(draw, policies * self.rows // self.steps)
            yield self.log.take(picked, policies, self.steps)

    def state_dict(self) -> dict[str, Any]:
        """The streams."""
        return {"streams": self.streams.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state` was taken."""
        self.streams.load_state_dict(state["streams"])
