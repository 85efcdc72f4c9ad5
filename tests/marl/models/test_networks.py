"""Stacked networks against torch's own layers, and what each kind promises."""

from __future__ import annotations

import copy as copy_module
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from envs.core import InputError, Streams
from envs.games import climbing
from marl.config.load import resolve
from marl.models import layers
from marl.models.attention import Attention
from marl.models.by_kind import ByKind
from marl.models.gru import GRU
from marl.models.layers import MANY, NARROW, Linear, Network, NetworkConfig, NetworkOptions, Trunk, tanh
from marl.models.networks import build_network
from marl.models.policies import IndependentPolicy, PolicyConfig

KINDS = ("mlp", "gru", "attention", "message_passing")
OPTIONS: dict[str, Any] = {"attention": {"heads": 2}, "message_passing": {"positions": (1, 3), "radius": 1.5}}


def network(kind: str, seeds: tuple[int, ...] = (0,), inputs: int = 4, copies: int = 1) -> Network:
    config = NetworkConfig(kind=kind, hidden=(16, 8), **OPTIONS.get(kind, {}))
    return build_network(config, inputs, 3, gain=1.0, copies=copies, streams=Streams(seeds))


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def memory_of(net: Network, rows: int, agents: int) -> Tensor | None:
    return None if net.memory_shape is None else draw(rows, net.memory_shape[0], agents, net.memory_shape[1], seed=9)


def living(rows: int, agents: int) -> Tensor:
    return torch.ones(rows, agents, dtype=torch.bool)


@pytest.mark.parametrize(("outputs", "rows"), [(NARROW, 5), (3, 5), (1, MANY), (3, MANY), (NARROW, MANY)])
def test_linear_is_torch_s_for_each_copy_with_its_gradients(outputs: int, rows: int) -> None:
    layer = Linear(6, outputs, gain=1.0, copies=2, streams=Streams([0, 1]))
    nn.init.normal_(layer.bias)
    x, slope = draw(4, rows, 6).requires_grad_(), draw(4, rows, outputs, seed=1)
    found = layer(x)
    grads = torch.autograd.grad((found * slope).sum(), [x, layer.weight, layer.bias])
    wanted = torch.stack([F.linear(x[q], layer.weight[q].T, layer.bias[q, 0]) for q in range(4)])
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)
    expected = torch.autograd.grad((wanted * slope).sum(), [x, layer.weight, layer.bias])
    for grad, theirs in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad, theirs, atol=1e-4, rtol=1e-5)


def test_a_narrow_layer_s_gradients_lie_as_its_input_does_and_have_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "SLOW_LIBRARY", True)
    narrow = Linear(6, 3, gain=1.0, copies=2, streams=Streams([0]))
    x = draw(2, MANY, 6).requires_grad_()
    second = []
    for y in (narrow(x), torch.baddbmm(narrow.bias, x, narrow.weight)):
        first = torch.autograd.grad(y.square().sum(), [x, narrow.weight, narrow.bias], create_graph=True)
        second.append(torch.autograd.grad(sum(g.square().sum() for g in first), [x, narrow.weight, narrow.bias]))
        if len(second) == 1:
            assert first[0].is_contiguous()
    for found, wanted in zip(*second, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_copied_network_computes_with_weights_of_its_own(kind: str) -> None:
    net, x = network(kind), draw(1, 5, 3, 4)
    before, _ = net(x, living(5, 3), memory_of(net, 5, 3))
    copy = copy_module.deepcopy(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    after, _ = copy(x, living(5, 3), memory_of(net, 5, 3))
    assert torch.equal(after, before)
    nothing, _ = net(x, living(5, 3), memory_of(net, 5, 3))
    assert not nothing.any()


@pytest.mark.parametrize(("inputs", "outputs"), [(6, 4), (4, 6), (5, 5)])
def test_first_weights_are_orthogonal_with_the_gain_and_biases_zero(inputs: int, outputs: int) -> None:
    layer = Linear(inputs, outputs, gain=1.7, copies=2, streams=Streams([0, 1]))
    for weight in layer.weight.detach():
        gram = weight @ weight.T if inputs <= outputs else weight.T @ weight
        torch.testing.assert_close(gram, 1.7**2 * torch.eye(min(inputs, outputs)), atol=1e-5, rtol=0)
    assert bool((layer.bias == 0).all())
    assert len({tuple(weight.flatten().tolist()) for weight in layer.weight}) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_a_policy_starts_the_same_alone_and_among_others(kind: str) -> None:
    together = network(kind, (3, 4, 5), copies=2).state_dict()
    alone = network(kind, (4,), copies=2).state_dict()
    for name, value in alone.items():
        assert torch.equal(together[name][2:4], value)


def test_tanh_and_its_first_two_derivatives_are_torch_s() -> None:
    x = torch.linspace(-12, 12, 4001).requires_grad_()
    y, wanted = tanh(x), x.tanh()
    torch.testing.assert_close(y, wanted, atol=3e-7, rtol=0)
    for order in (1, 2):
        (y,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        (wanted,) = torch.autograd.grad(wanted.sum(), x, create_graph=True)
        torch.testing.assert_close(y, wanted, atol=order * 1e-6, rtol=0)
    assert torch.equal(tanh(torch.tensor([-1e30, 0.0, 1e30])), torch.tensor([-1.0, 0.0, 1.0]))
    exact = torch.linspace(-3, 3, 50, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(tanh, exact)
    assert torch.autograd.gradgradcheck(tanh, exact)


def test_the_gru_is_torch_s() -> None:
    """r, z = σ(W x + b + U h + c); n = tanh(W x + b + r (U h + c)); h' = (1 - z) n + z h, as nn.GRUCell has it."""
    net = network("gru")
    assert isinstance(net, GRU)
    cell = nn.GRUCell(8, 8)
    for name in ("from_input", "from_memory"):
        nn.init.normal_(getattr(net, name).bias)
    with torch.no_grad():
        cell.weight_ih.copy_(net.from_input.weight[0].T)
        cell.weight_hh.copy_(net.from_memory.weight[0].T)
        cell.bias_ih.copy_(net.from_input.bias[0, 0])
        cell.bias_hh.copy_(net.from_memory.bias[0, 0])
        x, old = draw(1, 7, 2, 4), draw(7, 1, 2, 8, seed=1)
        y, new = net(x, living(7, 2), old)
        wanted = cell(net.trunk(x.reshape(1, 14, 4))[0], old.reshape(14, 8))
    torch.testing.assert_close(new.reshape(14, 8), wanted, atol=1e-6, rtol=0)
    torch.testing.assert_close(y.reshape(14, 3), net.output(wanted.unsqueeze(0))[0].detach(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_copies_do_not_hear_of_one_another(kind: str) -> None:
    """What copy c of policy p gives is what a network of its parameters alone gives."""
    net = network(kind, (0, 1), copies=3)
    x, memory = draw(6, 5, 2, 4), memory_of(net, 10, 2)
    y, kept = net(x, living(10, 2), memory)
    for p in range(2):
        for c in range(3):
            q = 3 * p + c
            alone = network(kind, (p,))
            alone.load_state_dict({name: value[q : q + 1] for name, value in net.state_dict().items()})
            own = None if memory is None else memory[5 * p : 5 * p + 5, c : c + 1]
            wanted, remembered = alone(x[q : q + 1], living(5, 2), own)
            torch.testing.assert_close(y[q : q + 1], wanted, atol=1e-6, rtol=0)
            if memory is not None:
                torch.testing.assert_close(kept[5 * p : 5 * p + 5, c : c + 1], remembered, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_permuting_rows_permutes_what_is_given(kind: str) -> None:
    net = network(kind)
    x, memory, alive = draw(1, 9, 3, 4), memory_of(net, 9, 3), draw(9, 3, seed=2) > 0
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    y, kept = net(x, alive, memory)
    again, kept_again = net(x[:, order], alive[order], None if memory is None else memory[order])
    torch.testing.assert_close(again, y[:, order], atol=1e-6, rtol=0)
    if memory is not None:
        torch.testing.assert_close(kept_again, kept[order], atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_permuting_agents_permutes_what_is_given(kind: str) -> None:
    net = network(kind)
    x, memory, alive = draw(1, 9, 3, 4), memory_of(net, 9, 3), draw(9, 3, seed=2) > 0
    y, _ = net(x, alive, memory)
    again, _ = net(x[:, :, [2, 0, 1]], alive[:, [2, 0, 1]], None if memory is None else memory[:, :, [2, 0, 1]])
    torch.testing.assert_close(again, y[:, :, [2, 0, 1]], atol=1e-6, rtol=0)


def test_attention_hears_the_living_and_nobody_else() -> None:
    net = network("attention")
    assert isinstance(net, Attention)
    x, alive = draw(1, 2, 3, 4), torch.tensor([[True, True, False], [True, True, True]])
    other = x.clone()
    other[:, :, 2] += 100.0
    before, after = net(x, alive, None)[0], net(other, alive, None)[0]
    assert torch.equal(before[:, 0, :2], after[:, 0, :2])
    assert not torch.allclose(before[:, 1, :2], after[:, 1, :2])
    fewer, _ = net(x[:, :1, :2], alive[:1, :2], None)
    torch.testing.assert_close(before[:, :1, :2], fewer, atol=1e-6, rtol=0)


def test_attention_is_finite_where_nobody_lives() -> None:
    x = draw(1, 2, 3, 4).requires_grad_()
    y, _ = network("attention")(x, ~living(2, 3), None)
    y.sum().backward()
    assert x.grad is not None
    assert bool(y.isfinite().all() & x.grad.isfinite().all())


@pytest.mark.parametrize("kind", ["mlp", "gru"])
def test_each_kind_of_agent_has_weights_of_its_own(kind: str) -> None:
    streams = Streams([0])
    config = NetworkConfig(kind=kind, hidden=(8,))
    net = ByKind([1, 0, 1], lambda: build_network(config, 4, 3, gain=1.0, streams=streams))
    x, memory = draw(1, 5, 3, 4).requires_grad_(), memory_of(net, 5, 3)
    y, kept = net(x, living(5, 3), memory)
    assert len(net.networks) == 2
    for number, group in enumerate(([1], [0, 2])):  # kinds in increasing order
        alone = net.networks[number]
        own = None if memory is None else memory[:, :, group]
        wanted, remembered = alone(x[:, :, group], living(5, len(group)), own)
        torch.testing.assert_close(y[:, :, group], wanted)
        if memory is not None:
            torch.testing.assert_close(kept[:, :, group], remembered)
        slopes = torch.autograd.grad(y[:, :, group].sum(), list(net.parameters()), retain_graph=True)
        used = {name.split(".")[1] for (name, _), g in zip(net.named_parameters(), slopes, strict=True) if g.any()}
        assert used == {str(number)}


def test_a_network_of_one_s_own_is_named_by_dotted_path() -> None:
    config = NetworkConfig(kind="test_networks:Constant")
    assert isinstance(build_network(config, 4, 3, gain=1.0, streams=Streams([0])), Constant)
    with pytest.raises(InputError, match="mlp, gru, attention, message_passing"):
        network("transformer")
    with pytest.raises(InputError, match="divide"):
        build_network(NetworkConfig(kind="attention", hidden=(6,)), 4, 3, gain=1.0, streams=Streams([0]))


class Constant(Network):
    """Gives zeros."""

    def __init__(self, inputs: int, outputs: int, config: NetworkConfig, **rest: Any):
        super().__init__()
        self.outputs = outputs

    def forward(self, x: Tensor, alive: Tensor, memory: None) -> tuple[Tensor, None]:
        return x.new_zeros(*x.shape[:3], self.outputs), None


@pytest.mark.parametrize("activation", ["tanh", "relu", "silu"])
def test_a_trunk_is_its_layers_and_activations_in_turn(activation: Any) -> None:
    trunk = Trunk(4, NetworkConfig(hidden=(6, 5), activation=activation), copies=1, streams=Streams([0]))
    x = draw(1, 3, 4)
    wanted = x
    for layer in trunk.layers:
        wanted = getattr(F, activation)(wanted @ layer.weight + layer.bias)
    torch.testing.assert_close(trunk(x), wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["attention", "message_passing"])
def test_who_hears_others_refuses_to_be_split_into_networks_that_never_hear_of_one_another(kind: str) -> None:
    config = NetworkConfig(kind=kind, hidden=(8,))
    with pytest.raises(InputError, match="share: all"):
        ByKind((0, 1), lambda: build_network(config, 3, 2, gain=1.0, streams=Streams([0])))


class Plain(Network):
    """One layer of torch's own, which knows nothing of copies."""

    def __init__(self, inputs: int, outputs: int, config: NetworkConfig, **rest: Any):
        super().__init__()
        self.layer = torch.nn.Linear(inputs, outputs)

    def forward(self, x: Tensor, alive: Tensor, memory: None) -> tuple[Tensor, None]:
        return self.layer(x), None


class Flat(Plain):
    """Gives outputs without memory, in another shape."""

    def forward(self, x: Tensor, alive: Tensor, memory: None) -> Any:
        return self.layer(x).flatten(2)


def policy_of(kind: str, seeds: tuple[int, ...] = (0,)) -> IndependentPolicy:
    config = PolicyConfig(network=NetworkConfig(kind=f"test_networks:{kind}"))
    return IndependentPolicy(climbing().spec, config, Streams(seeds))


def test_a_network_of_one_s_own_is_tried_before_it_is_trained() -> None:
    assert policy_of("Plain").initial_memory(2) is None
    with pytest.raises(InputError, match=r"every parameter has them on its first axis"):
        policy_of("Plain", seeds=(0, 1))
    with pytest.raises(InputError, match=r"must give outputs of shape \[1, 1, 2, 3\]"):
        policy_of("Flat")
    with pytest.raises(InputError, match=r"must name a marl\.models\.layers\.Network"):
        build_network(NetworkConfig(kind="os:getcwd"), 4, 3, gain=1.0, streams=Streams([0]))


class Scaling(Constant):
    """Gives its factor times zeros; has an option of its own."""

    class Options(NetworkOptions):
        factor: float = 1.0

    def __init__(self, inputs: int, outputs: int, config: NetworkConfig, **rest: Any):
        super().__init__(inputs, outputs, config, **rest)
        self.factor = self.Options.of(config).factor


def test_a_kind_has_options_of_its_own_and_no_others() -> None:
    assert NetworkConfig().model_dump().keys() == {"kind", "hidden", "activation"}
    assert NetworkConfig(kind="attention").model_dump()["heads"] == 4
    mine = NetworkConfig(kind="test_networks:Scaling", factor=2.0)
    net = build_network(mine, 4, 3, gain=1.0, streams=Streams([0]))
    assert isinstance(net, Scaling)
    assert net.factor == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"radius": 2.0}, "radius is an option of kind: message_passing, and the kind here is mlp"),
        ({"kind": "message_passing", "raduis": 2.0}, "kind: message_passing has no option raduis; did you mean radius"),
        ({"kind": "message_passing", "rounds": 0}, "rounds\n.*greater than or equal to 1"),
        ({"kind": "test_networks:Scaling", "facto": 2.0}, "did you mean factor"),
        ({"hiden": (3,)}, "hiden\n.*Extra inputs"),
    ],
)
def test_options_are_checked_by_the_kind(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        NetworkConfig(**settings)


def test_what_earlier_versions_saved_of_other_kinds_is_left_out() -> None:
    raw = {"kind": "mlp", "hidden": [8], "heads": 4, "rounds": 2, "positions": [], "radius": None}
    assert NetworkConfig.of_earlier(raw) == {"kind": "mlp", "hidden": [8]}
    assert NetworkConfig.of_earlier({**raw, "kind": "attention"}) == {"kind": "attention", "hidden": [8], "heads": 4}
    config = {"recipe": "marl.algorithms.bnpg", "env": {"world": "small_runs:Mortals", "time_limit": 5}}
    saved = {**config, "policy": {"network": raw, "graph": {"network": {**raw, "kind": "attention"}}}}
    loaded: Any = resolve(saved, {}, saved=True)
    assert loaded.policy.network.hidden == (8,)
    assert loaded.policy.graph.network.options.heads == 4
    with pytest.raises(InputError, match=r"policy\.network: heads is an option of kind: attention"):
        resolve(saved, {})


def test_a_layer_whose_weight_is_made_of_others_is_called_as_any() -> None:
    layer = Linear(6, 3, gain=1.0, copies=2, streams=Streams([0, 1]))
    x = torch.randn(4, 5, 6)
    before = layer(x)
    torch.nn.utils.parametrize.register_parametrization(layer, "weight", torch.nn.Identity())
    assert torch.equal(layer(x), before)
