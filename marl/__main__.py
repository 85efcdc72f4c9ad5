"""The command line: `concord --help`."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from marl.commands.allocator import keep_freed_memory
from marl.output.console import console, in_words

# Heavy imports (torch, matplotlib) belong to the commands that need them: help and listings answer at once.
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Train agents that decide together, judge them, and re-measure every claim.\n\n"
    "Start with [bold]concord list[/bold], then [bold]concord run cooperative/spread[/bold]. Everything in a config "
    "can be set on the command line as [bold]key=value[/bold]; a bare comma list sweeps: [bold]seed=0,1,2[/bold].",
)

ConfigsArgument = Annotated[
    str, typer.Argument(help="a YAML file or a name from `concord list`; a comma list compares", metavar="CONFIG")
]
ConfigArgument = Annotated[str, typer.Argument(help="a YAML file, or a name from `concord list`", metavar="CONFIG")]
Assignments = Annotated[list[str] | None, typer.Argument(help="key=value …", metavar="[KEY=VALUE]...")]
RunFolder = Annotated[Path, typer.Argument(help="the folder of a run", metavar="DIR")]
RunFolders = Annotated[list[Path], typer.Argument(help="folders of runs or sweeps", metavar="DIR...")]


@app.command()
def run(
    config: ConfigsArgument,
    assignments: Assignments = None,
    out: Annotated[Path | None, typer.Option(help="the folder to make; default runs/NAME-TIME-PROCESS")] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="processes of a sweep; default one a core")] = None,
    dry: Annotated[bool, typer.Option("--dry", help="say what would be done, and do nothing")] = False,
) -> None:
    """Train from a config, evaluate, and leave report, curve, film, events and checkpoints in one folder."""
    from marl.commands.run import new_folder, run_training, with_configs
    from marl.config.catalog import find_config
    from marl.config.load import resolve, split_assignments

    raws, points = with_configs([find_config(name) for name in config.split(",")], split_assignments(assignments or []))
    if dry:
        from marl.commands.preview import preview_points

        preview_points(raws, points, console)
        return
    folder = out or new_folder(list(raws))
    if len(points) == 1:
        report = run_training(resolve(next(iter(raws.values())), points[0]), folder)
    else:
        from marl.commands.sweep import run_sweep  # what a single run needs not

        report = run_sweep(raws, points, folder, processes)

    from marl.commands.printing import print_report

    print_report(report, folder, console)


@app.command()
def resume(folder: RunFolder, assignments: Assignments = None) -> None:
    """Continue a run or sweep that was interrupted, exactly where its newest checkpoint was taken, or train longer.

    train.env_steps=2000000 lets a finished one go on to so many steps. Settings under resume. may be given too:
    resume.restart_episodes=true.
    """
    from marl.commands.printing import print_report
    from marl.commands.sweep import resume_folder

    print_report(resume_folder(folder, assignments or []), folder, console)


@app.command()
def evaluate(folder: RunFolder, assignments: Assignments = None) -> None:
    """Play a trained team again, elsewhere or longer: evaluation.episodes=5000, env.args.local_ratio=0.2, seed=7.

    One comma list plays it at each value: env.agents=2,10,100,1000 shows how a swarm approaches its limit.
    """
    from marl.commands.evaluate import evaluate_folder
    from marl.commands.printing import print_evaluation

    report, path = evaluate_folder(folder, assignments or [])
    print_evaluation(report, path, path.with_suffix(".png"), f"evaluation of {folder}", console)


@app.command()
def show(config: ConfigArgument, assignments: Assignments = None) -> None:
    """Print the resolved config: every field with its value, range and meaning."""
    from marl.commands.printing import print_config
    from marl.config.catalog import find_config
    from marl.config.load import read_yaml, resolve, split_assignments

    raw = read_yaml(find_config(config))
    for point in split_assignments(assignments or []):
        print_config(resolve(raw, point), console)


@app.command(name="list")
def list_configs() -> None:
    """List the configs that come with Concord: what each is for, how long it takes, what to expect."""
    from marl.commands.printing import print_catalog
    from marl.config.catalog import catalog

    print_catalog(catalog(), console)


@app.command()
def compare(
    folders: RunFolders,
    metric: Annotated[str, typer.Option(help="the metric to compare")] = "return_per_agent",
    out: Annotated[Path, typer.Option(help="where the picture goes")] = Path("comparison.png"),
) -> None:
    """Compare runs: a table and a plot, with intervals over seeds; runs that differ only in their seed form a group."""
    from marl.commands.compare import compare_folders
    from marl.commands.printing import print_comparison

    groups = compare_folders(folders, metric, out)
    print_comparison(groups, metric, console)
    console.print(f"picture    {out}")


@app.command(name="cross-play")
def cross_play(
    folders: Annotated[list[str], typer.Argument(help="folders of runs or sweeps; key=value …", metavar="DIR...")],
    out: Annotated[Path, typer.Option(help="where the picture goes; the report beside it")] = Path("cross_play.png"),
) -> None:
    """Play trained teams beside one another, and beside scripted partners where their world has any."""
    from marl.commands.cross_play import cross_play_folders
    from marl.commands.printing import print_evaluation

    print_evaluation(*cross_play_folders(folders, out), "cross-play", console)


@app.command()
def render(folder: RunFolder) -> None:
    """Film a trained team: DIR/film.gif; of agents that see each other's actions also DIR/graph.gif and graph.png.

    Of an offline evaluation: make DIR/report.html from DIR/report.json again.
    """
    from marl.commands.evaluate import render_folder
    from marl.commands.printing import print_files

    print_files(*render_folder(folder), console)


@app.command()
def bench(
    name: Annotated[str | None, typer.Argument(help="one benchmark; default all quick ones", metavar="[NAME]")] = None,
    out: Annotated[Path | None, typer.Option(help="a folder for report.json")] = None,
) -> None:
    """Measure speed on this machine, per CPU-second, next to a calibration loop."""
    from marl.bench import run_benchmarks
    from marl.output.tables import print_metrics

    folder = out or Path(tempfile.mkdtemp(prefix="concord-bench-"))
    report = run_benchmarks(name, folder)
    print_metrics(report.metrics, "benchmarks", console, "slowest to fastest")
    console.print(f"report     {folder / 'report.json'}")


@app.command()
def claims(
    ids: Annotated[list[str] | None, typer.Argument(help="ids or prefixes; default all", metavar="[ID]...")] = None,
    tier: Annotated[str, typer.Option(help="quick, slow or all")] = "all",
    check: Annotated[
        bool, typer.Option("--check", help="measure nothing; list what falls short, is not measured, or is out of date")
    ] = False,
) -> None:
    """Measure what the project claims, and say line by line what holds."""
    from marl.claims.check import check_claims
    from marl.claims.measure import measure_claims

    raise typer.Exit(check_claims(ids or [], tier) if check else measure_claims(ids or [], tier))


def main() -> None:
    """Run a command; errors that the user can mend are one paragraph, never a traceback."""
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # being told to end is as Ctrl-C
    keep_freed_memory()
    try:
        app()
    except SystemExit as stop:
        if stop.code == 130:  # how the command line's library ends after Ctrl-C
            errors.print("\nInterrupted. What was saved is intact; continue with [bold]concord resume DIR[/bold].")
        raise
    except Exception as error:
        if os.environ.get("CONCORD_TRACEBACK"):
            raise
        exit_code = getattr(error, "exit_code", None)
        told = _unexpected(error) if exit_code is None else str(error)
        errors.print("[bold red]Error:[/bold red]", Text(told))
        sys.exit(1 if exit_code is None else exit_code)


def _unexpected(error: Exception) -> str:
    """One paragraph for what the disk or the memory refused, or nobody foresaw, with the traceback in a file."""
    if isinstance(error, OSError):
        return f"{in_words(error)} Mend the file, the permissions or the disk; what was saved before is intact."
    with tempfile.NamedTemporaryFile("w", prefix="concord-error-", suffix=".txt", delete=False) as file:
        traceback.print_exception(error, file=file)
    return (
        f"{in_words(error)} Nobody foresaw this: it is a mistake in Concord, or in your own environment or recipe. The "
        f"traceback is in {file.name}; what was saved before is intact."
    )


if __name__ == "__main__":
    main()
