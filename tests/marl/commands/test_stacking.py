"""P policies trained as one are P policies trained alone."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import ATTENTION, GRU, LOCAL, MESSAGES, Mortals, assert_close, build
from torch import Tensor
from worlds import Walk

from envs.core import Streams, Tree, tree_map
from envs.speaker_listener import SpeakerListener
from envs.world import World
from marl.algorithms.mappo import recipe
from marl.config.load import resolve
from marl.learning.batch import Batch, minibatches, segment_rows
from marl.learning.scalarization import Team
from marl.training.checkpoints import checkpoints, load_checkpoint
from marl.training.policy_rows import take_from_checkpoint
from marl.training.run import Run

SETUPS: dict[str, tuple[World[Any], dict[str, Any]]] = {
    "mlp": (Mortals(), {"scale_values": True}),
    "gru": (Mortals(), {"policy": GRU, "critic": GRU, "sequence_length": 4, "scale_values": True}),
    "attention": (Mortals(), {"policy": ATTENTION, "critic": LOCAL, "weigh": Team}),
    "message_passing": (Mortals(), {"policy": MESSAGES, "critic": {**MESSAGES, **LOCAL}}),
    "by kind": (SpeakerListener(), {"time_limit": 5}),
    "gaussian": (Walk(), {"time_limit": 5}),
}
SEEDS = (3, 1, 4, 5, 9)


def of_policy(batch: Batch, number: int) -> Tree:
    """The rows, memories and outcome of one of several policies."""
    return tree_map(
        lambda x: x.unflatten(0, (batch.policies, -1))[number],
        tuple(getattr(batch, f.name) for f in dataclasses.fields(batch)[3:]),
    )


@pytest.mark.parametrize("name", SETUPS)
def test_each_of_five_policies_acts_learns_and_saves_as_it_would_alone(name: str) -> None:
    world, settings = SETUPS[name]
    together = build(world, 4, seeds=SEEDS, **settings)
    alone = [build(world, 4, seeds=(seed,), **settings) for seed in SEEDS]
    for update, batch in zip(range(2), together.source):
        terms = together.learner.update(batch)
        for p, single in enumerate(alone):
            own = next(iter(single.source))
            # The same decisions, drawn alike; what they were based on differs by rounding, which one update magnifies.
            assert torch.equal(of_policy(batch, p)[2].action, of_policy(own, 0)[2].action) or name == "gaussian"
            assert_close(of_policy(batch, p), of_policy(own, 0), 1e-6 if update == 0 else 1e-5)
            own_terms = single.learner.update(own)
            assert_close({key: value[p : p + 1] for key, value in terms.items()}, own_terms, 1e-4)

    def saved(run: Any) -> dict[str, Any]:
        state = {"learner": run.learner.state_dict(), "source": run.source.state_dict()}
        counts = {"wall_seconds": 5.0, "cpu_seconds": 5.0, "env_steps": 64}
        return {**copy.deepcopy(state), "used": [{**counts, "agent_steps": 10.0 * p} for p in range(5)]}

    for p, single in enumerate(alone):
        part = take_from_checkpoint(saved(together), p, len(SEEDS))
        wanted_counts = {"wall_seconds": 5.0, "cpu_seconds": 1.0, "env_steps": 64, "agent_steps": 10.0 * p}
        assert part.pop("used") == [wanted_counts]
        wanted = saved(single)
        del wanted["used"]
        assert part["learner"].pop("done") == wanted["learner"].pop("done")
        assert_close(part, wanted, 1e-4)
        parameters = [x for key in ("policy", "critic") for x in part["learner"][key].values()]
        assert_close(tuple(parameters), tuple(x.detach() for x in single.parameters()), 1e-5)


def test_a_policy_taken_from_five_continues_alone() -> None:
    together = build(Mortals(), 4, seeds=SEEDS)
    together.train(1)
    state = {
        "learner": together.learner.state_dict(),
        "source": together.source.state_dict(),
        "used": [dict.fromkeys(("wall_seconds", "cpu_seconds"), 1.0)] * 5,
    }
    part = take_from_checkpoint(copy.deepcopy(state), 2, len(SEEDS))
    alone = build(Mortals(), 4)
    alone.learner.load_state_dict(part["learner"])
    alone.source.load_state_dict(part["source"])
    terms, own = together.train(1), alone.train(1)
    assert_close({key: value[2:3] for key, value in terms.items()}, own, 1e-4)


def dealt(seeds: tuple[int, ...], segment: int, count: int) -> list[tuple[Tensor, Tensor]]:
    """Minibatches of 6 steps of 4 environments for each seed: rows [L,S] and numbers of segments [S]."""
    batch = next(iter(build(Mortals(), 4, seeds=seeds, steps=6, sequence_length=segment).source))
    return list(minibatches(batch, count, Streams(seeds)))


@pytest.mark.parametrize("segment", [1, 2, 6])
def test_minibatches_deal_every_row_once_in_segments_that_run_through_time_within_a_policy(segment: int) -> None:
    policies, steps, rows = 3, 6, 4
    parts = dealt((0, 1, 2), segment, 4)
    assert len(parts) == 4
    found = torch.cat([row.flatten() for row, _ in parts])
    assert sorted(found.tolist()) == list(range(policies * steps * rows))
    segments = torch.cat([number for _, number in parts])
    assert sorted(segments.tolist()) == list(range(policies * steps // segment * rows))
    for row, number in parts:
        policy, step, env = row // (steps * rows), row // rows % steps, row % rows
        owner = torch.arange(policies).repeat_interleave(row.shape[1] // policies)
        assert torch.equal(policy, owner.expand(segment, -1)), "equal shares, policy by policy"
        assert torch.equal(env, env[:1].expand(segment, -1))
        assert torch.equal(step - step[:1], torch.arange(segment).unsqueeze(1).expand(-1, row.shape[1]))
        assert torch.equal(number, (policy * (steps // segment) + step // segment)[0] * rows + env[0])


def test_a_policy_s_minibatches_are_shuffled_as_they_would_be_alone() -> None:
    for (row, _), (own, _) in zip(dealt((0, 1, 2), 2, 3), dealt((1,), 2, 3), strict=True):
        assert torch.equal(row.unflatten(1, (3, -1))[:, 1] - 24, own)


def test_a_segment_s_rows_are_one_environment_s_steps() -> None:
    batch = next(iter(build(Mortals(), 4, steps=6, sequence_length=2).source))
    rows, segments = segment_rows(torch.tensor([[0, 5]]), batch)
    assert rows.tolist() == [[0, 9], [4, 13]]
    assert segments.tolist() == [0, 5]


def test_each_of_several_seeds_counts_the_steps_of_its_own_living_agents(tmp_path: Path) -> None:
    raw = {"recipe": "marl.algorithms.mappo", "env": {"world": "small_runs:Mortals", "num_envs": 4}}
    settings = {"learner.steps": 8, "train.env_steps": 64, "policy.network.hidden": [8], "device": "cpu"}
    config = resolve(raw, settings)

    def agent_steps(folder: str, seeds: tuple[int, ...]) -> list[float]:
        run = Run(tmp_path / folder, config, seeds)
        recipe.train(config, run)
        newest = checkpoints(run.folder / "checkpoints" / "train")[-1]
        return [used["agent_steps"] for used in load_checkpoint(newest)["used"]]

    together = agent_steps("together", (0, 1, 2))
    assert together == [agent_steps(f"seed={seed}", (seed,))[0] for seed in (0, 1, 2)]
    assert len(set(together)) > 1
