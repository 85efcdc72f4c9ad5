"""Cross-play of trained runs: each beside every other, and beside the scripted partners of their world."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from envs.core import Actor, EnvSpec, InputError
from marl.config.load import split_assignments
from marl.config.schema import TrainingConfig
from marl.evaluation.cross_play import CrossPlay, cross_play, draw
from marl.evaluation.load import load_actor
from marl.evaluation.plots import require_picture_name
from marl.evaluation.policy_report import optional
from marl.output.report import REPORT, Metric, Report, Tables
from marl.training.run import Run, stage_seed

PICTURE = "cross_play.png"


def cross_play_folders(words: Sequence[str], picture: Path) -> tuple[Report, Path]:
    """Cross-play of runs, those of sweeps among them, in the first one's environment; a picture, and a report beside.

    words: folders, and assignments as evaluations take them. Raises InputError for less than two runs, and for runs of
    other tasks.
    """
    require_picture_name(picture)
    folders = [Path(word) for word in words if "=" not in word or Path(word).is_dir()]  # a point's name has a = too
    points = split_assignments([word for word in words if Path(word) not in folders])
    if len(points) > 1:
        raise InputError("Cross-play takes one setting at a time; got a comma list.")
    foreign = [key for key in points[0] if not key.startswith(("env.args", "evaluation.", "device", "threads"))]
    if foreign:
        raise InputError(f"{foreign[0]} changes nothing in cross-play; env.args.… and evaluation.… do.")
    named = _named(list(dict.fromkeys(path.resolve() for folder in folders for path in _finished(folder))))
    if len(named) < 2:
        raise InputError(f"Cross-play is of at least two runs, or of a sweep's; got {len(named)}.")
    runs = {name: Run.open(folder, points[0]) for name, folder in named.items()}
    played = play(runs)
    first = next(iter(runs.values())).config
    seeds = [run.config.seed for run in runs.values()]
    tables: Tables = {"cross_play": played.table()}
    report = Report(first.recipe, seeds, first.model_dump(mode="json"), _prefixed(played, ""), tables)
    try:
        picture.parent.mkdir(parents=True, exist_ok=True)
        draw({first.env.args.get("layout", ""): played.table()}, picture)
    except OSError as error:
        raise InputError(f"Cannot write {picture}: {error.strerror or error}. Choose another --out.") from error
    report.save(picture.with_suffix(".json"))
    return report, picture.with_suffix(".json")


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
            played = play(runs)
            metrics |= _prefixed(played, f"{label}/" if len(variants) > 1 else "")
            panels[label] = played.table()
    if not panels:
        return {}, {}
    with optional("cross-play"):
        draw(panels, folder / PICTURE)
    several = len(variants) > 1
    rows = [{**({"variant": label} if several else {}), **row} for label, table in panels.items() for row in table]
    return metrics, {"cross_play": rows}


def play(runs: Mapping[str, Run]) -> CrossPlay:
    """Cross-play of trained runs by name. Raises InputError where one of them was trained for another task."""
    actors: dict[str, Actor] = {}
    specs: dict[str, EnvSpec] = {}
    for name, run in runs.items():
        if not isinstance(run.config, TrainingConfig):
            raise InputError(f"{run.config.recipe} trains nobody who acts, so {run.folder} has no partner to offer.")
        actors[name], env = load_actor(run, 1)
        specs[name] = env.spec
        env.close()
    first = next(iter(runs))
    for name, spec in specs.items():
        if spec != specs[first]:
            raise InputError(
                f"{name} was trained for another task than {first}: agents, what they see, what they choose, rewards "
                f"and horizon must be the same. {first}: {specs[first]}. {name}: {spec}."
            )
    run = runs[first]
    return cross_play(run.config, actors, stage_seed(run.config.seed, "cross-play"), run.device)


def _prefixed(played: CrossPlay, prefix: str) -> dict[str, Metric]:
    """Metrics of cross-play under their names."""
    return {f"{prefix}cross_play/{name}": metric for name, metric in played.metrics().items()}


def _finished(folder: Path) -> list[Path]:
    """Folders of the runs in a folder: itself, or a sweep's points. Raises InputError where nothing has finished."""
    points = sorted(folder.glob(f"*/{REPORT}"))
    if points:
        return [point.parent for point in points]
    if not (folder / REPORT).is_file():
        raise InputError(f"{folder} holds no finished run: there is no {REPORT} in it.")
    return [folder]


def _named(folders: Sequence[Path]) -> dict[str, Path]:
    """Folders by as little of their path as tells them apart."""
    for parts in range(1, 1 + max((len(folder.parts) for folder in folders), default=0)):
        named = {"/".join(folder.parts[-parts:]): folder for folder in folders}
        if len(named) == len(folders):
            return named
    return {}
