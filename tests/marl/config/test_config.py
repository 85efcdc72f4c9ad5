"""Configs say exactly what is wrong."""

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from envs.core import InputError
from marl.config.catalog import catalog, find_config
from marl.config.describe import describe
from marl.config.load import dump, read_yaml, resolve, split_assignments
from marl.config.messages import OTHER_NAMES
from marl.config.schema import EnvConfig, TrainingConfig, walk
from marl.evaluation.environments import evaluation_rows

SPREAD = read_yaml(find_config("cooperative/spread"))


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("learner.learing_rate=1", "Unknown key learner.learing_rate. Did you mean learner.learning_rate?"),
        ("learner.num_envs=4", "Did you mean env.num_envs?"),
        ("sed=1", "Unknown key sed. Did you mean seed?"),
        ("learner.xyz=0.1", "Unknown key learner.xyz. Known keys: "),
        ("learner.lr=0.1", "Did you mean learner.learning_rate?"),
        ("lr=0.1", "Did you mean learner.learning_rate?"),
        ("learner.max_grad=0.1", "Did you mean learner.max_grad_norm?"),
        ("train.steps=9", "Did you mean train.env_steps?"),
        ("gamma=0.9", "Did you mean learner.discount?"),
        ("learner.lambda=0.9", "Did you mean learner.gae_lambda?"),
        ("learner.gama=0.9", "Did you mean learner.discount?"),
        ("learner.gae_lamda=0.9", "Did you mean learner.gae_lambda?"),
        ("learner.discount=x", "learner.discount: expected a valid number or a list; got 'x'"),
        ("learner.discount=[0.9,-1,x]", "learner.discount: entry 3 of the list: expected a valid number; got 'x'"),
        ("advantage.weights=1", "advantage.weights: expected a list such as [1]; got 1"),
        ("learner.clip=null", "learner.clip: expected a valid number; got null"),
        ("policy.network.hidden=64", "policy.network.hidden: expected a list such as [64, 64]; got 64"),
        ("policy.network.hidden=[]", "policy.network.hidden: expected a list of at least 1 entry; got []"),
        ("policy.network.hidden=[4,0]", "policy.network.hidden: entry 2 of the list: expected greater than 0; got 0"),
        ("learner=3", "learner: expected a section such as {name: value}; got 3"),
        ("evaluation.load=best", "A run that was trained without them has its last policy only"),
        ("seed=true", "seed: expected a number; got true"),
        ("train.cpu_seconds=yes", "train.cpu_seconds: expected a number; got true"),
        ("n_envs=4", "Did you mean env.num_envs?"),
        ("total_timesteps=9", "Did you mean train.env_steps?"),
        ("evaluation.n_envs=4", "Did you mean evaluation.num_envs?"),
        ("policy.hidden=[4]", "Did you mean policy.network.hidden?"),
        ("learner.clip=high", "learner.clip: expected a valid number"),
        ("learner.epochs=0", "learner.epochs: expected greater than or equal to 1; got 0"),
        ("seed=-1", "seed: expected greater than or equal to 0; got -1"),
        ("critic.sees=everything", "critic.sees: expected 'state' or 'agent'; got 'everything'"),
        ("env.pettingzoo=a.b:c", "needs exactly one of env.world, env.pettingzoo and env.vmas"),
        ("env={vmas: balance}", "env.vmas needs env.time_limit"),
        ("env={vmas: balance, time_limit: 9, workers: 2}", "env.workers is for PettingZoo environments"),
        ("env.scenario=balance", "Did you mean env.vmas?"),
        ("env.workers=2", "env.workers is for PettingZoo environments"),
        ("recipe.x=1", "recipe.x cannot be set: recipe is 'marl.algorithms.mappo', not a section"),
        ("recipe=marl.algorithms.mapo", "Cannot import marl.algorithms.mapo"),
        ("recipe=marl.learning.returns", "in marl.learning.returns recipe is missing"),
        ("recipe=no-such", "Expected a dotted path"),
    ],
)
def test_what_is_wrong_is_named_with_its_path(assignment: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        resolve(SPREAD, split_assignments([assignment])[0])
    assert message in str(caught.value)


def test_several_mistakes_are_one_paragraph() -> None:
    with pytest.raises(InputError) as caught:
        resolve(SPREAD, {"sed": 1, "learner.epochs": 0})
    told = str(caught.value)
    assert told.startswith("The config has 2 mistakes. (1) learner.epochs: expected")
    assert "(2) Unknown key sed. Did you mean seed?" in told
    assert "\n" not in told


def test_a_bare_comma_list_sweeps_and_a_bracketed_one_is_a_vector() -> None:
    points = split_assignments(["seed=0,1", "learner.discount=[0.9,0.99]", "learner.clip=1e-1"])
    assert points == [
        {"seed": 0, "learner.discount": [0.9, 0.99], "learner.clip": 0.1},
        {"seed": 1, "learner.discount": [0.9, 0.99], "learner.clip": 0.1},
    ]
    assert split_assignments(["env.args={a: 1, b: 2}"]) == [{"env.args": {"a": 1, "b": 2}}]
    assert split_assignments(["recipe='a,b'"]) == [{"recipe": "a,b"}]


@pytest.mark.parametrize("words", [["seed"], ["=1"], ["se ed=1"], ["seed=1", "seed=2"], ["seed=[1"]])
def test_words_that_are_no_assignments_are_refused(words: list[str]) -> None:
    with pytest.raises(InputError):
        split_assignments(words)


def test_resolving_leaves_what_it_was_given_as_it_was() -> None:
    overrides = {"env": {"world": "a.b:C", "args": {"x": 1}}, "env.args.x": 2}
    assert resolve(SPREAD, overrides).env.args == {"x": 2}
    assert overrides == {"env": {"world": "a.b:C", "args": {"x": 1}}, "env.args.x": 2}


def test_a_resolved_config_survives_being_written_and_read() -> None:
    config = resolve(SPREAD, {"seed": 3, "policy.network.hidden": [8, 8]})
    assert resolve(yaml.safe_load(dump(config)), {}) == config


WORST = """
from marl.config.recipe import Recipe
from marl.learning.scalarization import AdvantageConfig
from marl.training.on_policy import ActorCriticConfig

class Config(ActorCriticConfig):
    advantage: AdvantageConfig = AdvantageConfig(
        kind="worst:Worst", weights=(1, 1), weights_end=(1, 0), args={"rate": 0.2, "of": {"a": 1, "b": 2}}
    )

class Mine(Recipe):
    config = Config
    def run(self, config, run): pass

recipe = Mine()
"""


@pytest.mark.parametrize(
    ("given", "overrides", "differs"),
    [
        ({}, {"advantage.weights": [1, 2]}, {"weights": (1, 2)}),
        ({"weights": [1, 2]}, {}, {"weights": (1, 2)}),
        ({"weights": [1, 2]}, {"advantage": {"weights": [3, 4]}}, {"weights": (3, 4)}),
        ({}, {"advantage.args.of.a": 3}, {"args": {"rate": 0.2, "of": {"a": 3, "b": 2}}}),
        ({}, {"advantage.args": {}}, {"args": {}}),
        ({"args": {"of": {"a": 3}}}, {}, {"args": {"of": {"a": 3}}}),
        ({}, {"advantage.weights_end": None}, {"weights_end": None}),
        ({}, {"advantage": "team"}, {"kind": "team", "args": {}}),
        ({}, {"advantage.args.x": 1, "advantage.kind": "a.b:C"}, {"kind": "a.b:C", "args": {"x": 1}}),
    ],
)
def test_a_config_lies_over_the_section_that_its_recipe_gives(
    given: dict[str, Any],
    overrides: dict[str, Any],
    differs: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "worst.py").write_text(WORST)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "worst", raising=False)
    raw = {"recipe": "worst", "env": {"world": "envs.games:climbing"}, **({"advantage": given} if given else {})}
    config: Any = resolve(raw, overrides)
    expected = {
        "kind": "worst:Worst",
        "weights": (1, 1),
        "weights_end": (1, 0),
        "args": {"rate": 0.2, "of": {"a": 1, "b": 2}},
    }
    assert config.advantage.model_dump() == expected | differs
    assert resolve(yaml.safe_load(dump(config)), {}, saved=True) == config, "what was saved is what was meant"


def test_a_graph_keeps_its_recipe_s_attention_but_no_options_of_another_kind() -> None:
    raw = read_yaml(find_config("cooperative/climbing_bn"))
    wide: Any = resolve(raw, {"policy.graph.network.hidden": [16]})
    assert wide.policy.graph.network.model_dump() == {
        "kind": "attention",
        "hidden": (16,),
        "activation": "tanh",
        "heads": 1,
    }
    plain: Any = resolve(raw, {"policy.graph.network.kind": "mlp"})
    assert plain.policy.graph.network.model_dump() == {"kind": "mlp", "hidden": (32,), "activation": "tanh"}


@pytest.mark.parametrize(
    ("given", "env"),
    [
        ({"env.num_envs": 3}, {"world": "a.b:C", "pettingzoo": None, "args": {"x": 1}, "num_envs": 3}),
        ({"env.world": "a.b:D"}, {"world": "a.b:D", "pettingzoo": None, "args": {}, "num_envs": 2}),
        ({"env.pettingzoo": "a.b:e"}, {"world": None, "pettingzoo": "a.b:e", "args": {}, "num_envs": 2}),
    ],
)
def test_another_world_keeps_no_arguments_of_the_recipe_s_own(given: dict[str, Any], env: dict[str, Any]) -> None:
    class Config(TrainingConfig):
        env: EnvConfig = EnvConfig(world="a.b:C", args={"x": 1}, num_envs=2)

    raw = {"recipe": "x", "env": {key.partition(".")[2]: value for key, value in given.items()}}
    found = Config.model_validate(raw).env.model_dump()
    assert {name: found[name] for name in env} == env


def test_sections_are_set_before_what_is_within_them() -> None:
    config: Any = resolve(SPREAD, {"learner.clip": 0.3, "learner": {"steps": 32}})
    assert (config.learner.clip, config.learner.steps) == (0.3, 32)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("1 / 0", "cannot be imported: ZeroDivisionError"),
        ("\n\nimport nothing_there", r"no_recipe was found.*No module named 'nothing_there' \(no_recipe.py, line 3"),
        ("from marl import nothing", r"no_recipe was found.*cannot import name 'nothing'"),
        ("def (", "cannot be imported: SyntaxError"),
        ("def recipe(config, run): pass", "recipe = MyRecipe()"),
        (
            "from marl.config.recipe import Recipe\nclass Mine(Recipe):\n    config = dict\n"
            "    def run(self, config, run): pass\nrecipe = Mine()",
            "derived from marl.config.schema.RunConfig",
        ),
        (
            "from marl.config.recipe import Recipe\nclass Mine(Recipe): pass\nrecipe = Mine()",
            "abstract method run",
        ),
    ],
)
def test_a_module_that_is_no_recipe_is_told(
    code: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "no_recipe.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "no_recipe", raising=False)
    with pytest.raises(InputError, match=message):
        resolve({"recipe": "no_recipe"}, {})


def test_a_file_s_sections_are_nested() -> None:
    with pytest.raises(InputError, match=r"sections are nested, such as learner: {clip: …}"):
        resolve({**SPREAD, "learner.clip": 0.1}, {})


def test_dates_stay_text() -> None:
    assert split_assignments(["env.args.day=2020-01-01"]) == [{"env.args.day": "2020-01-01"}]


def test_every_field_has_a_meaning() -> None:
    rows = describe(resolve(SPREAD, {}))
    assert len(rows) > 30
    assert [name for name, _, _, meaning in rows if not meaning] == []


def test_every_other_name_stands_for_a_field() -> None:
    fields = {name.rpartition(".")[2] for name, _, _ in walk(type(resolve(SPREAD, {})))}
    assert set(OTHER_NAMES.values()) <= fields
    assert not set(OTHER_NAMES) & fields


def test_an_evaluation_makes_many_native_rows_but_few_foreign_copies() -> None:
    assert evaluation_rows(resolve(SPREAD, {})) == 1024
    assert evaluation_rows(resolve(SPREAD, {"evaluation.episodes": 10})) == 10
    foreign = {"env": {"pettingzoo": "a.b:c", "num_envs": 4}, "evaluation.twin": None}
    assert evaluation_rows(resolve(SPREAD, foreign)) == 4
    assert evaluation_rows(resolve(SPREAD, {**foreign, "evaluation.num_envs": 2})) == 2
    batched = {"env": {"vmas": "balance", "time_limit": 9, "num_envs": 4}, "evaluation.twin": None}
    assert evaluation_rows(resolve(SPREAD, batched)) == 1024


def test_every_config_that_ships_resolves_and_says_what_it_is_for() -> None:
    entries = catalog()
    assert entries
    for entry in entries:
        resolve(read_yaml(entry.path), {})
        assert entry.summary, entry.name


def test_a_misspelled_config_name_gets_the_nearest() -> None:
    for name in ("cooperative/spred", "spred"):
        with pytest.raises(InputError, match="Did you mean cooperative/spread"):
            find_config(name)


def test_a_name_that_is_near_no_config_gets_none() -> None:
    with pytest.raises(InputError, match="`concord list` shows the names"):
        find_config("nofile.yaml")


def test_files_that_are_no_config_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("x: [1")
    with pytest.raises(InputError, match="not valid YAML"):
        read_yaml(tmp_path / "a.yaml")
    (tmp_path / "twice.yaml").write_text("seed: 1\nenv:\n  args: {}\n  num_envs: 2\n  args: {}\n")
    with pytest.raises(InputError, match="args is set a second time in line 5"):
        read_yaml(tmp_path / "twice.yaml")
    (tmp_path / "b.yaml").write_text("- 1")
    with pytest.raises(InputError, match="must hold a mapping"):
        read_yaml(tmp_path / "b.yaml")
    with pytest.raises(InputError, match="names its algorithm"):
        resolve({"env": {}}, {})
