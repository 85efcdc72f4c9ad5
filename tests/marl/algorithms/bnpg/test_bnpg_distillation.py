"""What independent agents learn from a Bayesian network: its marginals, exactly as far as there is a closed form."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import GRU, Mortals, assert_close
from torch import Tensor

from envs.core import Continuous, Decision, EnvSpec, InputError, Observation, Streams
from envs.games import climbing
from envs.world import TensorEnv, Transition, World
from marl.algorithms.bnpg import Config, recipe
from marl.algorithms.bnpg.distillation import Distillation, DistillationActor, DistillationSamples
from marl.algorithms.bnpg.policy import BayesianPolicy, BayesianPolicyConfig
from marl.commands.evaluate import evaluate_folder
from marl.config.load import resolve
from marl.evaluation.plots import read_curve
from marl.learning.actor_critic import LearnerConfig
from marl.learning.batch import Batch, segment_rows, take_rows
from marl.learning.losses import mean_weights
from marl.learning.rollout import OnPolicy
from marl.models.distributions import IndependentCategorical
from marl.models.policies import IndependentPolicy
from marl.training.checkpoints import checkpoints, load_checkpoint
from marl.training.policy_rows import take_policy
from marl.training.run import Run

SMALL = {"network": {"hidden": (16,)}, "share": "none"}
COMPLETE = {"graph": {"kind": "complete"}}
RANDOM = {"graph": {"kind": "random", "density": 0.5}}


class Blind(World[Tensor]):
    """Two agents who see nothing and act in real numbers once."""

    def __init__(self) -> None:
        line = (Continuous((-1.0,), (1.0,)),) * 2
        self.spec = EnvSpec(("x", "y"), (0, 1), ("none",), (1, 1), line, 1, horizon=1)

    def initial_noise(self, num: int, generator: torch.Generator) -> Tensor:
        return torch.zeros(num, 1)

    def initial(self, noise: Tensor) -> Tensor:
        return noise

    def transition(self, state: Tensor, action: Tensor, noise: None) -> Transition:
        return Transition(state, state.unsqueeze(-1).expand(-1, 2, -1), torch.ones(len(state), 2, dtype=torch.bool))

    def observe(self, state: Tensor) -> Observation:
        return Observation(state.unsqueeze(-1).expand(-1, 2, -1), state, torch.ones(len(state), 2, dtype=torch.bool))


class School:
    """A teacher with weights far from zero, a student, and everything that the student needs."""

    def __init__(self, world: World[Any], config: dict[str, Any], rows: int, acting: Any = "student", **settings: Any):
        self.env = TensorEnv(world, rows)
        policy = BayesianPolicyConfig.model_validate(config)
        learner = LearnerConfig(**{"steps": 4, "epochs": 2, "minibatches": 1, "learning_rate": 0.03, **settings})
        self.teacher = BayesianPolicy(self.env.spec, policy, Streams([0]))
        self.student = IndependentPolicy(self.env.spec, policy, Streams([1]))
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for p in (*self.teacher.parameters(), *self.student.parameters()):
                p += 0.4 * torch.randn(p.shape, generator=generator)
        self.learner = Distillation(self.teacher, self.student, learner, Streams([3]))
        room = DistillationActor(self.teacher, self.student, acting)
        seen = {"steps": learner.steps, "segment": learner.sequence_length}
        self.source = OnPolicy(self.env, room, **seen, streams=Streams([4]), seeds=[5])

    def teach(self, updates: int, last: int = 1) -> float:
        """The divergence over the last of so many updates."""
        kl = [self.learner.update(batch)["kl"] for _, batch in zip(range(updates), self.source)]
        return float(torch.stack(kl[-last:]).mean())


def joint_table(teacher: BayesianPolicy, obs: Observation) -> Tensor:
    """P(a, b) of two agents with three choices each in the first row."""
    one = take_rows(obs, torch.tensor([0]))
    with torch.no_grad():
        distribution, _ = teacher(one, None)
        latent = distribution.mode().latent
        pairs = itertools.product(range(3), repeat=2)
        decisions = [Decision(torch.tensor(pair).view(1, 2, 1), latent) for pair in pairs]
        return torch.stack([distribution.log_prob(d).sum().exp() for d in decisions]).view(3, 3)


@pytest.mark.parametrize("acting", ["student", "teacher"])
def test_the_student_learns_the_network_s_marginals_and_what_is_left_is_their_dependence(acting: str) -> None:
    school = School(climbing(), {**SMALL, **COMPLETE}, 1024, acting)
    obs = school.env.reset(0)
    joint = joint_table(school.teacher, obs)
    marginals = torch.stack([joint.sum(1), joint.sum(0)])
    information = (joint * (joint / (marginals[0].unsqueeze(1) * marginals[1])).log()).sum()
    assert information > 0.03, "otherwise nothing is tested"
    left = school.teach(30, last=10)
    with torch.no_grad():
        learned = school.student(obs, None)[0].log_probs()[0].exp()
    torch.testing.assert_close(learned, marginals, atol=0.03, rtol=0)
    assert left == pytest.approx(float(information) / 2, rel=0.1), "the mean over both agents"


def test_real_actions_are_matched_in_mean_and_deviation() -> None:
    school = School(Blind(), {**SMALL, **COMPLETE, "initial_std": 0.6}, 1024)
    with torch.no_grad():
        school.teacher.head.incoming[1].weight *= 4
    school.teach(50)
    obs = TensorEnv(Blind(), 20_000).reset(0)
    with torch.no_grad():
        taught, _ = school.teacher.act(obs, None, Streams([7]))
        done, _ = school.student.act(obs, None, Streams([8]))
    alone = school.teacher.deviations.log_std.exp().flatten()
    assert taught.action[:, 1].std() > 1.2 * alone[1], "the second agent varies with what it hears"
    for moment in (torch.mean, torch.std):
        torch.testing.assert_close(moment(done.action, 0), moment(taught.action, 0), atol=0.05, rtol=0)


def whole(batch: Batch, weight: Tensor) -> tuple[DistillationSamples, Any, Tensor]:
    """All segments in order, their memories, and the rows [L,S]."""
    rows, segments = segment_rows(torch.arange(batch.steps // batch.segment * batch.rows).unsqueeze(0), batch)
    lessons = DistillationSamples(batch.obs, batch.decision.latent, batch.ended, weight)
    return take_rows(lessons, rows), take_rows(batch.memory, segments), rows


@pytest.mark.parametrize("acting", ["student", "teacher"])
@pytest.mark.parametrize("network", [SMALL, GRU], ids=["feed-forward", "recurrent"])
def test_both_are_replayed_as_they_were_when_they_acted(
    acting: str, network: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    school = School(Mortals(), {**network, **RANDOM}, 4, acting, steps=8, sequence_length=4 if network is GRU else 1)
    compared: list[tuple[IndependentCategorical, IndependentCategorical]] = []
    monkeypatch.setattr(
        IndependentCategorical, "kl", lambda p, q: compared.append((p, q)) or q.log_prob(Decision(q.mode().action))
    )
    for _, batch in zip(range(2), school.source):
        compared.clear()
        lessons, memory, rows = whole(batch, torch.ones_like(batch.obs.alive, dtype=torch.float32))
        school.learner.loss(lessons, memory)
        for t, (shown, learned) in enumerate(compared):
            decision = take_rows(batch.decision, rows[t])
            stored = decision.latent.log_prob
            torch.testing.assert_close(shown.log_prob(decision.latent), stored, atol=1e-5, rtol=0)
            if acting == "student":
                torch.testing.assert_close(learned.log_prob(decision).detach(), decision.log_prob, atol=1e-5, rtol=0)
            else:
                assert torch.equal(decision.action, decision.latent.action)


def test_the_dead_teach_nothing_and_the_teacher_stays_as_it_is() -> None:
    school = School(Mortals(), {**SMALL, **RANDOM}, 8)
    batch = next(iter(school.source))
    alive = batch.obs.alive
    assert not bool(alive.all())
    weight = mean_weights(alive, 1)
    before = [p.clone() for p in school.teacher.parameters()]
    kl = school.learner.loss(*whole(batch, weight)[:2])
    noise = torch.where(alive.unsqueeze(-1), batch.obs.agent, torch.randn_like(batch.obs.agent))
    other = dataclasses.replace(batch, obs=dataclasses.replace(batch.obs, agent=noise))
    assert_close(school.learner.loss(*whole(other, weight)[:2]), kl, 1e-6)
    school.learner.update(batch)
    assert_close(tuple(before), tuple(p.detach() for p in school.teacher.parameters()))


# From config to report


def settings(**overrides: Any) -> Config:
    raw = {"recipe": "marl.algorithms.bnpg", "env": {"world": "small_runs:Mortals", "num_envs": 4}}
    small: dict[str, Any] = {"learner.steps": 8, "policy.network.hidden": [8], "device": "cpu", "train.env_steps": 96}
    small |= {"learner.epochs": 1, "learner.minibatches": 2}
    judged = {"evaluation.episodes": 8, "evaluation.film_episodes": 0, "distill.env_steps": 128}
    config = resolve(raw, {**small, **judged, "policy.graph.kind": "random", **overrides})
    assert isinstance(config, Config)
    return config


RECURRENT = {"policy.network.kind": "gru", "learner.sequence_length": 4, "train.save_seconds": 0}


def saved(run: Run) -> dict[str, Any]:
    newest = checkpoints(run.folder / "checkpoints" / "distill")[-1]
    assert newest.name.endswith("finished")
    return load_checkpoint(newest)


def test_cut_off_in_the_middle_it_ends_with_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(**RECURRENT)
    recipe.train(config, Run(tmp_path / "whole", config))
    update, seen = Distillation.update, []

    def cut_off(self: Distillation, batch: Batch) -> dict[str, Tensor]:
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return update(self, batch)

    monkeypatch.setattr(Distillation, "update", cut_off)
    with pytest.raises(KeyboardInterrupt):
        recipe.train(config, Run(tmp_path / "cut", config))
    recipe.train(config, Run(tmp_path / "cut", config))
    assert len(seen) == 3 + 2, "it went on, and did not begin again"
    one, other = (saved(Run(tmp_path / name, config)) for name in ("whole", "cut"))
    for part in ("learner", "source", "tally"):
        assert_close(drop_text(one[part]), drop_text(other[part]))


def drop_text(tree: Any) -> Any:
    """The tensors of a saved state, in order."""
    if isinstance(tree, dict):
        return tuple(drop_text(tree[key]) for key in sorted(tree))
    return tree if isinstance(tree, Tensor) else None


def test_seeds_distilled_as_one_end_as_they_would_alone(tmp_path: Path) -> None:
    config = settings(**RECURRENT)
    seeds = (3, 1)
    together = Run(tmp_path / "together", config, seeds)
    recipe.train(config, together)
    for place, seed in enumerate(seeds):
        alone = Run(tmp_path / str(seed), config, [seed])
        recipe.train(config, alone)
        part = take_policy(saved(together), place, len(seeds))
        assert_close(drop_text(part["learner"]["policy"]), drop_text(saved(alone)["learner"]["policy"]), 1e-4)


def test_a_teacher_that_has_learned_since_is_refused(tmp_path: Path) -> None:
    config = settings()
    recipe.train(config, Run(tmp_path, config))
    longer = settings(**{"train.env_steps": 192})
    with pytest.raises(InputError, match=r"6 updates, and distilled when it had 3\. Remove the folder checkpoints/dis"):
        recipe.train(longer, Run(tmp_path, longer))


def test_the_report_has_every_team_and_evaluate_plays_the_one_that_is_named(tmp_path: Path) -> None:
    config = settings()
    run = Run.create(tmp_path / "out", config)
    report = recipe.run(config, run)
    assert {"return_per_agent", "distilled/return_per_agent", "empty/return_per_agent"} <= set(report.metrics)
    assert report.metrics["distill/env_steps"].value == 128
    steps, _ = read_curve(run.folder)
    assert steps == sorted(steps), "the curve is that of training alone"
    again, _ = evaluate_folder(run.folder, ["evaluation.team=distilled"])
    assert again.metrics["return_per_agent"] == report.metrics["distilled/return_per_agent"]
    other = settings(**{"evaluation.team": "distilled"})
    turned = recipe.run(other, Run(run.folder, other))
    assert turned.metrics["return_per_agent"] == report.metrics["distilled/return_per_agent"]
    assert turned.metrics["network/return_per_agent"] == report.metrics["return_per_agent"]
    alone, _ = evaluate_folder(run.folder, ["evaluation.team=empty"])
    assert alone.metrics["return_per_agent"] == report.metrics["empty/return_per_agent"]
    without = settings(**{"evaluation.team": "empty"})
    judged = recipe.run(without, Run(run.folder, without)).metrics
    assert judged["return_per_agent"] == judged["empty/return_per_agent"] == report.metrics["empty/return_per_agent"]
    assert judged["network/return_per_agent"] == report.metrics["return_per_agent"]
    drawn = {path.name for path in recipe.pictures(Run(run.folder, without))}
    assert {"graph.gif", "graph.png"} <= drawn, "who hears whom, though nobody does where the team is judged"
    asked, _ = evaluate_folder(run.folder, ["evaluation.team=empty", "evaluation.ablation_episodes=32"])
    assert "worth" in asked.tables["edges"][0]
    student, env = recipe.load(Run(run.folder, other), 2)
    assert isinstance(student, IndependentPolicy)
    env.close()


def test_a_team_that_was_not_distilled_cannot_be_judged() -> None:
    with pytest.raises(InputError, match=r"in its training, with distill\.env_steps"):
        settings(**{"distill.env_steps": 0, "evaluation.team": "distilled"})
