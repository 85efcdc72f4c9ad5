"""Distillation: independent agents learn to do what a Bayesian network does, so that no message is needed any more.

For each agent i, over graphs and the actions of its parents, all drawn from the network,

    minimize E KL(π_i(· | o_i, a_{parents of i}) || π'_i(· | o_i))

whose minimum is the network's marginal given what the agent sees itself, and what it remembers. Independent agents keep
the marginals and lose the dependence: where the network's choices are correlated they earn less, and the divergence
that is left says how much of an agent's choice came by messages.

Sources: Rusu et al., "Policy Distillation", ICLR 2016 (arXiv 1511.06295) for the divergence, Ross et al., AISTATS 2011
(arXiv 1011.0686) for lessons in the states that the student itself reaches. Where we depart: the teacher's distribution
is that of one agent given its parents, in closed form, and all lessons are fresh; nothing is aggregated.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, closing, nullcontext
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from envs.core import Decision, InputError, Observation, Streams, Tree
from marl.algorithms.bnpg.policy import BayesianPolicy
from marl.config.schema import Section
from marl.learning.actor_critic import LearnerConfig, replay
from marl.learning.batch import Batch, minibatches, take_rows
from marl.learning.learner import Kept, Learner, Stateful
from marl.learning.losses import mean_weights
from marl.learning.optimizers import Stacked, build_optimizer
from marl.learning.rollout import OnPolicy
from marl.learning.scalarization import choosing
from marl.models.policies import IndependentPolicy
from marl.training import on_policy
from marl.training.environments import make_env
from marl.training.on_policy import ActorCriticConfig
from marl.training.run import Run, env_steps_to_updates

STAGE = "distill"


class DistillConfig(Section):
    """Configuration of distillation into independent agents; batches, epochs and step size are those of `learner`."""

    env_steps: int = Field(0, ge=0, description="joint steps after training, of one policy; 0 distills nothing")
    experience: Literal["student", "teacher"] = Field(
        "student", description="who acts: the independent agents, taught where they get to, or the network"
    )


class DistillationActor:
    """Teacher and student see the same. One of them acts; what the teacher does, or would do, is the lesson.

    The lesson is the decision's latent. Both remember what they see, whoever acts.
    """

    draws_alike = True

    def __init__(self, teacher: BayesianPolicy, student: IndependentPolicy, acting: Literal["student", "teacher"]):
        self.teacher, self.student, self.acting = teacher, student, acting

    def initial_memory(self, num_envs: int) -> Tree:
        """Memory at the start of an episode."""
        return {"teacher": self.teacher.initial_memory(num_envs), "student": self.student.initial_memory(num_envs)}

    def act(self, obs: Observation, memory: Tree, streams: Streams) -> tuple[Decision, Tree]:
        """Action of the one that acts, and the lesson."""
        lesson, of_teacher = self.teacher.act(obs, memory["teacher"], streams)
        tried, of_student = self.student.act(obs, memory["student"], streams)
        done = tried if self.acting == "student" else lesson
        return Decision(done.action, lesson, done.log_prob), {"teacher": of_teacher, "student": of_student}


class DistillationSamples(NamedTuple):
    """The part of a batch that one gradient step sees, [L,S,…].

    A sum over a minibatch, weighed, estimates the mean over the batch of those who have a choice; the others weigh 0.
    """

    obs: Observation
    decision: Decision
    ended: Bool[Tensor, "L S"]
    weight: Float[Tensor, "L S N"]


class Distillation(Learner):
    """Moves independent agents towards the teacher's conditional distributions; the teacher stays as it is.

    teacher_updates: those that the teacher was trained for; a state from another time of its training is refused.
    """

    def __init__(
        self,
        teacher: BayesianPolicy,
        student: IndependentPolicy,
        config: LearnerConfig,
        streams: Streams,
        teacher_updates: int = 0,
    ):
        self.teacher, self.student, self.config, self.streams = teacher, student, config, streams
        self.teacher_updates = teacher_updates
        self.policies = len(streams)
        self.optimizer = build_optimizer(config, Stacked(student.parameters(), self.policies))

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Epochs of gradient steps on one batch of a `DistillationActor`."""
        count = self.config.minibatches
        weight = mean_weights(choosing(batch.obs, self.student.space), self.policies) * count
        lessons = DistillationSamples(batch.obs, batch.decision.latent, batch.ended, weight)
        found = []
        for _ in range(self.config.epochs):
            for rows, segments in minibatches(batch, count, self.streams):
                kl = self.loss(take_rows(lessons, rows), take_rows(batch.memory, segments))
                self.optimizer.descend(kl.sum())
                found.append(kl.detach())
        return {"kl": torch.stack(found).mean(0)}

    def loss(self, lessons: DistillationSamples, memory: Tree) -> Float[Tensor, " P"]:
        """The mean divergence of each policy's agents from the teacher's, given what the teacher's have heard."""
        teacher = self.teacher

        def again(obs: Observation, decision: Decision, memory: Tree) -> tuple[Tensor, Tree]:
            with torch.no_grad():
                network, of_teacher = teacher(obs, memory["teacher"])
                shown = network.given(decision)
            learned, of_student = self.student(obs, memory["student"])
            return shown.kl(learned), {"teacher": of_teacher, "student": of_student}

        kl = replay(again, lessons.obs, lessons.decision, lessons.ended, memory) * lessons.weight
        return kl.unflatten(1, (self.policies, -1)).sum((0, 2, 3))

    def parts(self) -> dict[str, Stateful | None]:
        """The student, its optimizer, the streams, and when the teacher taught."""
        return {
            "policy": self.student,
            "optimizer": self.optimizer,
            "streams": self.streams,
            "taught": Kept(self.teacher_updates),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state` was taken. Raises InputError where the teacher has learned since."""
        if state["taught"] != self.teacher_updates:
            raise InputError(
                f"The network was trained for {self.teacher_updates:,} updates, and distilled when it had "
                f"{state['taught']:,}. "
                f"Remove the folder checkpoints/{STAGE} of this run, and `concord resume` distills it again."
            )
        super().load_state_dict(state)


def distill(teacher: BayesianPolicy, config: ActorCriticConfig, settings: DistillConfig, run: Run) -> IndependentPolicy:
    """Independent agents that have learned from the network; P of them for a run of P policies."""
    env = make_env(
        config.env,
        num_envs=run.policies * config.env.num_envs,
        device=run.device,
        restart_episodes=config.resume.restart_episodes,
    )
    student = IndependentPolicy(env.spec, config.policy, run.streams("student"))
    teacher_updates = int(run.used(on_policy.STAGE)["updates"])
    streams = run.streams("distill/minibatches")
    learner = Distillation(teacher, student, config.learner, streams, teacher_updates)
    source = OnPolicy(
        env,
        DistillationActor(teacher, student, settings.experience),
        steps=config.learner.steps,
        segment=config.learner.sequence_length,
        streams=run.streams("distill/actions"),
        seeds=run.stage_seeds(STAGE),
    )
    updates = env_steps_to_updates(settings.env_steps, config.learner.steps * config.env.num_envs)
    with closing(env), _compiled(learner) if config.compile else nullcontext():
        run.fit(STAGE, learner, source, updates)
    return student


def _compiled(learner: Distillation) -> AbstractContextManager[None]:
    from marl.training.compiling import compiled  # few want it

    return compiled((learner, "loss"))
