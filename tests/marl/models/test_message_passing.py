"""Messages against their equation taken agent by agent, who hears whom, and what only those who hear can solve."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, cast

import pytest
import torch
from pydantic import ValidationError
from small_runs import Mortals, build
from torch import Tensor, nn

from envs.core import Discrete, EnvSpec, InputError, Observation, Streams
from envs.speaker_listener import SpeakerListener
from envs.world import TensorEnv, Transition, World
from marl.evaluation.episodes import play
from marl.models.critics import CriticConfig
from marl.models.layers import NetworkConfig
from marl.models.message_passing import MessagePassing, all_pairs
from marl.models.networks import build_network
from marl.models.policies import IndependentPolicy, PolicyConfig

PLACES = (1, 3)


def network(seeds: tuple[int, ...] = (0,), copies: int = 1, **settings: Any) -> MessagePassing:
    config = NetworkConfig(kind="message_passing", **{"hidden": (8,), "positions": PLACES, **settings})
    net = build_network(config, 4, 3, gain=1.0, copies=copies, streams=Streams(seeds))
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, generator=torch.Generator().manual_seed(5))
    return cast(MessagePassing, net)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def living(rows: int, agents: int) -> Tensor:
    return torch.ones(rows, agents, dtype=torch.bool)


def near(one: Tensor, other: Tensor, radius: float | None, period: float | None) -> Tensor | None:
    """From one place to the other, over all images of the other on the torus; None where that is too far."""
    images = [-1, 0, 1] if period else [0]
    shifts = torch.cartesian_prod(*[torch.tensor(images, dtype=torch.float32) * (period or 0)] * 2)
    offset = min(other + shifts - one, key=lambda way: float(way.norm()))
    if radius is None:
        return offset
    return offset / radius if float(offset.norm()) <= radius else None


def by_hand(net: MessagePassing, x: Tensor, alive: Tensor, config: dict[str, Any]) -> Tensor:
    """One row of one copy, x [N,D] -> [N,out], message by message."""
    agents = range(len(x))
    trunk, output = net.trunk.layers[0], net.output
    h = [(view @ trunk.weight[0] + trunk.bias[0, 0]).tanh() for view in x]
    for exchange in net.rounds:
        (w, b), (u, c) = ((layer.weight[0], layer.bias[0, 0]) for layer in (exchange.message, exchange.update))
        after = []
        for i in agents:
            told = []
            for j in agents:
                way = near(x[i, PLACES], x[j, PLACES], config["radius"], config["period"])
                if i != j and way is not None and alive[i] and alive[j]:
                    told.append((torch.cat([h[i], h[j], way]) @ w + b).tanh())
            heard = torch.zeros_like(h[i])
            if told:
                heard = torch.stack(told).amax(0) if config["aggregate"] == "max" else torch.stack(told).mean(0)
            after.append(h[i] + (torch.cat([h[i], heard]) @ u + c).tanh())
        h = after
    return torch.stack([view @ output.weight[0] + output.bias[0, 0] for view in h])


@pytest.mark.parametrize("aggregate", ["mean", "max"])
@pytest.mark.parametrize(("radius", "period"), [(1.0, None), (None, None), (0.4, 1.0), (None, 1.0)])
def test_rounds_of_messages_follow_their_equation(aggregate: str, radius: float | None, period: float | None) -> None:
    config = {"radius": radius, "period": period, "aggregate": aggregate}
    net = network(rounds=2, **config)
    x, alive = draw(1, 6, 5, 4), draw(6, 5, seed=1) > -0.5
    if period is not None:
        x[..., PLACES] = x[..., PLACES] % period
    assert 0 < int(alive.sum()) < alive.numel()
    found, _ = net(x, alive, None)
    wanted = torch.stack([by_hand(net, row, mask, config) for row, mask in zip(x[0], alive)])
    torch.testing.assert_close(found[0], wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("aggregate", ["mean", "max"])
def test_where_nobody_is_near_each_agent_decides_as_it_would_alone(aggregate: str) -> None:
    net = network(radius=1e-6, aggregate=aggregate)
    x = draw(1, 3, 5, 4)
    found, _ = net(x, living(3, 5), None)
    alone = torch.cat([net(x[:, :, [i]], living(3, 1), None)[0] for i in range(5)], 2)
    torch.testing.assert_close(found, alone, atol=1e-6, rtol=0)
    within, _ = network(radius=1e6, aggregate=aggregate)(x, living(3, 5), None)
    assert not torch.allclose(found, within, atol=1e-2)


def test_the_dead_neither_send_nor_receive() -> None:
    net, alive = network(), torch.tensor([[True, True, False]])
    x, other, changed = draw(1, 1, 3, 4), draw(1, 1, 3, 4), draw(1, 1, 3, 4)
    other[:, :, 2] = 1e30
    changed[:, :, :2] += 1
    y, unheard, unhearing = (net(z, alive, None)[0] for z in (x, other, changed))
    assert torch.equal(y[:, :, :2], unheard[:, :, :2])
    assert torch.equal(y[:, :, 2], unhearing[:, :, 2])
    assert not torch.allclose(y[:, :, 0], net(x, ~alive | alive, None)[0][:, :, 0])


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_news_travels_a_radius_further_with_each_round(rounds: int) -> None:
    x = draw(1, 1, 5, 4)
    x[..., PLACES] = torch.stack([torch.arange(5.0), torch.zeros(5)], -1)
    x.requires_grad_()
    y, _ = network(radius=1.0, rounds=rounds)(x, living(1, 5), None)
    (slope,) = torch.autograd.grad(y[0, 0, 0].sum(), x)
    assert slope[0, 0].any(-1).tolist() == [i <= rounds for i in range(5)]


@pytest.mark.parametrize("aggregate", ["mean", "max"])
def test_gradients_are_those_of_finite_differences(aggregate: str) -> None:
    net = network((0, 1), copies=2, radius=2.0, period=4.0, aggregate=aggregate, hidden=(3,)).double()
    x, alive = draw(4, 2, 3, 4).double().requires_grad_(), torch.tensor([[True, True, False]]).repeat(4, 1)
    alive[1] = True
    names, values = zip(*net.named_parameters())

    def call(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(net, dict(zip(names, parameters)), (x, alive, None))[0]

    assert torch.autograd.gradcheck(call, (x, *values))


def test_gradients_are_finite_where_nobody_lives() -> None:
    for aggregate in ("mean", "max"):
        net, x = network(aggregate=aggregate), draw(1, 2, 3, 4).requires_grad_()
        y, _ = net(x, ~living(2, 3), None)
        slopes = torch.autograd.grad(y.sum(), [x, *net.parameters()])
        assert all(bool(slope.isfinite().all()) for slope in slopes)


def test_what_some_agents_learned_others_can_play_in_any_number() -> None:
    def policy(agents: int) -> IndependentPolicy:
        config = {"kind": "message_passing", "hidden": (8,), "positions": (0,), "radius": 1.0}
        return IndependentPolicy(Mortals(agents).spec, PolicyConfig(network=config), Streams([0]))

    few, many = policy(2), policy(9)
    few.network.body.output.weight.data.fill_(1.0)
    many.load_state_dict(few.state_dict())
    obs = TensorEnv(Mortals(9), 5).reset(0)
    obs.alive[:, 2:] = False
    pair = Observation(obs.agent[:, :2], obs.state, obs.alive[:, :2], None)
    ours, theirs = (p(o, None)[0].log_probs() for p, o in ((few, pair), (many, obs_without_legal(obs))))
    torch.testing.assert_close(theirs[:, :2], ours, atol=1e-6, rtol=0)


def obs_without_legal(obs: Observation) -> Observation:
    return Observation(obs.agent, obs.state, obs.alive, None)


def test_every_pair_of_different_agents_is_listed_once() -> None:
    for agents in (1, 2, 5):
        receiver, sender = all_pairs(agents, torch.device("cpu"))
        found = list(zip(receiver.tolist(), sender.tolist()))
        assert found == [(i, j) for i in range(agents) for j in range(agents) if i != j]


# What only those who hear can solve


class Swap(World[Tensor]):
    """Two agents at random places; each sees its place and a fair bit, and earns 1 by saying the other's bit."""

    shows_clock = False

    def __init__(self) -> None:
        self.spec = EnvSpec(("one", "other"), (0, 0), ("right",), (2, 2), (Discrete((2,)),) * 2, 4, horizon=1)

    def initial_noise(self, num: int, generator: torch.Generator) -> Tensor:
        return torch.rand(num, 2, 2, generator=generator)

    def initial(self, noise: Tensor) -> Tensor:
        return torch.stack([noise[..., 0], 2.0 * (noise[..., 1] < 0.5) - 1], -1)

    def transition(self, state: Tensor, action: Tensor, noise: None) -> Transition:
        right = (action.squeeze(-1) == (state.flip(1)[..., 1] > 0)).float()
        return Transition(state, right.unsqueeze(-1))

    def observe(self, state: Tensor) -> Observation:
        return Observation(state, state.flatten(1), torch.ones(state.shape[:2], dtype=torch.bool))


def learned(**network: Any) -> float:
    """The mean return of an agent after 30 updates."""
    places = {"positions": (0,)} if network["kind"] == "message_passing" else {}
    network = {"hidden": (16,), **places, **network}
    parts = {"policy": {"network": network}, "critic": {"sees": "agent", "network": network}}
    small = build(Swap(), 64, steps=8, epochs=4, learning_rate=0.01, **parts)
    small.train(30)
    return float(play(TensorEnv(Swap(), 256), small.policy, 1024, seed=1).per_agent.mean())


def test_agents_who_tell_one_another_say_each_other_s_secret() -> None:
    assert learned(kind="message_passing", radius=2.0, rounds=1) > 0.95


@pytest.mark.parametrize("silent", [{"kind": "mlp"}, {"kind": "message_passing", "radius": 1e-6}], ids=["mlp", "far"])
def test_silent_agents_can_only_guess_it(silent: dict[str, Any]) -> None:
    assert 0.45 < learned(**silent) < 0.55


# What is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"positions": (1, 1)}, "each column once"),
        ({"positions": (-1,)}, "greater than or equal to 0"),
        ({"radius": 0.0, "positions": (0,)}, "greater than 0"),
        ({"period": -1.0, "positions": (0,)}, "greater than 0"),
        ({"radius": 1.0}, "radius needs positions"),
        ({"period": 1.0}, "period needs positions"),
        ({"rounds": 0}, "greater than or equal to 1"),
        ({"aggregate": "sum"}, "'mean' or 'max'"),
    ],
)
def test_distances_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        NetworkConfig(kind="message_passing", **settings)


def test_places_that_an_observation_does_not_hold_are_refused() -> None:
    with pytest.raises(InputError, match=r"0 to 3 here; got \[4\]"):
        network(positions=(1, 4))
    config = PolicyConfig(network={"kind": "message_passing", "positions": (4,)}, share="all")
    with pytest.raises(InputError, match=r"0 to 2 here; got \[4\]"):  # the speaker sees 3 features, the listener 11
        IndependentPolicy(SpeakerListener().spec, config, Streams([0]))


def test_too_many_agents_for_all_pairs_are_refused() -> None:
    """When the network is built, before a run takes its folder."""
    config = PolicyConfig(network={"kind": "message_passing"})
    with pytest.raises(InputError, match="at most 512; got 513"):
        IndependentPolicy(Mortals(513).spec, config, Streams([0]))


def test_a_critic_of_the_state_has_nobody_to_tell() -> None:
    with pytest.raises(ValidationError, match="sees: agent"):
        CriticConfig(network={"kind": "message_passing"})


def test_the_library_is_imported_only_where_messages_are() -> None:
    code = "import sys, marl.__main__, marl.algorithms.mappo; print('torch_geometric' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True, text=True).stdout
    assert said.split() == ["False"]
