"""Exact identities of the glued squares on random points, with copies found by composing the gluings themselves."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from torch import Tensor

from envs.core import InputError
from envs.swarm.headings import unit
from envs.swarm.manifolds import Manifold

SIZE = 0.7
# What crossing the right edge and the top edge does: signs of x and y, then offsets in sides. None is a wall.
GLUINGS: dict[str, tuple[tuple[int, ...] | None, tuple[int, ...] | None]] = {
    "box": (None, None),
    "torus": ((1, 1, 1, 0), (1, 1, 0, 1)),
    "moebius": ((1, -1, 1, 1), None),
    "klein": ((1, 1, 1, 0), (-1, 1, 1, 1)),
    "projective": ((1, -1, 1, 1), (-1, 1, 1, 1)),
}
EVERY = pytest.mark.parametrize("name", sorted(GLUINGS))


def isometry(sign_x: int, sign_y: int, right: int, up: int) -> Tensor:
    rows = [[sign_x, 0, right * SIZE], [0, sign_y, up * SIZE], [0, 0, 1]]
    return torch.tensor(rows, dtype=torch.float64)


@functools.cache
def deck(name: str) -> Tensor:
    """The isometries whose copy of the square lies within two tiles of it, [g,3,3]."""
    steps = [isometry(*gluing) for gluing in GLUINGS[name] if gluing is not None]
    steps += [torch.linalg.inv(step) for step in steps]
    middle = torch.tensor([SIZE / 2, SIZE / 2, 1]).double()
    found = {(0, 0): torch.eye(3).double()}
    frontier = list(found.values())
    while frontier:
        new = []
        for g in (known @ step for known in frontier for step in steps):
            i, j = (g @ middle / SIZE)[:2].floor().int().tolist()
            if max(abs(i), abs(j)) <= 2 and (i, j) not in found:
                found[i, j] = g
                new.append(g)
        frontier = new
    return torch.stack(list(found.values()))


def points(count: int, seed: int = 0) -> Tensor:
    return SIZE * torch.rand(count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def headings(count: int, seed: int = 9) -> Tensor:
    return 20 * torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 10


def moved(g: Tensor, position: Tensor) -> Tensor:
    return position @ g[:2, :2].T + g[:2, 2]


@EVERY
def test_the_shortest_way_is_the_shortest_to_any_copy_and_carries_vectors_as_that_copy_does(name: str) -> None:
    manifold, p, q, group = Manifold(name, SIZE), points(3000), points(3000, 1), deck(name)
    assert len(group) == {"box": 1, "moebius": 5}.get(name, 25)
    ways = torch.stack([moved(g, q) - p for g in group])
    lengths, which = ways.norm(dim=-1).min(0)
    way, signs = manifold.displacement(p, q)
    torch.testing.assert_close(manifold.distance(p, q), lengths)
    torch.testing.assert_close(way, ways[which, torch.arange(len(p))])
    torch.testing.assert_close(signs, group[which][:, [0, 1], [0, 1]])
    assert (group[which].flatten(1).unique(dim=0).shape[0] > 1) == (name != "box")


@EVERY
def test_distance_is_symmetric_and_keeps_the_triangle_inequality(name: str) -> None:
    manifold, (a, b, c) = Manifold(name, SIZE), (points(3000, seed) for seed in range(3))
    ab, bc, ac = manifold.distance(a, b), manifold.distance(b, c), manifold.distance(a, c)
    torch.testing.assert_close(ab, manifold.distance(b, a))
    assert (ac <= ab + bc + 1e-12).all()
    assert (manifold.distance(a, a) == 0).all()


@EVERY
def test_the_way_there_and_back_carries_a_vector_to_itself(name: str) -> None:
    manifold, p, q = Manifold(name, SIZE), points(1000), points(1000, 1)
    there, signs = manifold.displacement(p, q)
    back, signs_back = manifold.displacement(q, p)
    assert torch.equal(signs, signs_back)
    torch.testing.assert_close(back, -signs * there)


@EVERY
def test_wrapping_undoes_the_isometry_that_led_out_of_the_square(name: str) -> None:
    manifold, p, phi = Manifold(name, SIZE), points(200), headings(200)
    for g in deck(name):
        away = unit(phi) @ g[:2, :2].T
        position, heading = manifold.wrap(moved(g, p), torch.atan2(away[:, 1], away[:, 0]))
        torch.testing.assert_close(position, p)
        torch.testing.assert_close(unit(heading), unit(phi))


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wrapping_twice_is_wrapping_once(name: str, dtype: torch.dtype) -> None:
    manifold = Manifold(name, SIZE)
    away = (8 * points(3000) - 4 * SIZE).to(dtype)
    near_edges = torch.tensor([-1e-9, 0, 1e-9, SIZE, SIZE + 1e-9, 2 * SIZE, -SIZE], dtype=dtype)
    away = torch.cat([away, torch.cartesian_prod(near_edges, near_edges)])
    once = manifold.wrap(away, headings(len(away)).to(dtype))
    assert ((once[0] >= 0) & (once[0] <= SIZE)).all()
    for first, second in zip(once, manifold.wrap(*once), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("name", "step", "there", "heading"),
    [
        ("torus", (0.9, 0.9), (0.1, 0.3), 0.4),
        ("moebius", (0.9, 0.0), (0.1, 0.6), -0.4),
        ("moebius", (0.0, 0.8), (0.2, 0.8), -0.4),  # reflected by the wall
        ("klein", (0.9, 0.0), (0.1, 0.4), 0.4),
        ("klein", (0.0, 0.9), (0.8, 0.3), math.pi - 0.4),
        ("projective", (0.9, 0.9), (0.9, 0.7), math.pi + 0.4),  # over both edges at once: half a turn
        ("box", (0.9, 0.0), (0.9, 0.4), math.pi - 0.4),
        ("box", (0.9, 0.9), (0.9, 0.7), math.pi + 0.4),
    ],
)
def test_crossings_by_hand(name: str, step: tuple[float, float], there: tuple[float, float], heading: float) -> None:
    start = torch.tensor([0.2, 0.4])
    position, phi = Manifold(name).wrap(start + torch.tensor(step), torch.tensor(0.4))
    torch.testing.assert_close(position, torch.tensor(there))
    torch.testing.assert_close(unit(phi), unit(torch.tensor(heading)))


@EVERY
def test_two_crossings_of_the_same_edge_leave_point_and_heading_as_they_were(name: str) -> None:
    manifold, p, phi = Manifold(name, SIZE), points(100), headings(100)
    for step in ((2 * SIZE, 0.0), (0.0, -2 * SIZE)):
        position, heading = manifold.wrap(p + torch.tensor(step), phi)
        torch.testing.assert_close(position, p)
        torch.testing.assert_close(unit(heading), unit(phi))
    halfway = p
    for _ in range(2):
        halfway, phi_there = manifold.wrap(halfway + torch.tensor((SIZE, 0.0)), phi if halfway is p else phi_there)
    torch.testing.assert_close(unit(phi_there), unit(phi))


def test_which_surfaces_let_headings_be_averaged() -> None:
    assert [name for name in sorted(GLUINGS) if Manifold(name).orientable] == ["box", "torus"]


@EVERY
def test_the_unambiguous_radius_is_where_copies_of_one_point_can_meet(name: str) -> None:
    """Two copies within r of a point are within 2r of each other."""
    manifold, p = Manifold(name, SIZE), points(20_000)
    others = [moved(g, p) for g in deck(name) if not torch.equal(g, torch.eye(3).double())]
    closest = min(((copy - p).norm(dim=-1).min().item() for copy in others), default=math.inf)
    assert closest >= 2 * manifold.unambiguous_radius - 1e-12
    if name == "projective":
        assert closest < 0.02, "near a corner"


@pytest.mark.parametrize(("name", "size", "match"), [("kleine", 1.0, "Did you mean klein"), ("torus", 0.0, "above 0")])
def test_bad_arguments_are_input_errors(name: str, size: float, match: str) -> None:
    with pytest.raises(InputError, match=match):
        Manifold(name, size)
