"""Steps the kitchen and the package overcooked side by side, and counts what differs.

    python benchmarks/peers/kitchen.py DIR [--states 20000] [--played 5000] [--write tests/fixtures/kitchen.npz]

with the Python that has Concord. DIR is where the package and what it needs are installed on first use, beside the
environment and not into it: it asks for pygame, which would overwrite pygame-ce. Recipes belong to a class there, so
that a second kitchen changes the first: each setting is compared in a process of its own.

Compared are the next state, the reward and the shaping of each cook, and all 25 events; and on 2,000 states the 96
features and the 26 planes. States are drawn, any legal state alike, and met in random play; then, until each branch of
the rules was met 200 times, drawn where more can happen: at most two things on counters, half of the cooks facing what
can be used, and in half of them no soup cooks or is held. One line of JSON a setting: transitions, mismatches of each
kind, and how often each branch was met.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

PACKAGES = ("overcooked==0.2.1", "multi-agent-rlenv", "opencv-python-headless", "deprecated", "wrapt")
OLD = ("cramped_room", "asymmetric_advantages", "coordination_ring", "forced_coordination", "counter_circuit")
NEW = (*OLD, "counter_circuit_tomato", "cramped_room_small", "forced_coordination_small", "four_cooks")
SETTINGS = [(name, False) for name in NEW] + [(name, True) for name in (*OLD, "four_cooks")]
NAMES = {"counter_circuit": "counter_circuit_o_1order", "counter_circuit_tomato": "counter_circuit"} | {
    "four_cooks": "multiplayer_schelling"
}
VIEWED = 2000  # states whose encodings are compared
RECORDED = 1000  # transitions of each setting that are written, and a tenth as many encodings
ENOUGH = 200  # times that each branch of the rules is met, wherever the layout allows it
BUSY, TRIES = 20_000, 60  # states among which rare branches are looked for, at most so many times
HORIZON = 400


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--states", type=int, default=20_000)
    parser.add_argument("--played", type=int, default=5_000)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--setting", type=int, help="one of the settings, in this process")
    parser.add_argument("--plan", type=json.loads, help="[layout, old, joint choices]: print what each step pays")
    args = parser.parse_args()
    if args.plan is not None:
        sys.path.append(str(args.folder.resolve()))
        print(json.dumps(paid(*args.plan)))
        return
    if args.setting is not None:
        sys.path.append(str(args.folder.resolve()))
        print(json.dumps(compare(*SETTINGS[args.setting], args.states, args.played, args.write)))
        return
    if not (args.folder / "overcooked").is_dir():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(args.folder)]
        subprocess.run([*pip, *PACKAGES], check=True)
    parts = []
    for number, (name, old) in enumerate(SETTINGS):
        options = ["--states", str(args.states), "--played", str(args.played), "--setting", str(number)]
        if args.write:
            parts.append(args.write.with_name(f"{args.write.stem}-{name}-{'old' if old else 'new'}.npz"))
            options += ["--write", str(parts[-1])]
        subprocess.run([sys.executable, __file__, str(args.folder), *options], check=True)
    if args.write:
        join(parts, args.write)


def paid(name: str, old: bool, plan: list[list[int]]) -> list[float]:
    """What the package pays in all for each step of a plan from the layout's start."""
    from overcooked.mdp.actions import Action

    from envs.kitchen import Kitchen

    mdp = Reference(Kitchen(name, old_dynamics=old, horizon=None), name, old).mdp
    state, rewards = mdp.get_standard_start_state(), []
    for choices in plan:
        state, info = mdp.get_state_transition(state, [Action.INDEX_TO_ACTION[choice] for choice in choices])
        rewards.append(float(sum(info["sparse_reward_by_agent"])))
    return rewards


def join(parts: list[Path], whole: Path) -> None:
    """One file of all settings' recordings, each array under "layout-dynamics/name"."""
    import numpy as np

    arrays = {}
    for part in parts:
        label = part.stem.removeprefix(f"{whole.stem}-")
        arrays |= {f"{label}/{name}": array for name, array in np.load(part).items()}
        part.unlink()
    np.savez_compressed(whole, **arrays)


class Reference:
    """The package's kitchen of one setting, and translations of states."""

    def __init__(self, kitchen: Any, name: str, old: bool):
        from overcooked.mdp.overcooked_mdp import OvercookedGridworld
        from overcooked.planning.planners import MotionPlanner

        self.kitchen, self.codes = kitchen, kitchen.codes
        menu = kitchen.menu
        if name.endswith("_small"):
            package_name = name.removesuffix("_small")
            orders = [{"ingredients": ["onion"] * menu.capacity}]
            changed = {"start_all_orders": orders, "max_num_ingredients": menu.capacity, "cook_time": menu.times[0]}
        else:
            package_name, changed = NAMES.get(name, name), {}
        self.mdp = OvercookedGridworld.from_layout_name(package_name, old_dynamics=old, **changed)
        assert ["".join(row) for row in self.mdp.terrain_mtx] == list(kitchen.layout.rows)
        assert [(y, x) for x, y in self.mdp.start_player_positions] == list(kitchen.layout.starts)
        if len(kitchen.layout.starts) == 2:
            self.planner = SimpleNamespace(motion_planner=MotionPlanner(self.mdp))
            self.planner.motion_planner.min_cost_to_feature = self._nearest

    def _nearest(self, start: Any, cells: list[Any], with_argmin: bool = True) -> tuple[float, Any]:
        """As in overcooked_ai 1.1.0; 0.2.1 lost the argument with which its own features call this."""
        planner, least, nearest = self.planner.motion_planner, float("inf"), None
        for cell in cells:
            for goal in planner.motion_goals_for_pos[cell]:
                if planner.is_valid_motion_start_goal_pair(start, goal):
                    steps = planner.get_gridworld_distance(start, goal)
                    if steps < least:
                        least, nearest = steps, cell
        return least + 1, nearest

    def state(self, pose: list[int], held: list[int], things: list[int], step: int = 0) -> Any:
        """The package's state of a kitchen in integers."""
        from overcooked.mdp.actions import Direction
        from overcooked.mdp.overcooked_mdp import OvercookedState, PlayerState

        players = []
        for p, h in zip(pose, held):
            (row, column), way = self.kitchen.geometry.poses[p]
            at = (column, row)
            players.append(PlayerState(at, Direction.INDEX_TO_DIRECTION[way], self._object(h, at)))
        objects = {}
        for (row, column), code in zip(self.kitchen.geometry.slots, things):
            if code:
                objects[column, row] = self._object(code, (column, row))
        return OvercookedState(
            players,
            objects,
            bonus_orders=self.mdp.start_bonus_orders,
            all_orders=self.mdp.start_all_orders,
            timestep=step,
        )

    def _object(self, code: int, at: tuple[int, int]) -> Any:
        from overcooked.mdp.overcooked_mdp import ObjectState, SoupState

        codes = self.codes
        if code == 0:
            return None
        if code == codes.dish:
            return ObjectState("dish", at)
        if codes.is_food(code):
            return ObjectState(codes.menu.ingredients[code - codes.food(0)], at)
        counts = dict(zip(codes.menu.ingredients, codes.mixture_of(code)))
        onions, tomatoes = counts.get("onion", 0), counts.get("tomato", 0)
        pot = codes.in_pot(code)
        if pot is None:
            return SoupState.get_soup(at, onions, tomatoes, finished=True)
        return SoupState.get_soup(at, onions, tomatoes, cooking_tick=-1 if pot[1] is None else pot[1])

    def numbers(self, state: Any) -> tuple[list[int], list[int], list[int]]:
        """Pose, held and things of a state of the package's."""
        from overcooked.mdp.actions import Direction

        geometry = self.kitchen.geometry
        pose, held = [], []
        for player in state.players:
            x, y = player.position
            pose.append(4 * geometry.floor_number[y, x] + Direction.DIRECTION_TO_INDEX[player.orientation])
            held.append(self._code(player.held_object, in_pot=False))
        things = [self._code(state.objects.get((x, y)), (y, x) in geometry.pots) for y, x in geometry.slots]
        assert len(state.objects) == sum(code > 0 for code in things)
        return pose, held, things

    def _code(self, thing: Any, in_pot: bool) -> int:
        codes = self.codes
        if thing is None:
            return 0
        if thing.name == "dish":
            return codes.dish
        if thing.name != "soup":
            return codes.food(codes.menu.ingredients.index(thing.name))
        mixture = codes.menu.mixtures.index(tuple(thing.ingredients.count(food) for food in codes.menu.ingredients))
        if not in_pot:
            assert thing.is_ready
            return codes.soup(mixture)
        return codes.pot(mixture, None if thing.is_idle else thing._cooking_tick)


def compare(name: str, old: bool, states: int, played: int, write: Path | None) -> dict[str, Any]:
    """What differs between the kitchen and the package, over drawn and played states."""
    import numpy as np
    import torch

    from envs.kitchen import Kitchen
    from envs.kitchen.rules.events import EVENTS

    torch.set_num_threads(1)
    kitchen = Kitchen(name, old_dynamics=old, starts="random", horizon=None)
    reference = Reference(kitchen, name, old)
    state, action = before_and_choices(name, old, kitchen, states, played)
    result = kitchen.transition(state, action, None)
    ours = {
        "pose": result.state.pose,
        "held": result.state.held,
        "things": result.state.things,
        "worth": kitchen.hands(state, action.squeeze(-1)).worth,
        "soup": result.reward[..., 0],
        "shaping": result.reward[..., 1],
        "events": kitchen.events(state, action),
    }
    theirs: dict[str, list[Any]] = {key: [] for key in ours}
    for row in range(len(action)):
        for key, value in stepped(reference, state, action, row, EVENTS).items():
            theirs[key].append(value)
    expected = {key: np.array(value) for key, value in theirs.items()}
    wrong = {key: int((ours[key].numpy() != expected[key]).reshape(len(action), -1).any(1).sum()) for key in ours}
    seen = views(kitchen, reference, state) if len(kitchen.layout.starts) == 2 else {}
    for key, (mine, other) in seen.items():
        wrong[key] = int((mine != other).reshape(len(mine), -1).any(1).sum())
    if write:
        record(write, state, action, expected, {key: other for key, (_, other) in seen.items()})
    met = {branch: int(rows.sum()) for branch, rows in branches(kitchen, state, action).items()}
    viewed = max((len(mine) for mine, _ in seen.values()), default=0)
    counts = {"drawn": states, "played": played, "viewed": viewed, "transitions": len(action)}
    return {"layout": name, "dynamics": "old" if old else "new", **counts, "wrong": wrong, "branches": met}


def record(write: Path, state: Any, action: Any, expected: dict[str, Any], seen: dict[str, Any]) -> None:
    """Write some of what the package did, with the states before it."""
    import numpy as np

    # Half of them from the end, where each branch is met.
    rows = np.unique(np.linspace(0, 1, RECORDED) ** 0.5 * (len(action) - 1)).astype(int)
    arrays = {"action": action.squeeze(-1).numpy()[rows]}
    arrays |= {f"before/{k}": getattr(state, k).numpy()[rows] for k in ("pose", "held", "things")}
    arrays |= {k: expected[k][rows] for k in ("pose", "held", "things", "worth", "shaping")}
    for key, other in seen.items():
        arrays[key] = other[: RECORDED // 10]
        arrays |= {f"viewed/{k}": getattr(state, k).numpy()[: RECORDED // 10] for k in ("pose", "held", "things")}
    events = {"events": np.packbits(expected["events"][rows], axis=-1)}
    np.savez_compressed(write, **{k: smallest(v) for k, v in arrays.items()}, **events)


def before_and_choices(name: str, old: bool, kitchen: Any, states: int, played: int) -> tuple[Any, Any]:
    """Drawn states, random play, then states in which a branch happens that was still rare; and choices."""
    import torch

    from envs.core import tree_map

    generator = torch.Generator().manual_seed(7)
    cooks = len(kitchen.layout.starts)
    parts = [chosen(kitchen.initial(kitchen.initial_noise(states, generator)), cooks, generator)]
    now = start_of(name, old, 10, generator)
    for _ in range(-(-played // 10)):
        choice = torch.randint(6, (10, cooks, 1), generator=generator)
        parts.append((now, choice))
        now = kitchen.transition(now, choice, None).state
    met: Counter[str] = Counter()
    for state, choice in parts:
        met.update({branch: int(rows.sum()) for branch, rows in branches(kitchen, state, choice).items()})
    for tried in range(TRIES):
        if tried > TRIES // 4 and not any(0 < met[branch] < ENOUGH for branch in met):
            break
        state, choice = chosen(busy(name, old, BUSY, generator), cooks, generator)
        wanted = torch.zeros(BUSY, dtype=torch.bool)
        for branch, rows in branches(kitchen, state, choice).items():
            missing = max(0, ENOUGH - met[branch])
            wanted |= rows & (rows.cumsum(0) <= missing)
        parts.append(rows_of(state, choice, wanted))
        met.update({branch: int(rows.sum()) for branch, rows in branches(kitchen, *parts[-1]).items()})
    return tree_map(lambda *leaves: torch.cat(leaves), *parts)


def rows_of(state: Any, choice: Any, rows: Any) -> tuple[Any, Any]:
    """Some rows of states and choices."""
    from envs.core import tree_map

    return tree_map(lambda leaf: leaf[rows], state), choice[rows]


def chosen(state: Any, cooks: int, generator: Any) -> tuple[Any, Any]:
    """A state and random choices, which often interact."""
    import torch

    rows = len(state.pose)
    choice = torch.randint(6, (rows, cooks, 1), generator=generator)
    often = torch.rand(rows, cooks, 1, generator=generator) < 0.4
    return state, torch.where(often, 5, choice)


def start_of(name: str, old: bool, rows: int, generator: Any) -> Any:
    """The layout's start."""
    from envs.kitchen import Kitchen

    world = Kitchen(name, old_dynamics=old, horizon=None)
    return world.initial(world.initial_noise(rows, generator))


def busy(name: str, old: bool, states: int, generator: Any) -> Any:
    """Legal states in which much can happen: most codes of a pot are those of cooking, and most poses face counters."""
    import torch

    from envs.kitchen import Kitchen

    world = Kitchen(name, old_dynamics=old, starts="random", horizon=None, counter_items=2)
    state = world.initial(world.initial_noise(states, generator))
    codes, geometry, pots = world.codes, world.geometry, len(world.geometry.pots)
    quiet = [0, *(c for c in range(codes.count) if codes.is_cold(c) or codes.is_ready(c))]
    legal = [c for c in quiet if not (old and codes.is_cold(c) and sum(codes.mixture_of(c)) == codes.menu.capacity)]
    number = torch.randint(len(legal), (states // 2, pots), generator=generator)
    state.things[: states // 2, :pots] = torch.tensor(legal)[number]
    # Half of the codes of a hand are those of soups.
    state.held[: states // 2] = torch.randint(codes.dish + 1, state.held[: states // 2].shape, generator=generator)
    pose = state.pose
    for cook, region in enumerate(world.layout.regions):
        useful = [
            p
            for p, (cell, _) in enumerate(geometry.poses)
            if cell in region and world.layout.tile(geometry.faced[p]) in "PODTS"
        ]
        there = torch.tensor(useful)[torch.randint(len(useful), (states,), generator=generator)]
        moved = pose.clone()
        moved[:, cook] = torch.where(torch.rand(states, generator=generator) < 0.5, there, pose[:, cook])
        cells = (moved // 4).sort(-1).values
        pose = torch.where((cells.diff(dim=-1) == 0).any(-1, keepdim=True), pose, moved)
    return state._replace(pose=pose)


def stepped(reference: Reference, state: Any, action: Any, row: int, names: tuple[str, ...]) -> dict[str, Any]:
    """What the package makes of one row."""
    from overcooked.mdp.actions import Action

    before = reference.state(state.pose[row].tolist(), state.held[row].tolist(), state.things[row].tolist())
    joint = [Action.INDEX_TO_ACTION[choice] for choice in action[row, :, 0].tolist()]
    after, info = reference.mdp.get_state_transition(before, joint)
    pose, held, things = reference.numbers(after)
    sparse = info["sparse_reward_by_agent"]
    events = [[info["event_infos"][event][cook] for event in names] for cook in range(len(joint))]
    return {
        "pose": pose,
        "held": held,
        "things": things,
        "worth": sparse,
        "soup": [sum(sparse)] * len(sparse),
        "shaping": info["shaped_reward_by_agent"],
        "events": events,
    }


def views(kitchen: Any, reference: Reference, state: Any) -> dict[str, tuple[Any, Any]]:
    """Both encodings of the first states, ours and the package's."""
    import numpy as np
    import torch

    from envs.core import tree_map
    from envs.kitchen.views.overcooked import OvercookedFeatures, Planes

    few = tree_map(lambda x: x[:VIEWED], state)
    rows = len(few.pose)
    step = torch.arange(rows) % HORIZON
    features = OvercookedFeatures(kitchen.geometry, kitchen.codes)(few)
    planes = Planes(kitchen.geometry, kitchen.codes)(few, HORIZON - step)
    expected: tuple[list[Any], list[Any]] = ([], [])
    for row in range(rows):
        there = reference.state(
            few.pose[row].tolist(), few.held[row].tolist(), few.things[row].tolist(), int(step[row])
        )
        expected[0].append(np.stack(reference.mdp.featurize_state(there, reference.planner)))
        encoded = reference.mdp.lossless_state_encoding(there, horizon=HORIZON)
        expected[1].append(np.stack(encoded).transpose(0, 3, 2, 1))
    return {
        "features": (features.numpy(), np.stack(expected[0])),
        "planes": (planes.numpy(), np.stack(expected[1])),
    }


def branches(kitchen: Any, state: Any, action: Any) -> dict[str, Any]:
    """By branch of the rules, the rows in which some cook or pot meets it."""
    import torch

    from envs.kitchen.rules.codes import Event
    from envs.kitchen.rules.events import EVENTS

    choice, after = action.squeeze(-1), kitchen.transition(state, action, None).state
    events = kitchen.events(state, action).any(1)
    found = {name: events[:, number] for number, name in enumerate(EVENTS)}
    rules = kitchen._tables.on(choice.device).rules
    hands = rules.event[kitchen.hands(state, choice).entry]
    found |= {f"hands: {event.name.lower()}": (hands == event).any(1) for event in Event if event}
    goal = kitchen._tables.on(choice.device).step[state.pose * 6 + choice] // 4
    cell = state.pose // 4
    found["walks"] = (after.pose // 4 != cell).any(1)
    found["walks into a tile"] = ((choice < 4) & (goal == cell)).any(1)
    meets = swaps = torch.zeros_like(found["walks"])
    for i in range(choice.shape[1]):
        for j in range(i):
            meets = meets | (goal[:, i] == goal[:, j])
            swaps = swaps | ((goal[:, i] == cell[:, j]) & (goal[:, j] == cell[:, i]))
    pots = len(kitchen.geometry.pots)
    ready = torch.tensor([kitchen.codes.is_ready(code) for code in range(kitchen.codes.count)])
    becomes = ready[after.things[:, :pots]] & ~ready[state.things[:, :pots]]
    return found | {"would meet": meets, "would swap": swaps, "becomes ready": becomes.any(1)}


def smallest(array: Any) -> Any:
    """The same numbers in the smallest type of integers that holds them."""
    import numpy as np

    whole = array.astype(np.int64)
    assert (whole == array).all()
    return next(whole.astype(kind) for kind in (np.int8, np.uint8, np.int16) if (whole.astype(kind) == whole).all())


if __name__ == "__main__":
    main()
