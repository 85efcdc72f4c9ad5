"""Cross-play of trained runs: each beside every other, and beside the scripted partners of their world."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from envs.core import Actor, EnvSpec, InputError
from marl.commands.compare import reports_in
from marl.config.load import flatten, split_assignments
from marl.config.schema import TrainingConfig
from marl.evaluation.cross_play import CrossPlay, cross_play
from marl.evaluation.environments import differing, evaluation_config, require_effect
from marl.evaluation.load import load_actor
from marl.evaluation.plots import cross_play_heat_map, require_picture_name
from marl.evaluation.policy_report import optional
from marl.output.report import Metric, Report, Tables
from marl.training.run import Run, stage_seed

PICTURE = "cross_play.png"
HAVE_AN_EFFECT = (
    "env.args.",
    "env.time_limit.",
    "evaluation.args.",
    "evaluation.time_limit.",
    "evaluation.episodes.",
    "evaluation.num_envs.",
    "evaluation.patience.",
    "evaluation.load.",
    "device.",
    "threads.",
)
NOT_TOLD = {"num_envs", "workers"}  # of an environment, which make no other task of it


def cross_play_folders(words: Sequence[str], picture: Path) -> tuple[Report, Path, Path]:
    """Cross-play of runs, those of sweeps among them; gives its report, where that is, and the picture.

    words: folders, and assignments as evaluations take them. Raises InputError for less than two runs, for runs that
    are evaluated in different environments, and where the report would take the place of another file.
    """
    require_picture_name(picture)
    path = picture.with_suffix(".json")
    _require_free(path)
    folders = [Path(word) for word in words if _is_folder(word)]
    points = split_assignments([word for word in words if not _is_folder(word)])
    if len(points) > 1:
        raise InputError("Cross-play takes one setting at a time; got a comma list.")
    foreign = [key for key in points[0] if not f"{key}.".startswith(HAVE_AN_EFFECT)]
    if foreign:
        these = ", ".join(name.rstrip(".") for name in HAVE_AN_EFFECT)
        raise InputError(f"{foreign[0]} changes nothing in cross-play; these do: {these}.")
    found = dict.fromkeys(report.parent.resolve() for folder in folders for report in reports_in(folder))
    named = _named(list(found))
    if len(named) < 2:
        raise InputError(f"Cross-play is of at least two runs, or of a sweep's; got {len(named)}.")
    runs = {name: Run.open(folder, points[0]) for name, folder in named.items()}
    for folder in named.values():
        trained = Run.open(folder).config
        if isinstance(trained, TrainingConfig):
            require_effect(trained, points[0])
    played = play(runs)
    first = next(iter(runs.values())).config
    seeds = [run.config.seed for run in runs.values()]
    tables: Tables = {"cross_play": played.table()}
    report = Report(first.recipe, seeds, first.model_dump(mode="json"), _prefixed(played, ""), tables)
    try:
        picture.parent.mkdir(parents=True, exist_ok=True)
        cross_play_heat_map({"": played.table()}, picture)
    except OSError as error:
        raise InputError(f"Cannot write {picture}: {error.strerror or error}. Choose another --out.") from error
    report.save(path)
    return report, path, picture


def cross_play_seeds(folder: Path, variants: Mapping[str, Sequence[Path]]) -> tuple[dict[str, Metric], Tables]:
    """Cross-play of a sweep's seeds, of each variant by itself: metrics, a table and a picture in the sweep's folder.

    Nothing of variants that do not ask for it (`evaluation.cross_play`) or have one seed.
    """
    metrics: dict[str, Metric] = {}
    panels = {}
    for label, folders in variants.items():
        runs = {f"seed {run.config.seed}": run for run in map(Run.open, folders)}
        config = next(iter(runs.values())).config
        if isinstance(config, TrainingConfig) and config.evaluation.cross_play and len(runs) > 1:
            with optional(f"cross-play of {label}"):  # a sweep has its report whatever fails here
                played = play(runs)
                metrics |= _prefixed(played, f"{label}/" if len(variants) > 1 else "")
                panels[label] = played.table()
    if not panels:
        return {}, {}
    with optional("cross-play"):
        cross_play_heat_map(panels, folder / PICTURE)
    several = len(variants) > 1
    rows = [{**({"variant": label} if several else {}), **row} for label, table in panels.items() for row in table]
    return metrics, {"cross_play": rows}


def play(runs: Mapping[str, Run]) -> CrossPlay:
    """Cross-play of trained runs by name. Raises InputError where they are not evaluated in one environment."""
    actors: dict[str, Actor] = {}
    specs: dict[str, EnvSpec] = {}
    for name, run in runs.items():
        if not isinstance(run.config, TrainingConfig):
            raise InputError(f"{run.config.recipe} trains nobody who acts, so {run.folder} has no partner to offer.")
        actors[name], env = load_actor(run, 1)
        specs[name] = env.spec
        env.close()
    first = next(iter(runs))
    for name in runs:
        _require_one_environment(first, runs[first].config, name, runs[name].config)
        if other := differing(specs[first], specs[name]):
            raise InputError(f"{name} was trained for another task than {first}: {other}.")
    run = runs[first]
    return cross_play(run.config, actors, stage_seed(run.config.seed, "cross-play"), run.device)


def _require_one_environment(first: str, one: TrainingConfig, name: str, other: TrainingConfig) -> None:
    """Raise InputError where two runs are evaluated in different environments, by what tells them apart."""
    here, there = _told(one), _told(other)
    for key in sorted(here.keys() | there.keys()):
        if here.get(key) != there.get(key):
            raise InputError(
                f"{name} is evaluated in another environment than {first}: env.{key} is {there.get(key)}, not "
                f"{here.get(key)}. What trained them may differ; set evaluation.{key} where both are to meet."
            )


def _told(config: TrainingConfig) -> dict[str, Any]:
    return flatten(evaluation_config(config).model_dump(mode="json", exclude=NOT_TOLD))


def _prefixed(played: CrossPlay, prefix: str) -> dict[str, Metric]:
    """Metrics of cross-play under their names."""
    return {f"{prefix}cross_play/{name}": metric for name, metric in played.metrics().items()}


def _require_free(path: Path) -> None:
    """Raise InputError where there is a file that cross-play has not written."""
    try:
        ours = not path.exists() or list(Report.load(path).tables) == ["cross_play"]
    except InputError:
        ours = False
    if not ours:
        raise InputError(f"The report would take the place of {path}. Choose another --out.")


def _is_folder(word: str) -> bool:
    """Points of sweeps have a = in their names, as assignments do."""
    return Path(word).is_dir() or "/" in word.partition("=")[0] or "=" not in word


def _named(folders: Sequence[Path]) -> dict[str, Path]:
    """Folders by their names, points of a sweep by its name too, unless all are of one."""
    if len({folder.parent for folder in folders}) == 1:
        return {folder.name: folder for folder in folders}
    for parts in range(2, 1 + max((len(folder.parts) for folder in folders), default=0)):
        named = {"/".join(folder.parts[-parts:]): folder for folder in folders}
        if len(named) == len(folders):
            return named
    return {}
