"""Configs: pydantic models beside each algorithm, YAML that says only what differs, overrides from the command line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from itertools import accumulate, product
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from envs.core import ConcordError, InputError, import_dotted
from marl.display import in_words

# What other libraries call our fields, or a reader might.
OTHER_NAMES = {
    "gamma": "discount",
    "lambda": "trace",
    "lam": "trace",
    "gae_lambda": "trace",
    "alpha": "learning_rate",
    "step_size": "learning_rate",
    "eps": "clip",
    "epsilon": "clip",
    "clip_range": "clip",
    "clip_coef": "clip",
    "beta": "entropy",
    "ent_coef": "entropy",
    "max_grad_norm": "max_gradient",
    "n_steps": "steps",
    "num_steps": "steps",
    "rollout_length": "steps",
    "update_epochs": "epochs",
    "ppo_epochs": "epochs",
    "sequence_length": "segment",
    "n_envs": "num_envs",
    "total_timesteps": "env_steps",
    "total_steps": "env_steps",
    "timesteps": "env_steps",
    "max_steps": "time_limit",
    "max_cycles": "time_limit",
    "horizon": "time_limit",
    "episode_length": "time_limit",
    "env_name": "world",
    "env_id": "world",
    "scenario": "vmas",
    "hidden_sizes": "hidden",
    "gpu": "device",
    "cuda": "device",
    "algorithm": "recipe",
    "algo": "recipe",
    "eval_episodes": "episodes",
}
END = "..."  # YAML's end of a document
AGENTS = {"env.agents", "env.args.agents"}  # two names of one number


class Section(BaseModel):
    """A part of a config: unknown keys are errors, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: Any) -> Any:
        annotation = cls.model_fields[info.field_name].annotation
        if isinstance(value, bool) and {annotation, *get_args(annotation)} & {int, float}:
            raise ValueError(f"expected a number; got {str(value).lower()}")
        return value


class EnvConfig(Section):
    """Where the agents act: a native world or any PettingZoo environment, by dotted path, or a task of VMAS."""

    world: str | None = Field(None, description="a native World, module:Class")
    pettingzoo: str | None = Field(None, description="a PettingZoo environment, module:function that makes one")
    vmas: str | None = Field(
        None, description="a scenario of VMAS by name, or your own, module:Class; needs the extra [vmas], which is GPL"
    )
    args: dict[str, Any] = Field(
        default_factory=dict, description="arguments of the world, the function or vmas.make_env"
    )
    agents: int | None = Field(
        None, ge=1, description="how many agents; the same as env.args.agents, or what the function calls it"
    )
    num_envs: int = Field(16, ge=1, description="environments stepped together")
    time_limit: int | None = Field(
        None, ge=1, description="steps after which training truncates an episode (worlds, vmas)"
    )
    workers: int = Field(0, ge=0, description="processes that step PettingZoo environments; 0 steps them in this one")

    @model_validator(mode="after")
    def _one_number_of_agents(self) -> EnvConfig:
        if self.agents is not None and self.args.get("agents", self.agents) != self.agents:
            raise ValueError(
                f"env.agents and env.args.agents are one number; got {self.agents} and {self.args['agents']}. Leave "
                "one of them out"
            )
        return self

    @model_validator(mode="after")
    def _one_origin(self) -> EnvConfig:
        if sum(origin is not None for origin in (self.world, self.pettingzoo, self.vmas)) != 1:
            raise ValueError("needs exactly one of env.world, env.pettingzoo and env.vmas")
        if self.pettingzoo is not None and self.time_limit is not None:
            raise ValueError("env.time_limit is for native worlds; a PettingZoo environment takes its own in env.args")
        if self.vmas is not None and self.time_limit is None:
            raise ValueError(
                "env.vmas needs env.time_limit, such as 100: most of its scenarios never end by themselves"
            )
        if self.pettingzoo is None and self.workers:
            raise ValueError("env.workers is for PettingZoo environments; batched worlds need no processes")
        return self


class TrainConfig(Section):
    """How long to train, and how often to save."""

    env_steps: int = Field(1_000_000, ge=1, description="joint steps of all environments of one policy")
    cpu_seconds: float | None = Field(
        None, gt=0, description="stop earlier, after this much CPU time of training, env.workers not counted"
    )
    save_seconds: float = Field(20.0, ge=0, description="time between checkpoints; a finished stage is always saved")


class TwinConfig(Section):
    """The same task elsewhere: a PettingZoo environment in which the trained team is evaluated and filmed too."""

    pettingzoo: str = Field(description="module:function that makes it")
    args: dict[str, Any] = Field(default_factory=dict, description="arguments of that function")
    episodes: int = Field(100, ge=2, description="evaluation episodes, at least: every environment plays equally many")


class EvaluationConfig(Section):
    """How a trained policy is judged."""

    episodes: int = Field(
        1024, ge=2, description="episodes, at least, of sampled actions and again of most probable ones"
    )
    num_envs: int = Field(
        1024,
        ge=1,
        description="environments stepped together; fewer for fewer episodes, and of PettingZoo at most env.num_envs",
    )
    patience: int = Field(
        100_000, ge=1, description="steps without any episode's end after which an evaluation gives up"
    )
    film_episodes: int = Field(4, ge=0, description="episodes of the film; 0 makes none")
    twin: TwinConfig | None = Field(None, description="a PettingZoo environment of the same task")
    agents: tuple[int, ...] = Field(
        (),
        description="numbers of agents in which the team plays too, such as [2,10,100], and how fast it approaches its "
        "limit (a swarm)",
    )
    random: bool = Field(False, description="play uniformly random actions too, and tell the difference: above_random")
    idle: bool = Field(False, description="play the action 0 too, no control, and tell the difference: above_idle")

    @field_validator("agents", mode="before")
    @classmethod
    def _different_numbers(cls, value: Any) -> Any:
        listed = list(value) if isinstance(value, list | tuple) else [value]
        whole = all(type(n) is int and n > 0 for n in listed)
        if not whole or len(listed) == 1 or len(set(listed)) < len(listed):
            raise ValueError(
                "expected a list such as [2,10,100] of different numbers above 0, at least two of them, or [] for "
                f"none; got {value!r}"
            )
        return value


class ResumeConfig(Section):
    """What an inexact resume may do."""

    restart_episodes: bool = Field(
        False, description="begin new episodes where a foreign environment cannot be replayed exactly"
    )


class RunConfig(Section):
    """What every recipe has. A recipe's own Config adds its sections."""

    recipe: str = Field(description="the algorithm, by dotted path of its module")
    seed: int = Field(0, ge=0, lt=2**31, description="everything random follows from it")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    compile: bool = Field(False, description="compile physics, decisions and losses: a slow start, then faster")
    threads: int = Field(1, ge=1, le=256, description="torch threads; more than 1 slows small networks down")
    env: EnvConfig
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    resume: ResumeConfig = ResumeConfig()

    @property
    def evaluation_envs(self) -> int:
        """How many environments an evaluation steps together at most; `marl.environments.evaluation_rows` has the rest.

        Batched rows cost next to nothing, others a copy each.
        """
        rows = min(self.evaluation.num_envs, self.evaluation.episodes)
        return rows if self.env.pettingzoo is None else min(rows, self.env.num_envs)


def load_recipe(path: str) -> Any:
    """The recipe's module: it has `Config` and `recipe`. Raises InputError where it does not."""
    try:
        module = import_dotted(path)
    except ConcordError:
        raise
    except Exception as error:
        raise InputError(f"The recipe {path} cannot be imported: {in_words(error)}") from error
    missing = [name for name in ("Config", "recipe") if not hasattr(module, name)]
    if missing:
        raise InputError(f"A recipe module needs Config and recipe(config, run); {path} lacks {' and '.join(missing)}.")
    if not (isinstance(module.Config, type) and issubclass(module.Config, RunConfig)):
        raise InputError(f"Config of a recipe is a class derived from marl.config.RunConfig; that of {path} is not.")
    return module


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


def resolve(raw: dict[str, Any], overrides: dict[str, Any]) -> RunConfig:
    """The checked config of one run. Raises InputError with the path of what is wrong and the nearest right name."""
    raw = _deep_copy(raw)
    for key, value in overrides.items():
        if key in AGENTS:
            _forget_agents(raw, AGENTS - overrides.keys())
        _assign(raw, key, _deep_copy(value))
    if not isinstance(raw.get("recipe"), str):
        raise InputError("A config names its algorithm: add a line such as 'recipe: marl.algorithms.mappo'.")
    model = load_recipe(raw["recipe"]).Config
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        fields = {name for name, _, section in walk(model) if section is None}
        problems: dict[str, list[Any]] = {}
        for problem in error.errors():
            problems.setdefault(_path(problem["loc"], fields), []).append(problem)
        told = [_explain(model, path, found) for path, found in problems.items()]
        raise InputError(told[0] if len(told) == 1 else _counted(told)) from None


def _counted(mistakes: Sequence[str]) -> str:
    """Several mistakes in one paragraph."""
    listed = " ".join(f"({number}) {mistake}" for number, mistake in enumerate(mistakes, 1))
    return f"The config has {len(mistakes)} mistakes. {listed}"


def _deep_copy(raw: Any) -> Any:
    return {key: _deep_copy(value) for key, value in raw.items()} if isinstance(raw, dict) else raw


def _assign(raw: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    for name in path:
        if raw.get(name) is None:
            raw[name] = {}
        raw = raw[name]
        if not isinstance(raw, dict):
            raise InputError(f"{key} cannot be set: {name} is {raw!r}, not a section.")
    raw[last] = value


def _forget_agents(raw: dict[str, Any], keys: set[str]) -> None:
    """What the file calls by the other name gives way to what is set now."""
    env = raw.get("env")
    for key in keys:
        section = env.get("args") if isinstance(env, dict) and key == "env.args.agents" else env
        if isinstance(section, dict):
            section.pop("agents", None)


def _path(place: Sequence[Any], fields: set[str]) -> str:
    """The field that a problem is with; where it may be of several types, each has problems of its own below."""
    paths = list(accumulate(map(str, place), "{}.{}".format))
    return next((path for path in paths if path in fields), ".".join(map(str, place)))


def _explain(model: type[BaseModel], path: str, problems: Sequence[Any]) -> str:
    problem = problems[0]
    if problem["type"] == "extra_forbidden":
        known = [name for name, _, _ in walk(model)]
        near = _nearest(path, known)
        hint = f"Did you mean {near}?" if near else f"Known keys: {', '.join(_siblings(path, known))}."
        return f"Unknown key {path}. {hint}"
    if problem["type"] == "missing":
        return f"{path} is missing: {problem['msg'].lower()}."
    messages = [re.sub(r"^(Value error, |Input should be )", "", each["msg"]) for each in problems]
    message = messages[0] if problems[-1]["type"] == "too_short" else " or ".join(dict.fromkeys(messages))
    place = f"{path}: " if path else ""
    if problem["type"] == "value_error":
        return f"{place}{message}."
    return f"{place}expected {message}; got {problem['input']!r}."


def _nearest(path: str, known: list[str]) -> str | None:
    """The likeliest right key: same section first, then the same last name anywhere."""
    section, _, last = path.rpartition(".")
    siblings = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == section}
    # Where several sections have the name, the first: sections come in the order of their importance.
    anywhere = {name.rpartition(".")[2]: name for name in reversed(known)}
    for names in (siblings, anywhere):
        if (other := OTHER_NAMES.get(last.lower())) in names:
            return names[other]
    for names in (siblings, anywhere):
        called = {**{other: names[name] for other, name in OTHER_NAMES.items() if name in names}, **names}
        near = difflib.get_close_matches(last, called, 1, 0.6)
        found = near or [name for name in names if _abbreviates(last, name.split("_"))]
        if found:
            return called[found[0]]
    return None


def _abbreviates(short: str, words: list[str]) -> bool:
    """Whether `short` is made of the beginnings of all words in turn, as lr and learn_r are of learning_rate."""
    short = short.removeprefix("_")
    if not words or not short:
        return not words and not short
    lengths = range(1, len(words[0]) + 1)
    return any(short[:n] == words[0][:n] and _abbreviates(short[n:], words[1:]) for n in lengths)


def _siblings(path: str, known: list[str]) -> list[str]:
    section = path.rpartition(".")[0]
    return sorted({name for name in known if name.rpartition(".")[0] == section})


def walk(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, field, type of the section or None) of every field that a config may set, sections first."""
    for name, field in model.model_fields.items():
        if field.exclude:
            continue
        section = _section_of(field.annotation)
        yield prefix + name, field, section
        if section is not None:
            yield from walk(section, f"{prefix}{name}.")


def _section_of(annotation: Any) -> type[BaseModel] | None:
    candidates = [annotation, *get_args(annotation)]
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


def describe(config: RunConfig) -> list[tuple[str, str, str, str]]:
    """(key, value, range, meaning) of every field that holds a value, in order."""
    rows = []
    for name, field, section in walk(type(config)):
        value: Any = config
        for part in name.split("."):
            value = getattr(value, part, None)
        if section is not None and value is not None:
            continue
        rows.append((name, yaml_text(value), _range(field), field.description or ""))
    return rows


def _range(field: Any) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "min_length": "length ≥"}
    limits = [f"{sign} {getattr(m, name)}" for m in field.metadata for name, sign in signs.items() if hasattr(m, name)]
    annotation = field.annotation
    if getattr(annotation, "__origin__", None) is Literal:
        return " | ".join(str(choice) for choice in get_args(annotation))
    kind = getattr(annotation, "__name__", None) if isinstance(annotation, type) else str(annotation)
    kind = re.sub(r"typing\.|NoneType|<class '|'>", "", str(kind).replace("None", "null")).replace("Any", "any")
    return ", ".join([kind, *limits])


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
