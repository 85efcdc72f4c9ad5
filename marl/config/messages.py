"""Messages for a wrong config: the nearest right key, the range of a value, every field with its meaning."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from pydantic import BaseModel

from marl.config.load import yaml_text
from marl.config.schema import walk

# What other libraries call our fields, or a reader might.
OTHER_NAMES = {
    "gamma": "discount",
    "lambda": "gae_lambda",
    "lam": "gae_lambda",
    "trace": "gae_lambda",
    "alpha": "learning_rate",
    "step_size": "learning_rate",
    "eps": "clip",
    "epsilon": "clip",
    "clip_range": "clip",
    "clip_coef": "clip",
    "beta": "entropy",
    "ent_coef": "entropy",
    "max_gradient": "max_grad_norm",
    "weighing": "advantage",
    "idle": "zero_action",
    "n_steps": "steps",
    "num_steps": "steps",
    "rollout_length": "steps",
    "update_epochs": "epochs",
    "ppo_epochs": "epochs",
    "segment": "sequence_length",
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


def numbered(mistakes: Sequence[str]) -> str:
    """Several mistakes in one paragraph."""
    listed = " ".join(f"({number}) {mistake}" for number, mistake in enumerate(mistakes, 1))
    return f"The config has {len(mistakes)} mistakes. {listed}"


def field_of(place: Sequence[Any], fields: set[str]) -> str:
    """The field that a problem is with; where it may be of several types, each has problems of its own below."""
    paths = list(accumulate(map(str, place), "{}.{}".format))
    return next((path for path in paths if path in fields), ".".join(map(str, place)))


def explain(model: type[BaseModel], path: str, problems: Sequence[Any]) -> str:
    """One sentence on the problems that pydantic found with one field, and how to mend them."""
    problem = problems[0]
    if problem["type"] == "extra_forbidden":
        if "." in str(problem["loc"][-1]):
            section, _, last = path.rpartition(".")
            return f"Unknown key {path}: in a file sections are nested, such as {section}: {{{last}: …}}."
        known = [name for name, _, _ in walk(model)]
        near = _nearest(path, known)
        hint = f"Did you mean {near}?" if near else f"Known keys: {', '.join(_siblings(path, known))}."
        return f"Unknown key {path}. {hint}"
    if problem["type"] == "missing":
        return f"{path} is missing: {problem['msg'].lower()}."
    default = next((field.default for name, field, _ in walk(model) if name == path), None)
    # Of a value that may be a number or a list, and is a list, the entries say more than that it is no number.
    entries = [each for each in problems if isinstance((path, *each["loc"])[-1], int)]
    lengths = [each for each in problems if each["type"] == "too_short"]
    told = entries[:1] or lengths or problems
    message = " or ".join(dict.fromkeys(_expected(each, default) for each in told))
    place = f"{path}: " if path else ""
    if problem["type"] == "value_error":
        return f"{place}{message}."
    if entries:
        place += f"entry {entries[0]['loc'][-1] + 1} of the list: "
    got = told[0]["input"]
    return f"{place}expected {message}; got {'null' if got is None else repr(got)}."


def _expected(problem: Any, default: Any) -> str:
    """The values that a field takes, in the words of a config."""
    kind = problem["type"]
    if kind in ("tuple_type", "list_type"):
        return f"a list such as {yaml_text(default or [problem['input']])}" if isinstance(default, tuple) else "a list"
    if kind in ("dict_type", "model_type"):
        return "a section such as {name: value}"
    if kind == "too_short":
        least = problem["ctx"]["min_length"]
        return f"a list of at least {least} {'entry' if least == 1 else 'entries'}"
    return re.sub(r"^(Value error, |Input should be )|, unable to parse.*", "", problem["msg"])


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
    """True where `short` is made of the beginnings of all words in turn, as lr and learn_r are of learning_rate."""
    short = short.removeprefix("_")
    if not words or not short:
        return not words and not short
    lengths = range(1, len(words[0]) + 1)
    return any(short[:n] == words[0][:n] and _abbreviates(short[n:], words[1:]) for n in lengths)


def _siblings(path: str, known: list[str]) -> list[str]:
    section = path.rpartition(".")[0]
    return sorted({name for name in known if name.rpartition(".")[0] == section})
