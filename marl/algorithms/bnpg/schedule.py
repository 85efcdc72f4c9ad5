"""From many messages to few: what holds the expected density of a graph to a plan."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from marl.algorithms.bnpg.graphs import levels
from marl.algorithms.bnpg.policy import BayesianPolicy
from marl.config.schema import Section
from marl.learning.batch import Batch
from marl.learning.learner import Kept, Learner, Progress, Stateful


class ScheduleConfig(Section):
    """Configuration of the schedule: edges, in expectation, that a learned or random graph may have over training."""

    kind: Literal["free", "anneal"] = Field("free", description="free: any; anneal: from all to `edges`")
    begin: float = Field(0.4, ge=0, le=1, description="share of training after which the density begins to fall")
    end: float = Field(0.7, ge=0, le=1, description="share of training from which on only `edges` are allowed")
    edges: float = Field(0.0, ge=0, description="the budget of messages a step; 0 ends decentralized")
    rate: float = Field(0.05, gt=0, description="how fast the price of density answers to a density above the plan")


class GraphSchedule(Learner):
    """Sets the price of density, by dual ascent on `density <= plan`, and lets the bonus for entropy fade.

    Learns after the actor-critic from the same batches, and logs what the graphs look like. A random graph is not
    priced: its density is set to the plan, which starts from the density that the config gives.
    """

    def __init__(self, policy: BayesianPolicy, config: ScheduleConfig, updates: int):
        self.policy, self.config = policy, config
        self.progress = Progress(updates)
        self._excess = Kept(torch.zeros((), device=policy.device))
        self._changes = policy.config.kind in ("learned", "random")  # a fixed graph's picture would tell nothing

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step of the plan; for the log edges, density, depth, price [P], and the share of steps of each edge."""
        graph = batch.decision.latent
        shares = graph.edges.unflatten(0, (batch.policies, -1)).float().mean(1)
        count, pairs = shares.sum((-2, -1)), self.policy.pairs
        deepest = levels(graph.edges).amax(-1).float()
        self.progress.advance()
        progress = self.progress.spent
        plan = self._plan(progress, pairs)
        generator = self.policy.generator
        logged = {
            "graph_edges": count,
            "graph_density": count / max(1, pairs),
            "graph_depth": deepest.unflatten(0, (batch.policies, -1)).mean(1),
        }
        if generator is not None:
            config = self.policy.config
            generator.bonus.fill_(config.bonus * max(0.0, 1 - progress / config.bonus_until))
            if plan is not None:
                with torch.no_grad():
                    above = generator(batch.obs).density(graph).mean() - plan
                self._excess.value = (self._excess.value + self.config.rate * above).clamp(min=0)
                generator.price.copy_(config.price + self._excess.value)
            logged["graph_price"] = generator.price.clone().view(1)  # a learned graph trains one policy at a time
        elif plan is not None:
            self.policy.density.fill_(plan)
        return {**logged, "graph_shares": shares} if self._changes else logged

    def parts(self) -> dict[str, Stateful | None]:
        """Progress of the plan; price and bonus are saved with the policy."""
        return {"done": self.progress, "excess": self._excess}

    def _plan(self, progress: float, pairs: int) -> float | None:
        """The density that is allowed now; None where there is no limit."""
        config = self.config
        if config.kind == "free":
            return None
        first = self.policy.config.density if self.policy.generator is None else 1.0
        last = min(first, config.edges / max(pairs, 1))
        fallen = (progress - config.begin) / max(config.end - config.begin, 1e-9)
        return first - (first - last) * min(1.0, max(0.0, fallen))
