"""Exact gradients through a swarm's world."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import GRU
from small_swarm import SMALL, Drift
from torch import Tensor

from envs.core import InputError, Streams
from envs.swarm import Aggregation, Kuramoto, LinearQuadratic, QuadraticAggregation, Vicsek, WithMemory
from envs.world import TensorEnv, Transition, World
from marl.algorithms.mean_field import recipe
from marl.algorithms.mean_field.pathwise import Differentiable, Pathwise, discounted_return, require_differentiable
from marl.algorithms.mean_field.policy import MeanRule, SwarmPolicy, SwarmPolicyConfig
from marl.commands.run import run_training
from marl.config.load import resolve
from marl.config.schema import EnvConfig
from marl.evaluation.episodes import play
from marl.learning.actor_critic import LearnerConfig
from marl.training.environments import make_env
from marl.training.run import Run

RAW: dict[str, Any] = {
    "recipe": "marl.algorithms.mean_field",
    "gradient": "pathwise",
    "env": {"world": "small_swarm:Drift", "args": {"agents": 5}, "num_envs": 8},
    "policy": {"network": {"hidden": [8]}, "rule": {"low": -2.0, "high": 2.0}},
    "learner": {"steps": 10},
    "train": {"env_steps": 320},
    "evaluation": {"episodes": 32, "num_envs": 16, "film_episodes": 0},
}


def config(**changes: Any) -> Any:
    return resolve(RAW, {"device": "cpu", **changes})


def parts(world: World[Any], rows: int, steps: int, **policy: Any) -> tuple[SwarmPolicy, Differentiable]:
    env = TensorEnv(world, rows)
    actor = SwarmPolicy(env.spec, SwarmPolicyConfig.model_validate({**SMALL, **policy}), Streams([1]))
    return actor, Differentiable(env, actor, steps=steps, streams=Streams([2]), seeds=[3])


class Silent(Drift):
    """Pays without saying how the reward came about."""

    def transition(self, state: Tensor, action: Tensor, noise: Tensor) -> Transition:
        after, reward, _ = super().transition(state, action, noise)
        return Transition(after.detach(), reward.detach())


@pytest.mark.parametrize("explore", ["rule", "agent"])
def test_the_gradient_is_the_slope_of_the_return_under_the_same_noise(explore: str) -> None:
    discount = torch.tensor([0.9])

    def value(shift: float) -> tuple[Tensor, Tensor]:
        """The return with all parameters moved along a direction, and its slope in that direction."""
        policy, source = parts(Drift(4, horizon=5), 3, 10, explore=explore, sees="swarm")
        directions = [torch.randn(p.shape, generator=torch.Generator().manual_seed(7)) for p in policy.parameters()]
        with torch.no_grad():
            for p, d in zip(policy.parameters(), directions):
                p += (0.1 + shift) * d
        found = discounted_return(next(iter(source)), discount).sum()
        gradients = torch.autograd.grad(found, list(policy.parameters()))
        return found.detach(), sum(((g * d).sum() for g, d in zip(gradients, directions)), torch.tensor(0.0))

    step = 3e-4  # the rule has kinks, which a longer one would cross
    quotient = (value(step)[0] - value(-step)[0]) / (2 * step)
    slope = value(0.0)[1]
    assert float(slope.abs()) > 0.1
    torch.testing.assert_close(quotient, slope, rtol=2e-2, atol=1e-2)


def test_returns_restart_with_episodes_and_fade_from_each_piece_s_first_step() -> None:
    """Seven steps of episodes of five: pieces of five and of two; the next batch has three, and four."""
    _, source = parts(Drift(4, horizon=5), 2, 7)
    batches = iter(source)
    for sizes in ((5, 2), (3, 4)):
        batch = next(batches)
        reward = batch.over_time(batch.reward)[:, 0, :, 0, 0]
        pieces = reward.split(sizes)
        sums = [sum(0.5**t * r for t, r in enumerate(piece)) for piece in pieces]
        found = discounted_return(batch, torch.tensor([0.5]))
        torch.testing.assert_close(found, torch.stack([torch.as_tensor(s) for s in sums]).mean().view(1))


def test_the_graph_ends_where_the_batch_begins() -> None:
    """And what is carried on, saved or logged has none."""
    policy, source = parts(Drift(4), 2, 4, network={**GRU["network"]})
    batches = iter(source)
    for _ in range(3):  # within one episode and into the next
        batch = next(batches)
        discounted_return(batch, torch.ones(1)).sum().backward()  # would fail through a graph that is gone
        saved: list[Tensor] = []
        for leaf in (*source.state_dict()["env"]["physics"].values(), source.state_dict()["memory"]):
            saved.append(leaf)
        assert batch.outcome is not None
        assert not any(leaf.requires_grad for leaf in (*saved, batch.outcome.total, *source.tracker.carry.values()))
    assert all(bool((p.grad != 0).any()) for p in policy.parameters() if p.grad is not None)


WORLDS = {
    "line": LinearQuadratic(6, 4),
    "box": Aggregation(6, 4),
    "plane": QuadraticAggregation(6, 4),
    "phases": Kuramoto(12, hold=2, horizon=4),
    "phases, all": Kuramoto(12, hold=2, horizon=4, coupling="all"),
    "headings, dense": Vicsek(12, horizon=4, radius=0.3),
    "headings, tree": Vicsek(12, horizon=4, neighbors="tree", manifold="projective"),
    "headings, grid": Vicsek(12, horizon=4, neighbors="grid", manifold="klein", features="kernel"),
    "memory": WithMemory(Aggregation(6, 4)),
}


@pytest.mark.parametrize("name", WORLDS)
def test_swarm_worlds_can_be_differentiated(name: str) -> None:
    policy, source = parts(WORLDS[name], 2, 8, rule={"kind": "neural"}, initial_std=0.3)
    gradients = torch.autograd.grad(
        discounted_return(next(iter(source)), torch.ones(1)).sum(), list(policy.parameters()), allow_unused=True
    )
    found = [g for g in gradients if g is not None]
    assert all(bool(g.isfinite().all()) for g in found)
    assert any(bool((g != 0).any()) for g in found)
    require_differentiable(TensorEnv(WORLDS[name], 1), policy, 4)


def test_a_swarm_finds_the_riccati_optimum() -> None:
    """Within 5 % after 60 gradient steps."""
    policy, source = parts(Drift(), 8, 10, rule={"low": -2.0, "high": 2.0})
    settings = LearnerConfig(steps=10, learning_rate=5e-2, learning_rate_end=1e-3, discount=1.0)
    learner = Pathwise(policy, settings, 1, 1, 60)
    for _, batch in zip(range(60), source):
        terms = learner.update(batch)
    assert terms["discounted_return"].shape == terms["gradient"].shape == (1,)
    earned = float(play(TensorEnv(Drift(), 100), MeanRule(policy), 400, 7).per_agent.mean())
    assert Drift().best() * 1.05 < earned < Drift().best() * 0.97


def test_the_gradient_s_length_is_told_before_it_is_clipped() -> None:
    policy, source = parts(Drift(), 8, 10)
    settings = LearnerConfig(steps=10, max_grad_norm=1e-3, discount=1.0)
    batch = next(iter(source))
    value = discounted_return(batch, torch.ones(1)).sum()
    slopes = torch.autograd.grad(value, list(policy.parameters()), retain_graph=True, materialize_grads=True)
    length = torch.cat([slope.flatten() for slope in slopes]).norm()
    assert length > 1e-2
    torch.testing.assert_close(Pathwise(policy, settings, 1, 1).update(batch)["gradient"], length.view(1))


def test_two_seeds_trained_as_one_are_two_runs(tmp_path: Path) -> None:
    settings = config(**{"learner.max_grad_norm": 0.1})
    together = recipe.train(settings, Run(tmp_path / "both", settings, [0, 1]))
    for seed in (0, 1):
        single = config(**{"learner.max_grad_norm": 0.1, "seed": seed})
        alone = recipe.train(single, Run(tmp_path / str(seed), single))
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(together.state_dict()[name][seed], value[0], atol=1e-5, rtol=1e-4)


def test_a_run_goes_on_from_the_middle_of_episodes_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gru = {"learner.steps": 4, "learner.sequence_length": 4, "learner.minibatches": 1, "policy.network.kind": "gru"}
    whole = config(**gru, **{"learner.learning_rate_end": 1e-4, "train.save_seconds": 0})
    update = Pathwise.update

    def cut(learner: Pathwise, batch: Any) -> dict[str, Tensor]:
        if learner.progress.done == 3:
            raise KeyboardInterrupt
        return update(learner, batch)

    monkeypatch.setattr(Pathwise, "update", cut)
    with pytest.raises(KeyboardInterrupt):
        recipe.train(whole, Run(tmp_path / "cut", whole))
    monkeypatch.undo()
    found = [recipe.train(whole, Run(tmp_path / name, whole)).state_dict() for name in ("cut", "whole")]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[1])
    states = [Run(tmp_path / name, whole).load("train", "optimizer") for name in ("cut", "whole")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])


def test_a_whole_run_reports_as_ever(tmp_path: Path) -> None:
    report = run_training(config(), tmp_path / "run")
    assert report.metrics["return_per_agent"].value < 0
    assert "discounted_return" in (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env.args.choices": 3}, "needs real actions.*LinearQuadratic.*gradient=score"),
        ({"env.world": "envs.swarm:SIS"}, "needs real actions.*LinearQuadratic.*gradient=score"),
        ({"env.world": "test_mean_field_pathwise:Silent"}, "Silent carries no gradient.*gradient=score"),
        (
            {"env": {"pettingzoo": "mpe2.simple_spread_v3:parallel_env", "args": {"continuous_actions": True}}},
            "needs a native world.*gradient=score",
        ),
        ({"policy.rule.kind": "table"}, "cannot see the jumps"),
        ({"learner.entropy": 0.1}, "no use for learner.entropy"),
        ({"advantage": "own"}, "no use for advantage"),
        ({"gradient": "exact"}, "gradient: expected 'score' or 'pathwise'"),
    ],
)
def test_what_has_no_gradient_is_told_before_training(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        run_training(config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_only_native_worlds_give_graphs() -> None:
    policy, _ = parts(Drift(4), 2, 4)
    foreign = make_env(EnvConfig(pettingzoo="mpe2.simple_spread_v3:parallel_env"), num_envs=1)
    with closing(foreign) as env, pytest.raises(InputError, match=r"native world \(env.world\); a PettingZooEnv"):
        Differentiable(env, policy, steps=1, streams=Streams([0]), seeds=[0])
