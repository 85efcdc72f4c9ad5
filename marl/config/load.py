"""From YAML and assignments on the command line to a checked config, and back."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from envs.core import ConcordError, InputError, import_dotted
from marl.config.recipe import Recipe
from marl.config.schema import EnvConfig, Partly, RunConfig, Section, walk
from marl.output.console import console, in_words

END = "..."  # YAML's end of a document
AGENTS = {"env.agents", "env.args.agents"}  # two names of one number
# What fields were called before; each is still understood.
RENAMED_KEYS = {
    "trace": "gae_lambda",
    "segment": "sequence_length",
    "max_gradient": "max_grad_norm",
    "weighing": "advantage",
    "idle": "zero_action",
}
# Saved configs of recipes that never used these have them all the same.
RETIRED = ("compile", "train", "evaluation", "resume", "env")


def load_recipe(path: str) -> Recipe:
    """The recipe of a module: what it calls `recipe`. Raises InputError where there is none."""
    try:
        module = import_dotted(path)
    except ConcordError as error:
        missing = error.__cause__
        is_there = not isinstance(missing, ModuleNotFoundError) or not f"{path}.".startswith(f"{missing.name}.")
        if isinstance(missing, ImportError) and is_there:
            raise InputError(f"{path} was found, but cannot import what it needs: {in_words(missing)}") from error
        raise
    except Exception as error:
        raise InputError(f"The recipe {path} cannot be imported: {in_words(error)}") from error
    recipe = vars(module).get("recipe")
    if not isinstance(recipe, Recipe):
        raise InputError(
            "A recipe module ends with `recipe = MyRecipe()`, where MyRecipe is derived from "
            f"marl.config.recipe.Recipe; in {path} recipe is {'missing' if recipe is None else repr(recipe)}."
        )
    config = recipe.config
    if not (isinstance(config, type) and issubclass(config, RunConfig)):
        raise InputError(f"A recipe's config is a class derived from marl.config.schema.RunConfig; {path} has none.")
    return recipe


class _Loader(yaml.SafeLoader):
    """YAML whose values are JSON's: a date stays text. A key stands once in its section."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        names: set[str] = set()
        for key, _ in node.value:
            if key.value in names:
                raise yaml.MarkedYAMLError(problem=f"{key.value} is set a second time", problem_mark=key.start_mark)
            names |= {key.value} if isinstance(key, yaml.ScalarNode) else set()
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(path: Path) -> dict[str, Any]:
    """A config file as nested dicts. Raises InputError for a missing file, bad YAML, or one that is no mapping."""
    if not path.is_file():
        raise InputError(f"There is no config file {path}. `concord list` shows the configs that come with Concord.")
    try:
        raw = yaml.load(path.read_text(), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid YAML: {_in_one_line(error)}.") from None
    if not isinstance(raw, dict):
        raise InputError(f"{path} must hold a mapping such as 'recipe: marl.algorithms.mappo'; got {raw!r}.")
    return raw


def _in_one_line(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"{error.problem} in line {error.problem_mark.line + 1}"
    return str(error)


def split_assignments(assignments: Sequence[str]) -> list[dict[str, Any]]:
    """`key=value` words as one dict of overrides for each point of the sweep; a bare comma list sweeps.

    Values are YAML: `x=[1,2]` is one vector, `x=1,2` two points. Raises InputError for a word without `=`.
    """
    axes: list[list[tuple[str, Any]]] = []
    for word in assignments:
        key, equals, text = word.partition("=")
        if not equals or not re.fullmatch(r"[\w.]+", key):
            raise InputError(f"Expected key=value, such as seed=1 or env.num_envs=64; got {word!r}.")
        axes.append([(key, _parse(key, part)) for part in _bare_commas(text)])
    keys = [axis[0][0] for axis in axes]
    repeated = {key for key in keys if keys.count(key) > 1}
    if repeated:
        raise InputError(f"Each key is set once; got {', '.join(sorted(repeated))} several times.")
    return [dict(point) for point in product(*axes)]


def _parse(key: str, text: str) -> Any:
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError:
        raise InputError(f"The value of {key} is not valid YAML: {text!r}.") from None
    # YAML 1.1 reads 1e-3 as a string.
    return float(text) if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?e[+-]?\d+", text) else value


def _bare_commas(text: str) -> list[str]:
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        depth += (letter in "[{(") - (letter in "]})") if not quote else 0
        if letter == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def resolve(raw: dict[str, Any], overrides: dict[str, Any], saved: bool = False) -> RunConfig:
    """The checked config of one run. Raises InputError with the path of what is wrong and the nearest right name.

    saved: `raw` is the config of an old run, which may say what its recipe no longer has, and says so to nobody.
    """
    path = overrides.get("recipe", raw.get("recipe"))
    if not isinstance(path, str):
        raise InputError("A config names its algorithm: add a line such as 'recipe: marl.algorithms.mappo'.")
    model = load_recipe(path).config
    fields = list(walk(model))
    known = {name for name, _, _ in fields}
    raw, renamed = _renamed(raw, known)
    overrides, also = _renamed(overrides, known)
    if saved:  # before the overrides, whose mistakes are told
        _drop_retired(raw, known)
        for name, _, section in fields:
            if section is not None:
                _update_section(raw, name.split("."), section)
    else:
        for old, new in {**renamed, **also}.items():
            console.print(f"note: {old} is called {new} now", markup=False)
    # Sections first: none takes back what was set within it.
    for key in sorted(overrides, key=lambda key: key.count(".")):
        if key in AGENTS:
            _forget_agents(raw, AGENTS - overrides.keys())
        _assign(raw, key, overrides[key])
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        from marl.config.messages import explain, field_of, numbered  # only for what is wrong

        leaves = {name for name, _, section in fields if section is None}
        problems: dict[str, list[Any]] = {}
        for problem in error.errors():
            problems.setdefault(field_of(problem["loc"], leaves), []).append(problem)
        told = [explain(model, path, found) for path, found in problems.items()]
        raise InputError(told[0] if len(told) == 1 else numbered(told)) from None


def _renamed(raw: dict[str, Any], known: set[str], prefix: str = "") -> tuple[dict[str, Any], dict[str, str]]:
    """A copy of a config in which fields bear their names of today, and which were renamed: {old: new}."""
    copy: dict[str, Any] = {}
    renamed: dict[str, str] = {}
    for key, value in raw.items():
        old = f"{prefix}{key}"
        new = _new_name(old, known)
        name = new.removeprefix(prefix)
        if new != old:
            renamed[old] = new
            if name in raw:
                raise InputError(f"{old} is called {new} now, and both are set: leave {old} out.")
        if isinstance(value, dict):
            value, below = _renamed(value, known, f"{new}.")
            renamed |= below
        copy[name] = value
    return copy, renamed


def _new_name(key: str, known: set[str]) -> str:
    """The name of today of a field that was renamed."""
    section, dot, last = key.rpartition(".")
    new = f"{section}{dot}{RENAMED_KEYS.get(last, last)}"
    return new if key not in known and new in known else key


def _drop_retired(raw: dict[str, Any], known: set[str]) -> None:
    """Take out what saved configs have of sections that their recipe has never used."""
    for section in RETIRED:
        value = raw.get(section)
        if section not in known:
            raw.pop(section, None)
        elif isinstance(value, dict) and f"{section}.args" in known:
            retired = {key for key in EnvConfig.model_fields if f"{section}.{key}" not in known}
            raw[section] = {key: held for key, held in value.items() if key not in retired}


def _update_section(raw: dict[str, Any], path: Sequence[str], section: type[Section]) -> None:
    """Bring the section at this path, where the config has it, from an earlier version to today's."""
    *above, last = path
    for name in above:
        below = raw.get(name)
        if not isinstance(below, dict):
            return
        raw = below
    if isinstance(raw.get(last), dict):
        raw[last] = section.of_earlier(raw[last])


def _assign(raw: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    for name in path:
        if raw.get(name) is None:
            raw[name] = Partly()
        raw = raw[name]
        if not isinstance(raw, dict):
            raise InputError(f"{key} cannot be set: {name} is {raw!r}, not a section; {name} can be set as a whole.")
    raw[last] = value


def _forget_agents(raw: dict[str, Any], keys: set[str]) -> None:
    """Remove from the file the number of agents under its other name, which gives way to the one set now."""
    env = raw.get("env")
    for key in keys:
        section = env.get("args") if isinstance(env, dict) and key == "env.args.agents" else env
        if isinstance(section, dict):
            section.pop("agents", None)


def yaml_text(value: Any) -> str:
    """A value as it would be written after a key."""
    if isinstance(value, tuple):
        value = list(value)
    return (
        yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6).strip().removesuffix("...").strip()
    )


def dump(config: RunConfig) -> str:
    """The resolved config as YAML, with a last line that shows that it is whole."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, explicit_end=True)


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, by dotted name."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
