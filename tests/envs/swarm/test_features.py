"""Mean-field features by hand, and what makes them fit for swarms of any size."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from envs.core import InputError
from envs.swarm import features as module
from envs.swarm.features import Histogram, KernelEmbedding, Moments, frequencies, grid_points, swarm_features

SWARM = torch.tensor([[[0.0, 1.0], [2.0, 1.0], [4.0, 4.0]]])
PLANE = ((-2.0, -2.0), (2.0, 2.0))
EACH = [Moments(2, order=4), Histogram(*PLANE, bins=(3, 4)), KernelEmbedding(grid_points(*PLANE, 3), 0.8)]


def test_moments_are_the_mean_the_variance_and_higher_central_moments() -> None:
    found = Moments(2, order=3)(SWARM)
    # Second dimension: mean 2, deviations -1, -1, 2.
    assert found.tolist() == [pytest.approx([2, 2, 8 / 3, 2, 0, 2], abs=1e-6)]
    assert Moments(2, order=1)(SWARM).tolist() == [[2, 2]]


def test_a_histogram_counts_in_row_major_cells_and_the_outside_in_the_nearest() -> None:
    points = torch.tensor([[[-1.5, 0.1], [-1.5, 0.9], [0.5, -7.0], [9.0, 9.0]]])
    found = Histogram((-2.0, -1.0), (1.0, 1.0), (3, 2))(points)
    assert found.tolist() == [[0, 0.5, 0, 0, 0.25, 0.25]]
    edges = torch.tensor([[[0.0], [0.25], [0.5], [1.0]]])
    assert Histogram((0.0,), (1.0,), 4)(edges).tolist() == [[0.25, 0.25, 0.25, 0.25]]


def test_a_kernel_embedding_is_the_mean_kernel_at_each_control_point() -> None:
    points, at, s = torch.randn(2, 5, 3), torch.randn(4, 3), 0.7
    expected = torch.zeros(2, 4)
    for row in range(2):
        for b in range(4):
            near = [math.exp(-sum((at[b] - x).square()).item() / (2 * s * s)) for x in points[row]]
            expected[row, b] = sum(near) / 5
    torch.testing.assert_close(KernelEmbedding(at, s)(points), expected)
    flat = KernelEmbedding([0.0, 1.0], 1.0)
    assert flat(torch.zeros(1, 2, 1)).tolist() == [pytest.approx([1, math.exp(-0.5)])]


def test_blocks_of_agents_add_up_to_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    points, embedding = torch.randn(2, 1000, 2), EACH[2]
    whole = embedding(points)
    monkeypatch.setattr(module, "BLOCK", 64)
    torch.testing.assert_close(embedding(points), whole)


@pytest.mark.parametrize("features", EACH, ids=lambda f: type(f).__name__)
def test_the_order_of_the_agents_and_copies_of_the_swarm_change_nothing(features: Any) -> None:
    points = torch.randn(3, 40, 2)
    found = features(points)
    assert found.shape == (3, features.size)
    torch.testing.assert_close(features(points[:, torch.randperm(40)]), found)
    torch.testing.assert_close(features(points.repeat(1, 3, 1)), found)
    for row in range(3):
        torch.testing.assert_close(features(points[row : row + 1]), found[row : row + 1])


@pytest.mark.parametrize("features", EACH, ids=lambda f: type(f).__name__)
def test_a_nan_among_the_agents_is_not_hidden_and_stays_in_its_row(features: Any) -> None:
    points = torch.randn(2, 6, 2)
    points[1, 3, 0] = torch.nan
    found = features(points)
    assert found[0].isfinite().all()
    assert found[1].isnan().any()


@pytest.mark.parametrize("features", [EACH[0], EACH[2]], ids=lambda f: type(f).__name__)
def test_moments_and_kernels_are_differentiable(features: Any) -> None:
    points = torch.randn(1, 4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(features, points)


def test_a_million_agents_are_embedded_and_counted() -> None:
    points = torch.rand(1, 1_000_000, 1)
    shares = Histogram((0.0,), (1.0,), 10)(points)
    assert shares.sum().item() == pytest.approx(1, abs=1e-6)
    assert shares.flatten().tolist() == pytest.approx([0.1] * 10, abs=0.002)
    # The mean of exp(-x²/2) over [0, 1].
    normal = math.sqrt(math.pi / 2) * math.erf(1 / math.sqrt(2))
    assert KernelEmbedding([0.0], 1.0)(points).item() == pytest.approx(normal, abs=0.001)


def test_frequencies_are_shares() -> None:
    assert frequencies(torch.tensor([[0, 2, 2, 2], [1, 1, 0, 0]]), 3).tolist() == [[0.25, 0, 0.75], [0.5, 0.5, 0]]


@pytest.mark.parametrize(("name", "size"), [("moments", 4), ("histogram", 49), ("kernel", 49)])
def test_worlds_take_features_by_name_or_any_that_fit(name: str, size: int) -> None:
    assert swarm_features(name, *PLANE).size == size
    own = Moments(2)
    assert swarm_features(own, *PLANE) is own


class WrongSize:
    size = 3

    def __call__(self, points: Tensor) -> Tensor:
        return points.mean(1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KernelEmbedding([0.0], 0.0), "bandwidth must be above 0; got 0"),
        (lambda: KernelEmbedding([0.0], math.nan), "bandwidth must be a finite number"),
        (lambda: KernelEmbedding([], 1.0), "Control points are finite numbers"),
        (lambda: KernelEmbedding([[0.0], [0.0, 1.0]], 1.0), "table of numbers"),  # type: ignore[list-item]
        (lambda: Moments(0), "dimensions >= 1"),
        (lambda: Histogram((1.0,), (1.0,)), "low < high"),
        (lambda: Histogram((0.0,), (1.0,), 0), "at least one bin"),
        (lambda: Histogram((0.0,), (1.0,), (2, 2)), "each of its 1 dimensions"),
        (lambda: Moments(1)(SWARM), "points of 1 dimensions; got 2"),
        (lambda: Histogram((0.0,), (1.0,))(SWARM), "points of 1 dimensions; got 2"),
        (lambda: KernelEmbedding([0.0], 1.0)(SWARM), "points of 1 dimensions; got 2"),
        (lambda: grid_points((0.0,), (1.0,), 1), "at least 2 points"),
        (lambda: swarm_features("rbf", *PLANE), "'moments', 'histogram' or 'kernel'"),
        (lambda: swarm_features(Moments(1), *PLANE), "points of 1 dimensions; got 2"),
        (lambda: swarm_features(WrongSize(), *PLANE), r"must be \[1,size\]"),
    ],
)
def test_features_that_cannot_be_are_input_errors(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
