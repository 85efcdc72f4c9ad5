"""Losses against hand-computed values, and what their masks promise."""

from __future__ import annotations

import pytest
import torch

from marl.learning.losses import clipped_surrogate, mean_weights, normalize_by_policy, squared_error


def masked(rows: int = 12, width: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, width, generator=draw) < 0.6
    return 5 + 3 * torch.randn(rows, width, generator=draw), mask


@pytest.mark.parametrize(
    ("ratio", "advantage", "objective", "slope"),
    [
        (1.0, 2.0, 2.0, 2.0),
        (1.5, 2.0, 2.4, 0.0),  # already likelier than allowed: no more reward for it
        (1.5, -2.0, -3.0, -3.0),  # likelier and bad: pushed back
        (0.5, 2.0, 1.0, 1.0),
        (0.5, -2.0, -1.6, 0.0),
    ],
)
def test_the_clipped_surrogate_is_flat_only_where_the_ratio_has_gone_far_in_the_right_direction(
    ratio: float, advantage: float, objective: float, slope: float
) -> None:
    log_prob = torch.tensor([[ratio]]).log().requires_grad_()
    found = clipped_surrogate(log_prob, torch.zeros(1, 1), torch.tensor([[advantage]]), 0.2)
    found.sum().backward()
    assert float(found.detach()) == pytest.approx(objective)
    assert log_prob.grad is not None
    assert float(log_prob.grad) == pytest.approx(slope)


def test_the_squared_error_is_halved_and_summed_over_channels() -> None:
    value, target = torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[[1.0, 4.0, 0.0]]])
    assert squared_error(value, target).tolist() == [[6.5]]


def test_mean_weights_give_each_policy_s_mean_over_what_is_masked_in() -> None:
    x, mask = masked()
    mask[6:9] = False  # the third of four policies has nothing
    weighted = (x * mean_weights(mask, 4)).view(4, -1).sum(1)
    for p, (own, inside) in enumerate(zip(x.chunk(4), mask.chunk(4), strict=True)):
        assert float(weighted[p]) == pytest.approx(float(own[inside].mean()) if p != 2 else 0.0, abs=1e-5)


def test_normalizing_gives_each_policy_mean_0_and_deviation_1_over_what_is_masked_in_and_0_elsewhere() -> None:
    x, mask = masked()
    x[6:] *= 100
    normal = normalize_by_policy(x, mask, 2)
    assert bool((normal[~mask] == 0).all())
    for part, inside in zip(normal.chunk(2), mask.chunk(2), strict=True):
        assert float(part[inside].mean()) == pytest.approx(0, abs=1e-5)
        assert float(part[inside].std(correction=0)) == pytest.approx(1, abs=1e-5)


def test_normalizing_one_policy_does_not_depend_on_another_or_on_what_is_masked_out() -> None:
    x, mask = masked()
    other = x.where(mask, 1e6)
    other[6:] += 1.0
    torch.testing.assert_close(normalize_by_policy(x, mask, 2)[:6], normalize_by_policy(other, mask, 2)[:6])


def test_normalizing_nothing_or_one_number_gives_zeros() -> None:
    x, mask = masked(2, 3)
    mask[:] = False
    mask[1, 1] = True
    assert bool((normalize_by_policy(x, mask, 2) == 0).all())


def test_normalizing_takes_a_number_shared_by_the_team() -> None:
    """`Team` gives every agent the same memory."""
    x, mask = masked(12, 1)
    shared = normalize_by_policy(x.expand(-1, 3), mask.expand(-1, 3), 2)
    torch.testing.assert_close(shared, normalize_by_policy(x, mask, 2).expand(-1, 3))


def test_normalizing_is_free_of_units_and_takes_rounding_for_nothing() -> None:
    x, mask = masked()
    for power in (-20, 20):
        assert torch.equal(normalize_by_policy(x * 2.0**power, mask, 2), normalize_by_policy(x, mask, 2))
    constant = torch.full_like(x, 1234.567)
    assert bool((normalize_by_policy(constant, mask, 2) == 0).all())
    assert bool((normalize_by_policy(torch.zeros_like(x), mask, 2) == 0).all())


@pytest.mark.parametrize("value", [7.1, -7.1, -1e5])
def test_what_does_not_vary_is_0_whatever_its_sign(value: float) -> None:
    mask = torch.rand(40, 3, generator=torch.Generator().manual_seed(0)) < 0.7
    assert not normalize_by_policy(torch.full((40, 3), value), mask, 2).any()
