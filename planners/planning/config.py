"""The config of a run that plans."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from marl.config.schema import EnvConfig, LearningConfig, Section
from marl.learning.regression import RegressionConfig
from marl.models.layers import NetworkConfig
from planners.language.config import ModelConfig
from planners.read.planner import PlannerConfig
from planners.read.reweigh import ReweighConfig

PlannerName = Literal[
    "alone",
    "uniform",
    "nobody",
    "asked_again",
    "blind",
    "reweighed",
    "best_of_n",
    "central",
    "saycan",
    "twosome",
    "react",
    "reflexion",
]


class MethodConfig(PlannerConfig, ReweighConfig):
    """The planner: what it asks, and how a plan is chosen."""

    kind: Literal["read", "reweigh"] = Field(
        "read", description="read: plans are proposed, and sent back; reweigh: all plans are scored at once, and drawn"
    )


class LogConfig(Section):
    """Play that the critic learns from: as the model plays alone, after random starts."""

    play: Literal["model", "random"] = Field(
        "model", description="whose: the model's, asked once in each situation; random costs no query"
    )
    explore: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of plans that are any plan, in the play that the critic then judges; a model that is nearly "
        "sure needs some",
    )
    args: dict[str, Any] = Field(
        default_factory=dict,
        description="arguments of env.args that differ in this play, such as starts: random in the kitchen",
    )
    num_envs: int = Field(1024, ge=1, description="environments stepped together")
    steps: int = Field(200, ge=1, description="steps of each of them")
    time_limit: int = Field(30, ge=1, description="steps of an episode, at most")
    starts: int = Field(2048, ge=1, description="states in which episodes begin")
    start_steps: int = Field(30, ge=0, description="steps of random play that lead to these, at most")


class CriticSection(Section):
    """The critic of plans."""

    kind: Literal["learned", "counted", "exact", "none"] = Field(
        "learned",
        description="learned: by regression; counted: from how often what followed what; exact: the truth, where all "
        "states can be listed; none: whatever is legal is accepted",
    )
    run: str | None = Field(
        None,
        description="of learned: a folder of another run, whose critic is taken as it is; nothing is logged or fitted",
    )
    weights: tuple[float, ...] | None = Field(None, description="worth of each reward channel; null: 1 of the first")
    log: LogConfig = LogConfig()
    network: NetworkConfig = NetworkConfig(hidden=(128, 128), activation="relu")
    learner: RegressionConfig = RegressionConfig(
        rows=512, steps=16, averaging=0.03, learning_rate=2e-3, learning_rate_end=1e-4
    )
    updates: int = Field(4000, ge=1, description="gradient steps")
    members: int = Field(1, ge=1, le=32, description="critics that learn side by side, an ensemble")
    pessimism: float = Field(0.0, ge=0, description="deviations of the ensemble that are subtracted from its mean")

    @model_validator(mode="after")
    def _takes_a_learned_one(self) -> CriticSection:
        if self.run is not None and self.kind != "learned":
            raise ValueError(
                f"critic.run takes the learned critic of another run, and critic.kind={self.kind} is none; leave one "
                "of them out"
            )
        return self


class PlayConfig(Section):
    """Episodes by which planners are judged."""

    episodes: int = Field(200, ge=2, description="episodes, at least")
    num_envs: int = Field(50, ge=1, description="planned in together; a budget that ends keeps whole rounds of these")
    patience: int = Field(100_000, ge=1, description="steps without any episode's end after which it gives up")
    goal: float | None = Field(
        None, description="return of the first channel, an agent, that makes an episode a success; null: none is told"
    )
    exact: bool = Field(
        False,
        description="tell exact success too, and how right the critic is, where all states can be listed: the model is "
        "asked in every one of them",
    )
    beside: tuple[PlannerName, ...] = Field(
        ("alone", "uniform"),
        description="planners that are judged too: the model alone; uniform, the same planner and critic with a model "
        "to which all plans are alike; nobody, such a model and a critic of random play, without any language model; "
        "asked_again, blind, reweighed, best_of_n with the same critic; central, saycan, twosome, react, reflexion "
        "without one",
    )
    rounds: tuple[int, ...] = Field(
        (),
        description="of kind=read: a curve of success against queries, of the planner and of blind, each with so many "
        "proposals a decision at most",
    )
    resets: tuple[int, ...] = Field(
        (),
        description="steps after each of which the world silently begins anew, once an episode: the planner is judged "
        "there too, with as many more steps to the time limit",
    )

    @model_validator(mode="after")
    def _once_each(self) -> PlayConfig:
        for name in ("beside", "rounds", "resets"):
            given = getattr(self, name)
            if len(set(given)) < len(given):
                raise ValueError(f"evaluation.{name} has something twice: {list(given)}")
        if min((*self.rounds, *self.resets), default=1) < 1:
            raise ValueError("evaluation.rounds and evaluation.resets are whole numbers, at least 1")
        return self


class Config(LearningConfig):
    """A run that plans: a world, a language model, a planner and a critic."""

    env: EnvConfig
    model: ModelConfig = ModelConfig()
    planner: MethodConfig = MethodConfig(plans="steps")
    critic: CriticSection = CriticSection()
    evaluation: PlayConfig = PlayConfig()

    @model_validator(mode="after")
    def _fits(self) -> Config:
        if self.env.world is None:
            raise ValueError("env.world is needed: planning is in native worlds that describe themselves in words")
        if self.evaluation.exact and (self.evaluation.goal is None or self.model.origin not in ("tiny", "local")):
            raise ValueError(
                "evaluation.exact needs evaluation.goal, and a model on this machine: it is asked in every state there "
                "is, beside the budget"
            )
        return self

    @model_validator(mode="after")
    def _judges_what_there_is(self) -> Config:
        asked, limit = self.evaluation, self.env.time_limit
        if asked.rounds and (self.planner.kind != "read" or self.critic.kind == "none"):
            raise ValueError("evaluation.rounds needs planner.kind=read and a critic, which sends plans back")
        if asked.resets and (limit is None or max(asked.resets) >= limit):
            raise ValueError(
                f"evaluation.resets are steps before env.time_limit, which they lengthen; got {list(asked.resets)} and "
                f"a limit of {limit}"
            )
        return self

    @property
    def needs_scores(self) -> dict[str, str]:
        """What needs a model that tells how probable a text is, each with the way to do without."""
        found = {}
        if self.planner.kind == "reweigh":
            found["planner.kind=reweigh"] = "set planner.kind=read"
        if self.planner.propose == "scored":
            found["planner.propose=scored"] = "set planner.propose=written"
        if self.critic.run is None and self.critic.kind != "none" and self.critic.log.play == "model":
            found["A critic of the model's own play (critic.log.play=model)"] = (
                "learn from random play, critic.log.play=random, or go without, critic.kind=none"
            )
        return found

    @model_validator(mode="after")
    def _asks_for_scores_of_a_model_that_tells_them(self) -> Config:
        if self.model.origin in ("server", "scripted"):
            for needing, instead in self.needs_scores.items():
                raise ValueError(
                    f"{needing} needs a model that tells how probable a text is, and model.{self.model.origin} does "
                    f"not. Take a local model, or {instead}"
                )
        return self

    @model_validator(mode="after")
    def _learns_from_segments(self) -> Config:
        log, learner = self.critic.log, self.critic.learner
        if self.critic.kind == "learned" and self.critic.run is None and log.steps < learner.steps:
            raise ValueError(
                f"critic.log.steps={log.steps} leave no segment of critic.learner.steps={learner.steps}; log more "
                "steps, or learn from shorter segments"
            )
        return self

    @model_validator(mode="after")
    def _one_discount(self) -> Config:
        discount = self.critic.learner.discount
        if not isinstance(discount, float):
            raise ValueError(
                "critic.learner.discount: expected one number, since a critic of plans weighs all channels into one; "
                f"got {list(discount)}"
            )
        if not 0 <= discount <= 1:
            raise ValueError(f"critic.learner.discount is γ in [0, 1]; got {discount:g}")
        if self.critic.kind in ("counted", "exact") and discount == 1:
            raise ValueError(f"critic.kind={self.critic.kind} needs critic.learner.discount below 1, such as 0.97")
        return self

    @model_validator(mode="after")
    def _leaves_a_choice(self) -> Config:
        if self.planner.kind == "reweigh" and self.planner.temperature == 0 and self.critic.kind != "none":
            raise ValueError(
                "planner.kind=reweigh at planner.temperature=0 leaves one plan, whatever a critic says of it; set the "
                "temperature above 0, or critic.kind=none"
            )
        return self
