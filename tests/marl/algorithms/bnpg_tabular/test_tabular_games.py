"""Tables of games: they are the worlds' own, and what is no game is refused."""

import itertools

import pytest
import torch

from envs.core import InputError
from envs.games import CoordinationGame, Identity, climbing, penalty
from envs.world import World
from marl.algorithms.bnpg_tabular.exact import optimum
from marl.algorithms.bnpg_tabular.game import TabularGame, tabulate
from tests.marl.algorithms.bnpg_tabular.small_games import random_game, return_by_summing


@pytest.mark.parametrize("agents", [2, 3, 5])
def test_the_tables_of_the_coordination_game_give_the_optimum_that_the_world_knows(agents: int) -> None:
    world = CoordinationGame(agents, horizon=None)
    game = tabulate(world, 0.95)
    assert optimum(game) == pytest.approx(world.optimal_value([], 0.95), abs=1e-9)


def test_rewards_are_of_the_current_state_and_the_next_state_depends_on_the_action_alone() -> None:
    game = tabulate(CoordinationGame(2, flip=0.1, horizon=None), 0.95)
    assert game.reward.tolist() == [[3.0] * 4, [0.0] * 4, [0.0] * 4, [2.0] * 4]
    torch.testing.assert_close(game.transition[0, 1], torch.tensor([0.09, 0.81, 0.01, 0.09]).double())


@pytest.mark.parametrize("agents", [2, 3, 5])
def test_the_tables_agree_with_a_hundred_thousand_steps_of_the_world(agents: int) -> None:
    world, count = CoordinationGame(agents, horizon=None), 100_000
    game, generator = tabulate(world, 0.95), torch.Generator().manual_seed(0)
    place = 2 ** torch.arange(agents - 1, -1, -1)

    def shares(state: torch.Tensor) -> torch.Tensor:
        return torch.bincount((state.long() * place).sum(-1), minlength=2**agents).double() / count

    start = world.initial(world.initial_noise(count, generator))
    assert (shares(start) - game.start).abs().max() < 0.01
    number = 2**agents - 2
    action = torch.tensor([int(bit) for bit in f"{number:0{agents}b}"]).view(1, -1, 1).expand(count, -1, -1)
    after = world.transition(start, action, world.noise(count, generator))
    assert (shares(after.state) - game.transition[0, number]).abs().max() < 0.01
    assert torch.equal(after.reward[:, 0, 0].double(), game.reward[(start.long() * place).sum(-1), number])


def test_any_start_alike_is_a_distribution_over_all_states() -> None:
    game = tabulate(CoordinationGame(3, horizon=None), 0.95).with_uniform_start()
    assert game.start.tolist() == [1 / 8] * 8


@pytest.mark.parametrize(("world", "best"), [(climbing(), 11), (penalty(), 10)])
def test_a_matrix_game_is_over_after_one_step(world: World, best: float) -> None:
    game = tabulate(world, 0.95)
    assert optimum(game) == pytest.approx(best)
    assert game.transition.sum() == 0


def test_the_optimum_is_that_of_the_best_deterministic_joint_policy() -> None:
    game = random_game((2, 2), 3)
    eye = torch.eye(4, dtype=torch.float64)
    best = max(return_by_summing(game, eye[list(choice)]) for choice in itertools.product(range(4), repeat=3))
    assert optimum(game) == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choices": (2, 3)}, "a column for each joint action"),
        ({"reward": torch.full((3, 4), float("nan")).double()}, "finite"),
        ({"transition": -torch.ones(3, 4, 3).double()}, "not negative"),
        ({"transition": torch.ones(3, 4, 3).double()}, "add up to 1"),
        ({"transition": torch.zeros(1, 4, 3)}, "float64"),
        ({"start": torch.ones(3).double()}, "together 1"),
        ({"discount": 1.0}, r"in \[0, 1\)"),
    ],
)
def test_tables_that_are_no_game_are_refused(change: dict[str, object], message: str) -> None:
    game = random_game((2, 2), 3)
    fields = {name: getattr(game, name) for name in ("choices", "transition", "reward", "start", "discount")}
    with pytest.raises(InputError, match=message):
        TabularGame(**{**fields, **change})  # type: ignore[arg-type]


def test_worlds_without_tables_are_refused() -> None:
    with pytest.raises(InputError, match=r"Set env\.args\.horizon=null"):
        tabulate(CoordinationGame(3), 0.95)
    with pytest.raises(InputError, match="got a Identity"):
        tabulate(Identity(), 0.95)
    with pytest.raises(InputError, match="set the same"):
        tabulate(random_game((2, 2), 3, discount=0.5), 0.95)
