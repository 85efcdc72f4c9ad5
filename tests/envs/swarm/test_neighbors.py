"""Three ways to find neighbors, against pairs counted one by one and against one another."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from envs.core import ConcordError, InputError
from envs.swarm import tree
from envs.swarm.headings import unit
from envs.swarm.manifolds import EDGES, Manifold
from envs.swarm.neighbors import Neighborhood
from envs.swarm.sums import Sums

SURFACES = pytest.mark.parametrize("name", sorted(EDGES))


def swarm(rows: int, agents: int, size: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    position = size * torch.rand(rows, agents, 2, generator=generator)
    return position, unit(7 * torch.rand(rows, agents, generator=generator))


def sums(method: str, manifold: Manifold, radius: float, position: Tensor, vectors: Tensor) -> Sums:
    return Neighborhood(manifold, radius, method).around(position).sums(vectors)


@SURFACES
@pytest.mark.parametrize("method", ["dense", "tree"])
@pytest.mark.parametrize("radius", [0.2, 0.6])
def test_the_sum_over_pairs_that_are_near(name: str, method: str, radius: float) -> None:
    manifold, (position, vectors) = Manifold(name, 0.8), swarm(3, 60, 0.8)
    way, signs = manifold.displacement(
        *(p.expand(3, 60, 60, 2) for p in (position.unsqueeze(2), position.unsqueeze(1)))
    )
    near = (way.norm(dim=-1) <= radius).float().unsqueeze(-1)
    found = sums(method, manifold, radius, position, vectors)
    torch.testing.assert_close(found.total, (near * signs * vectors.unsqueeze(1)).sum(2), atol=1e-5, rtol=0)
    assert torch.equal(found.number, near.sum((2, 3)))


@SURFACES
def test_dense_and_tree_agree(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the pairs are found in several blocks."""
    monkeypatch.setattr(tree, "PAIRS_AT_ONCE", 5_000)
    manifold, (position, vectors) = Manifold(name), swarm(4, 300, seed=1)
    dense, found = (sums(method, manifold, 0.15, position, vectors) for method in ("dense", "tree"))
    torch.testing.assert_close(found.mean(), dense.mean(), atol=1e-5, rtol=0)
    assert torch.equal(found.number, dense.number)


@SURFACES
def test_a_grid_agrees_nearly_where_its_cells_are_small(name: str) -> None:
    """Headings that vary over the square: a wrong place or a forgotten flip would show."""
    manifold, (position, _) = Manifold(name, 0.9), swarm(2, 3000, 0.9, seed=2)
    vectors = unit(3 * position[..., 0] + 2 * position[..., 1].square())
    exact, grid = (sums(method, manifold, 0.15, position, vectors) for method in ("tree", "grid"))
    # Near the projective plane's corners the grid sees two copies of an agent.
    corner = torch.minimum(position, 0.9 - position).norm(dim=-1) < (0.16 if name == "projective" else 0)
    error = (exact.mean() - grid.mean()).norm(dim=-1)[~corner]
    assert error.max() < 0.06
    assert error.mean() < 0.006
    assert ((exact.number - grid.number).abs() / exact.number)[~corner].mean() < 0.01


def test_a_grid_counts_all_agents_of_a_uniform_swarm() -> None:
    """On the torus, the mean count is N π r²."""
    position, vectors = swarm(2, 20_000)
    count = sums("grid", Manifold(), 0.1, position, vectors).number
    assert count.mean().item() == pytest.approx(20_000 * math.pi * 0.01, rel=0.01)
    lone = sums("grid", Manifold(), 0.1, torch.rand(1, 1, 2), torch.tensor([[[0.6, -0.8]]]))
    torch.testing.assert_close(lone.mean(), torch.tensor([[[0.6, -0.8]]]), atol=1e-4, rtol=0)
    assert torch.equal(lone.without(torch.tensor([[[0.6, -0.8]]])).mean(), torch.zeros(1, 1, 2))


@pytest.mark.parametrize("method", ["dense", "tree", "grid"])
def test_a_neighbor_over_a_flipped_edge_is_seen_mirrored(method: str) -> None:
    """On the Klein bottle (0.3, 0.99) looks at (0.7, 0.01) over the top edge, which mirrors x."""
    position = torch.tensor([[[0.3, 0.99], [0.7, 0.01], [0.7, 0.99]]])
    vectors = torch.tensor([[[0.0, 1.0], [0.6, 0.8], [1.0, 0.0]]])
    found = sums(method, Manifold("klein"), 0.1, position, vectors)
    expected = torch.tensor([[[-0.6, 1.8], [0.6, 1.8], [1.0, 0.0]]])
    torch.testing.assert_close(found.total, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", ["dense", "tree"])
def test_of_two_copies_equally_near_one_counts(method: str) -> None:
    """On the diagonal of the projective plane, over the right edge is as near as over the top."""
    position = torch.tensor([[[1 / 16, 1 / 16], [15 / 16, 15 / 16]]])
    found = sums(method, Manifold("projective"), 0.2, position, torch.ones(1, 2, 2))
    assert found.number.tolist() == [[2, 2]]


@pytest.mark.parametrize("method", ["dense", "tree", "grid"])
@pytest.mark.parametrize(("name", "axis"), [("torus", 0), ("torus", 1), ("moebius", 0), ("klein", 1)])
def test_local_means_do_not_change_where_the_whole_swarm_is_shifted(method: str, name: str, axis: int) -> None:
    """Shifts that commute with the gluing move every agent, some over a flipped edge, and no mean but its frame."""
    manifold, (position, vectors) = Manifold(name), swarm(2, 400, seed=3)
    heading = torch.atan2(vectors[..., 1], vectors[..., 0])
    # Half the square: a whole number of cells, so that the grid is moved onto itself.
    shifted, turned = manifold.wrap(position + 0.5 * torch.eye(2)[axis], heading)
    before = sums(method, manifold, 0.15, position, vectors).mean()
    after = sums(method, manifold, 0.15, shifted, unit(turned)).mean()
    torch.testing.assert_close((before * vectors).sum(-1), (after * unit(turned)).sum(-1), atol=2e-3, rtol=0)
    torch.testing.assert_close(before.norm(dim=-1), after.norm(dim=-1), atol=2e-3, rtol=0)


def test_vectors_have_gradients_by_every_method() -> None:
    position, vectors = swarm(1, 50)
    gradients = []
    for method in ("dense", "tree", "grid"):
        with torch.inference_mode():  # what is kept from there must not stand in the way
            sums(method, Manifold("klein"), 0.2, position, vectors)
        leaf = vectors.clone().requires_grad_()
        sums(method, Manifold("klein"), 0.2, position, leaf).total.square().sum().backward()
        gradients.append(leaf.grad)
    assert gradients[0] is not None
    torch.testing.assert_close(gradients[0], gradients[1])
    assert gradients[2] is not None
    assert (gradients[2] - gradients[0]).norm() < 0.2 * gradients[0].norm()


class LargestTensor(TorchDispatchMode):
    """The most elements of any tensor that was made."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        leaves = made if isinstance(made, (tuple, list)) else (made,)
        self.elements = max([self.elements, *(leaf.numel() for leaf in leaves if isinstance(leaf, Tensor))])
        return made


@pytest.mark.parametrize(("method", "agents", "most"), [("tree", 3_000, 200_000), ("grid", 100_000, 1_000_000)])
def test_memory_grows_with_agents_not_with_pairs(
    method: str, agents: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pairs are 2.5 million and 3 billion."""
    monkeypatch.setattr(tree, "PAIRS_AT_ONCE", 50_000)
    position, vectors = swarm(1, agents)
    with LargestTensor() as largest:
        found = sums(method, Manifold(), 0.3, position, vectors)
    assert largest.elements < most
    assert found.number.sum() > agents**2 / 4


def test_auto_chooses_by_the_number_of_agents() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    wide, tiny = Neighborhood(Manifold(), 0.15), Neighborhood(Manifold(), 1e-4)
    assert [wide.method_for(n, cpu) for n in (200, 512, 513, 4096, 4097, 10**6)] == ["dense"] * 2 + ["tree"] * 2 + [
        "grid"
    ] * 2
    assert [wide.method_for(n, gpu) for n in (200, 513)] == ["dense", "grid"]
    assert tiny.method_for(10**6, cpu) == "tree", "no grid is fine enough"


@pytest.mark.parametrize(
    ("radius", "method", "cells", "match"),
    [
        (0.0, "auto", None, "radius must be above 0; got 0"),
        (math.nan, "auto", None, "radius"),
        (0.1, "gird", None, "Did you mean grid"),
        (0.1, "grid", 5, "cells=5"),
        (1e-4, "grid", None, "tree"),
        (1.5, "grid", None, "within the square"),
        (0.1, "grid", 0, "at least 1 cell"),
    ],
)
def test_bad_arguments_are_input_errors(radius: float, method: str, cells: int | None, match: str) -> None:
    with pytest.raises(InputError, match=match):
        Neighborhood(Manifold(), radius, method, cells)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_place_that_is_no_number_is_told(number: float) -> None:
    position, _ = swarm(2, 5)
    position[1, 3, 0] = number
    with pytest.raises(ConcordError, match="place of an agent became NaN or infinite"):
        Neighborhood(Manifold(), 0.1, "tree").around(position)
