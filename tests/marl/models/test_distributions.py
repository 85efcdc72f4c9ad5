"""Joint distributions against torch's own and against counting."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor
from torch.distributions import Categorical, Normal, kl_divergence

from envs.core import Continuous, Streams
from marl.models.distributions import (
    FEW_CHOICES,
    ILLEGAL,
    MANY_NUMBERS,
    ActionUnits,
    IndependentCategorical,
    IndependentGaussian,
    log_softmax,
    require_same_kind,
    softmax,
)

CHOICES = (3, 2, 4)


def random_logits(rows: int = 5, agents: int = 2, seed: int = 0) -> Tensor:
    return 2 * torch.randn(rows, agents, sum(CHOICES), generator=torch.Generator().manual_seed(seed))


def random_legal(shape: torch.Size, seed: int = 1) -> Tensor:
    """The first choice of each component is always legal."""
    legal = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    legal[..., [0, 3, 5]] = True
    return legal


def components(x: Tensor) -> list[Tensor]:
    return list(x.split(CHOICES, -1))


@pytest.mark.parametrize("rows", [5, 500], ids=["few rows", "many rows"])
def test_categorical_log_probabilities_and_entropies_are_torch_s(rows: int) -> None:
    logits = random_logits(rows)
    joint = IndependentCategorical(logits, CHOICES)
    theirs = [Categorical(logits=part) for part in components(logits)]
    decision = joint.sample(Streams([0]))
    action = decision.action
    assert action.shape == (rows, 2, 3)
    wanted = torch.stack([d.log_prob(action[..., i]) for i, d in enumerate(theirs)]).sum(0)
    assert decision.log_prob is not None
    torch.testing.assert_close(joint.log_prob(decision), wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(decision.log_prob, wanted, atol=1e-5, rtol=1e-5)
    entropy = torch.stack([d.entropy() for d in theirs]).sum(0)
    torch.testing.assert_close(joint.entropy(decision), entropy, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(joint.log_probs(), torch.cat([d.logits for d in theirs], -1), atol=1e-5, rtol=1e-5)


def test_a_categorical_s_mode_is_the_most_probable_legal_choice_of_each_component() -> None:
    logits = random_logits()
    legal = random_legal(logits.shape)
    joint = IndependentCategorical(logits, CHOICES, legal)
    best = torch.stack([part.argmax(-1) for part in components(logits.masked_fill(~legal, -torch.inf))], -1)
    mode = joint.mode()
    assert torch.equal(mode.action, best)
    assert mode.log_prob is not None
    assert torch.equal(mode.log_prob, joint.log_prob(mode))


def test_illegal_choices_have_probability_zero_and_are_never_drawn() -> None:
    logits = random_logits(2000)
    logits[..., 1] = 50.0  # what is illegal may look best
    legal = random_legal(logits.shape)
    joint = IndependentCategorical(logits, CHOICES, legal)
    assert bool((joint.log_probs().exp()[~legal] == 0).all())
    torch.testing.assert_close(joint.log_probs().exp().sum(-1), torch.full((2000, 2), 3.0))
    for decision in (joint.sample(Streams([0])), joint.mode()):
        for part, allowed in zip(decision.action.split(1, -1), components(legal), strict=True):
            assert bool(allowed.gather(-1, part).all())


def test_entropy_counts_legal_choices_only() -> None:
    logits = torch.zeros(1, 1, sum(CHOICES))
    legal = torch.tensor([[[True, False, True, True, False, True, True, True, False]]])
    joint = IndependentCategorical(logits, CHOICES, legal)
    expected = torch.tensor([2.0, 1.0, 3.0]).log().sum()
    torch.testing.assert_close(joint.entropy(joint.mode()).squeeze(), expected)


@pytest.mark.parametrize("rows", [2, 500], ids=["few rows", "many rows"])
def test_gradients_are_finite_and_zero_for_what_is_illegal(rows: int) -> None:
    logits = random_logits(rows).requires_grad_()
    legal = random_legal(logits.shape)
    legal[0] = False  # nobody may do anything, as where nobody is alive
    legal[1, :, 1:] = False
    legal[1, :, [3, 5]] = True  # one choice each: nothing to decide
    joint = IndependentCategorical(logits, CHOICES, legal)
    decision = joint.mode()
    (joint.log_prob(decision) + joint.entropy(decision)).sum().backward()
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())
    assert bool((logits.grad[~legal] == 0).all())
    assert bool((logits.grad[1] == 0).all())
    assert decision.log_prob is not None
    assert bool((decision.log_prob[1] == 0).all())


@pytest.mark.parametrize("masked", [False, True])
def test_racing_clocks_draw_with_the_right_frequencies(masked: bool) -> None:
    logits = torch.tensor([1.0, -0.5, 0.3, -3.0, 0.0])
    legal = torch.tensor([True, True, False, True, True]) if masked else torch.ones(5, dtype=torch.bool)
    count = 100_000
    joint = IndependentCategorical(logits.expand(count, 1, -1), (5,), legal.expand(count, 1, -1) if masked else None)
    drawn = torch.bincount(joint.sample(Streams([0])).action.flatten(), minlength=5)[legal]
    expected = logits[legal].softmax(-1).double() * count
    assert chisquare(drawn, expected / expected.sum() * count).pvalue > 1e-3


def test_the_mean_negative_log_probability_of_draws_is_the_entropy() -> None:
    space = Continuous((-1.0, -torch.inf), (3.0, torch.inf))
    mean, log_std = torch.tensor([0.3, -0.2]), torch.tensor([-0.5, 0.4])
    shape = (40_000, 1, -1)
    for joint in (
        IndependentCategorical(random_logits(1, 1).expand(40_000, -1, -1), CHOICES),
        IndependentGaussian(mean.expand(shape), log_std.expand(shape), ActionUnits.of([space] * shape[-2])),
    ):
        decision = joint.sample(Streams([0]))
        assert decision.log_prob is not None
        assert -decision.log_prob.mean() == pytest.approx(float(joint.entropy(decision)[0, 0]), abs=0.02)


def test_gaussians_are_torch_s_in_the_units_of_the_space() -> None:
    """Bounded components are centered and as wide as their half-range; unbounded ones stay as they are."""
    units = ActionUnits.of(
        [Continuous((-1.0, -torch.inf, 0.0), (3.0, torch.inf, torch.inf)), Continuous((-10.0,), (10.0,))]
    )
    draw = torch.Generator().manual_seed(0)
    mean, log_std = torch.randn(50, 2, 3, generator=draw), torch.randn(50, 2, 3, generator=draw)
    theirs = Normal(
        torch.tensor([[1.0, 0, 0], [0, 0, 0]]) + torch.tensor([[2.0, 1, 1], [10, 1, 1]]) * mean,
        torch.tensor([[2.0, 1, 1], [10, 1, 1]]) * log_std.exp(),
    )
    mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])  # the second agent has one component, of its own width
    joint = IndependentGaussian(mean, log_std, units)
    decision = joint.sample(Streams([0]))
    assert decision.log_prob is not None
    torch.testing.assert_close(decision.log_prob, (theirs.log_prob(decision.action) * mask).sum(-1))
    torch.testing.assert_close(joint.log_prob(decision), decision.log_prob)
    torch.testing.assert_close(joint.entropy(decision), (theirs.entropy() * mask).sum(-1))
    torch.testing.assert_close(joint.mode().action, theirs.mean)
    with pytest.raises(TypeError, match="continuous"):
        joint.log_probs()


def test_gradients_and_values_of_narrow_and_wide_gaussians_are_torch_s_in_64_bits() -> None:
    units = ActionUnits.of([Continuous((-1.0,), (3.0,))] * 2)
    mean = torch.tensor([[[0.3], [-0.2]], [[1e4], [-1e4]], [[0.0], [1e-3]]], requires_grad=True)
    log_std = torch.tensor([[[-14.0], [2.0]], [[-3.0], [8.0]], [[0.0], [-5.0]]], requires_grad=True)
    joint = IndependentGaussian(mean, log_std, units)
    with torch.no_grad():
        decision = joint.sample(Streams([0]))
    inputs = [x.detach().double().requires_grad_() for x in (mean, log_std)]
    # The draw is a number of 32 bits, and so is the mean that it is seen from.
    exact_mean = 1 + 2 * inputs[0]
    rounding = (joint.mode().action - exact_mean).detach()
    theirs = Normal(exact_mean + rounding, 2 * inputs[1].exp())
    for ours, wanted in (
        (joint.log_prob(decision), theirs.log_prob(decision.action.double()).sum(-1)),
        (joint.entropy(decision), theirs.entropy().sum(-1)),
    ):
        torch.testing.assert_close(ours.double(), wanted, atol=1e-3, rtol=1e-5)
        found = torch.autograd.grad(ours.sum(), [mean, log_std], retain_graph=True, allow_unused=True)
        expected = torch.autograd.grad(wanted.sum(), inputs, retain_graph=True, allow_unused=True)
        for grad, exact in zip(found, expected, strict=True):
            assert grad is None or bool(grad.isfinite().all())
            if grad is not None and exact is not None:
                torch.testing.assert_close(grad.double(), exact, atol=1e-3, rtol=1e-3)


def test_gaussian_draws_have_their_mean_and_deviation() -> None:
    units = ActionUnits.of([Continuous((-1.0,), (3.0,))])
    shape = (100_000, 1, 1)
    action = IndependentGaussian(torch.full(shape, 0.5), torch.full(shape, -1.0), units).sample(Streams([0])).action
    assert float(action.mean()) == pytest.approx(2.0, abs=0.01)
    assert float(action.std()) == pytest.approx(2 * math.exp(-1), rel=0.01)


def test_each_policy_draws_from_its_own_stream() -> None:
    logits = random_logits(6)
    together = IndependentCategorical(logits, CHOICES).sample(Streams([5, 6]))
    for p, seed in enumerate((5, 6)):
        alone = IndependentCategorical(logits[3 * p : 3 * p + 3], CHOICES).sample(Streams([seed]))
        assert torch.equal(together.action[3 * p : 3 * p + 3], alone.action)


@pytest.mark.parametrize("choices", [1, 2, 5, FEW_CHOICES])
@pytest.mark.parametrize("rows", [1, MANY_NUMBERS])
def test_softmax_and_its_logarithm_are_the_library_s_with_their_gradients(rows: int, choices: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = 10 * torch.randn(rows, choices, generator=generator, dtype=torch.float64)
    x, slope = x.requires_grad_(), torch.randn(x.shape, generator=generator, dtype=torch.float64)
    for found, wanted in ((softmax(x), x.softmax(-1)), (log_softmax(x), x.log_softmax(-1))):
        torch.testing.assert_close(found, wanted, atol=1e-12, rtol=0)
        grads = [torch.autograd.grad((y * slope).sum(), x)[0] for y in (found, wanted)]
        torch.testing.assert_close(grads[0], grads[1], atol=1e-12, rtol=0)


@pytest.mark.parametrize("rows", [1, MANY_NUMBERS])
def test_huge_logits_and_illegal_ones_are_as_exact_as_in_64_bits(rows: int) -> None:
    x = torch.tensor([[1e4, -1e4, 1e4], [-1e4, -1e4, ILLEGAL], [ILLEGAL] * 3, [1e30, 0.0, 3e38]]).repeat(rows, 1)
    x.requires_grad_()
    exact = x.double().log_softmax(-1)
    torch.testing.assert_close(log_softmax(x).double(), exact, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(softmax(x).double(), exact.exp(), atol=1e-6, rtol=0)
    slope = torch.tensor([1.0, -2.0, 0.5])
    (wanted,) = torch.autograd.grad((exact * slope).sum(), x)
    (found,) = torch.autograd.grad((log_softmax(x) * slope).sum(), x)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


def test_a_nan_among_many_rows_is_not_hidden() -> None:
    x = torch.zeros(MANY_NUMBERS, 3)
    x[5, 1] = torch.nan
    for found in (softmax(x), log_softmax(x)):
        assert found.isnan().all(-1).nonzero().tolist() == [[5]]


TRACED = """
import torch
from envs.core import Continuous, Decision, Streams
from marl.models.distributions import MANY_NUMBERS, ActionUnits, IndependentCategorical, IndependentGaussian

units = ActionUnits.of([Continuous((-1.0,) * 3, (1.0,) * 3)])
x = torch.randn(MANY_NUMBERS, 1, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
kinds = (lambda x: IndependentCategorical(x, (3,)), lambda x: IndependentGaussian(x, x, units))
for kind in kinds:
    def loss(x, action):
        joint, decision = kind(x), Decision(action)
        return (joint.log_prob(decision) + joint.entropy(decision)).mean()

    action = kind(x.detach()).sample(Streams([0])).action
    traced = torch.compile(loss, backend="aot_eager", fullgraph=True)
    found, wanted = (torch.autograd.grad(each(x, action), x)[0] for each in (traced, loss))
    torch.testing.assert_close(found, wanted)
"""


def test_losses_of_both_kinds_are_traced_as_one_graph() -> None:
    """In a process without checks of shapes, which cannot be traced."""
    answer = subprocess.run([sys.executable, "-c", TRACED], capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, answer.stderr


def test_a_component_without_a_range_is_left_alone_and_a_huge_range_is_none() -> None:
    units = ActionUnits.of([Continuous((2.0, -3.4e38, -1.0), (2.0, 3.4e38, 3.0))])
    assert units.present.tolist() == [[0, 1, 1]]
    assert units.middle.tolist() == [[2, 0, 1]]
    assert units.scale.tolist() == [[1, 1, 2]]


def test_real_components_that_do_not_count_enter_neither_log_probability_nor_entropy() -> None:
    units = ActionUnits.of([Continuous((-1.0, 0.0), (1.0, math.inf))] * 2)
    mean, log_std = torch.randn(4, 2, 2), torch.zeros(4, 2, 2)
    legal = torch.tensor([[True, True], [False, False]]).expand(4, -1, -1)
    masked, full = IndependentGaussian(mean, log_std, units, legal), IndependentGaussian(mean, log_std, units)
    decision = full.sample(Streams([0]))
    assert torch.equal(masked.log_prob(decision)[:, 0], full.log_prob(decision)[:, 0])
    assert torch.equal(masked.entropy(decision)[:, 0], full.entropy(decision)[:, 0])
    assert not masked.log_prob(decision)[:, 1].any()
    assert not masked.entropy(decision)[:, 1].any()


def test_divergences_are_torch_s_where_choices_are_legal_and_components_present() -> None:
    here, there = random_logits(seed=0), random_logits(seed=2)
    pairs = zip(components(here), components(there))
    wanted = torch.stack([kl_divergence(Categorical(logits=p), Categorical(logits=q)) for p, q in pairs]).sum(0)
    found = IndependentCategorical(here, CHOICES).kl(IndependentCategorical(there, CHOICES))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    legal = random_legal(here.shape)
    moved = torch.where(legal, there, there + 9)
    limited = [IndependentCategorical(logits, CHOICES, legal) for logits in (here, there, moved)]
    torch.testing.assert_close(limited[0].kl(limited[1]), limited[0].kl(limited[2]))
    assert not torch.allclose(limited[0].kl(limited[1]), found)

    units = ActionUnits.of([Continuous((-1.0, 0.0), (3.0, 1.0)), Continuous((-1.0,), (1.0,))])
    generator = torch.Generator().manual_seed(3)
    mean, log_std, other_mean, other_log_std = torch.randn(4, 5, 2, 2, generator=generator).unbind()
    real = IndependentGaussian(mean, log_std, units).kl(IndependentGaussian(other_mean, other_log_std, units))
    # Units scale and shift both alike, which leaves divergences as they are; the second agent has one component.
    plain = kl_divergence(Normal(mean, log_std.exp()), Normal(other_mean, other_log_std.exp()))
    plain[:, 1, 1] = 0
    torch.testing.assert_close(real, plain.sum(-1), atol=1e-5, rtol=1e-5)


def test_distributions_of_different_kinds_have_no_divergence() -> None:
    units = ActionUnits.of([Continuous((-1.0,), (1.0,))])
    real = IndependentGaussian(torch.zeros(2, 1, 1), torch.zeros(2, 1, 1), units)
    with pytest.raises(TypeError, match="distributions of one kind"):
        require_same_kind(IndependentCategorical(torch.zeros(2, 1, 3), (3,)), real)
