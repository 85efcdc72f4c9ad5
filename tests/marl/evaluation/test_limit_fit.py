"""The fit of a swarm's gap to its limit, on gaps whose slope is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from marl.evaluation.limit_fit import Fit, Gap, differ_in_sign, fit, gaps, standard_error
from marl.output.report import Metric

SIZES = (2, 5, 10, 50, 200)


def slope_of(found: list[Gap], limit_error: float = 0.0, reference: int | None = None) -> Metric:
    line = fit(found, limit_error, reference)
    assert isinstance(line, Fit)
    return line.slope


@pytest.mark.parametrize("power", [-1.0, -0.5])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_slope_of_exact_gaps_is_their_power(power: float, sign: int) -> None:
    found = slope_of([Gap(n, sign * 3 * n**power, 1e-3) for n in SIZES])
    assert found.value == pytest.approx(power, abs=1e-9)
    assert found.low < power < found.high
    assert found.n == len(SIZES)


def test_points_weigh_by_the_square_of_their_gap_over_its_error() -> None:
    """As numpy's polyfit, which takes the square root of the weight."""
    errors = (0.5, 0.02, 0.1, 0.001, 0.01)
    found = [Gap(n, 4 / n + 0.1 * i, e) for i, (n, e) in enumerate(zip(SIZES, errors))]
    x, y = np.log(SIZES), np.log([gap.value for gap in found])
    wanted, covariance = np.polyfit(x, y, 1, w=[gap.value / gap.error for gap in found], cov="unscaled")
    line = slope_of(found)
    assert line.value == pytest.approx(wanted[0], rel=1e-9)
    spread = fit(found).slope  # type: ignore[union-attr]
    assert (spread.high - spread.low) / 2 >= 1.96 * math.sqrt(covariance[0, 0]) * (1 - 1e-9)


@pytest.mark.parametrize("limit_error", [0.0, 0.01])
def test_the_interval_holds_the_slope_in_19_of_20_cases(limit_error: float) -> None:
    """With an error of the limit too, which moves all gaps together."""
    draw, inside, own = np.random.default_rng(0), 0, 0.02
    for _ in range(2000):
        shift = limit_error * draw.standard_normal()
        noisy = [Gap(n, 2 / n - shift + own * draw.standard_normal(), math.hypot(own, limit_error)) for n in (2, 3, 5)]
        line = slope_of(noisy, limit_error)
        inside += line.low < -1 < line.high
    assert 0.93 < inside / 2000 < 0.99  # wider where points happen to lie off the line


def test_gaps_to_the_largest_swarm_are_brought_back_to_gaps_to_the_limit() -> None:
    """J_N = 2/sqrt(N) against that of 1,000 agents: as they stand, gaps fall with a slope of -.55."""
    against = [Gap(n, 2 * n**-0.5 - 2 * 1000**-0.5, 1e-4) for n in (2, 5, 10, 50, 200)]
    assert slope_of(against).value < -0.53
    assert slope_of(against, reference=1000).value == pytest.approx(-0.5, abs=1e-3)


def test_points_off_the_line_widen_the_interval_and_are_doubted() -> None:
    """The demo's gaps rise before they fall."""
    humped = [Gap(n, value, 0.8) for n, value in zip((2, 5, 10, 20, 50, 100), (9.9, 13.2, 12.3, 8.9, 4.7, 3.1))]
    straight = [Gap(n, 10 / n, 0.1 / n) for n in (2, 5, 10, 20)]
    line, good = fit(humped), fit(straight)
    assert line is not None
    assert good is not None
    assert line.doubt is not None
    assert good.doubt is not None
    assert line.doubt < 0.001 < good.doubt
    assert line.slope.high - line.slope.low > 2 * 1.96 * 0.05


def test_gaps_within_three_standard_errors_do_not_count() -> None:
    clear = [Gap(n, 1 / n, 0.01) for n in (2, 10)]
    lost = Gap(1000, 0.029, 0.01)
    assert fit([*clear, lost]) == fit(clear)
    assert not lost.counts
    assert Gap(2, 0.031, 0.01).counts
    assert not Gap(2, 0.066, 0.01, freedom=4.0).counts, "Student's t of 4 degrees exceeds 6.62 as rarely as a normal 3"
    assert Gap(2, 0.067, 0.01, freedom=4.0).counts
    assert fit([clear[0], lost]) is None
    assert fit([]) is None


def test_errors_come_from_intervals_and_add_up() -> None:
    samples = np.random.default_rng(1).normal(size=20)
    one = Metric.mean(samples)
    assert standard_error(one) == pytest.approx(samples.std(ddof=1) / math.sqrt(20))
    assert standard_error(Metric.exact(3)) == 0
    assert standard_error(Metric.mean([1.0])) == math.inf
    (gap,) = gaps({7: one}, Metric(1.0, 0.0, 2.0, 1000))
    assert gap.value == pytest.approx(samples.mean() - 1)
    assert gap.error == pytest.approx(math.hypot(standard_error(one), 1 / 1.9623), rel=1e-3)
    (certain,) = gaps({7: one}, Metric.exact(1.0))
    assert certain.error == pytest.approx(standard_error(one))
    assert certain.freedom == 19
    assert certain.half == pytest.approx((one.high - one.low) / 2, rel=1e-3)


def test_points_of_unknown_error_are_left_out() -> None:
    exact = Metric.exact(0.0)
    same, few = Metric.mean([1.0] * 64), Metric.mean([0.9, 1.0, 1.1, 1.0])
    found = gaps({2: Metric.exact(1.0), 4: Metric.exact(0.5), 8: same, 16: few}, exact)
    assert [gap.has_error for gap in found] == [True, True, False, False]
    assert standard_error(same) == math.inf
    assert fit(found) == fit(found[:2])


def test_gaps_of_opposite_sign_have_no_slope() -> None:
    found = [Gap(2, 0.24, 0.002), Gap(64, -0.024, 0.002)]
    assert differ_in_sign(found)
    assert fit(found) is None
    assert fit([*found, Gap(8, 0.1, 0.002)]) is None
    lost = Gap(256, -0.001, 0.002)
    assert not differ_in_sign([found[0], Gap(8, 0.1, 0.002), lost]), "a gap that does not count has no sign"


def test_two_points_are_no_test_of_a_line() -> None:
    line = fit([Gap(n, 1 / n, 0.001) for n in (2, 8)])
    assert line is not None
    assert line.doubt is None


@pytest.mark.parametrize(("power", "sizes"), [(-0.5, (2, 8, 32)), (-1.0, (4, 8, 16))])
def test_the_interval_of_a_slope_to_the_largest_swarm_holds_it_in_19_of_20_cases(
    power: float, sizes: tuple[int, ...]
) -> None:
    """The slope brings the gaps back to the limit, and so answers to them more than by its lever alone."""
    draw, inside, error = np.random.default_rng(3), 0, 0.003
    for _ in range(800):
        *few, largest = (n**power + error * draw.standard_normal() for n in sizes)
        found = [Gap(n, j - largest, math.hypot(error, error)) for n, j in zip(sizes, few)]
        line = slope_of(found, error, reference=sizes[-1])
        inside += line.low < power < line.high
    assert 0.93 < inside / 800 < 0.97


def test_one_episode_proves_no_gap_and_exact_returns_weigh_alike() -> None:
    assert fit([Gap(2, 1.0, math.inf), Gap(4, 0.5, math.inf)]) is None
    exact = slope_of([Gap(n, 1 / n, 0.0) for n in SIZES])
    assert exact.value == pytest.approx(-1)
