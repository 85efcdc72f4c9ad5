"""A recipe: one algorithm from its config to its report."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from rich.console import Console

from envs.core import Actor, InputError, VectorEnv
from marl.config.schema import RunConfig

if TYPE_CHECKING:
    from marl.output.report import Metric, Report, Tables
    from marl.training.run import Run


class Recipe(ABC):
    """One algorithm from its config to its report.

    A config names it by the dotted path of a module whose `recipe` is an instance. A subclass has a `config` and `run`;
    all else has a default. What trains on its own experience is an `OnPolicyRecipe` (marl.evaluation.recipe).
    """

    config: ClassVar[type[RunConfig]] = RunConfig
    learns: ClassVar[bool] = True  # seeds give results that differ as draws of training do
    files: ClassVar[Mapping[str, str]] = MappingProxyType({})  # what a run of this recipe leaves beside the usual
    judged: ClassVar[tuple[str, ...]] = ()  # tables of a report that a sweep keeps point by point

    @abstractmethod
    def run(self, config: Any, run: Run) -> Report:
        """Do everything, and say what came out. The caller saves the report, once; pictures are drawn here."""

    def preview(self, config: Any, console: Console) -> None:
        """Say what `run` would do, and do nothing of it; `concord run CONFIG --dry`."""
        raise InputError(f"{config.recipe} cannot say beforehand what it would do; run it without --dry.")

    def load(self, run: Run, num_envs: int) -> tuple[Actor, VectorEnv]:
        """The trained actor of a run as it was last saved, and environments to play it in."""
        raise InputError(f"{run.config.recipe} trains nobody who acts, so there is no actor to play.")

    def played_stage(self, config: Any) -> str | None:
        """The stage that trained what `load` gives; None where no stage did."""
        return None

    def findings(self, run: Run, actor: Any, env: VectorEnv) -> tuple[dict[str, Metric], Tables]:
        """Metrics and tables that an evaluation of this recipe's actor has beside the returns."""
        return {}, {}

    def limit(self, actor: Any, env: VectorEnv) -> dict[str, Metric]:
        """The exact return of infinitely many agents, `limit/…`, where it can be found."""
        return {}

    def pictures(self, run: Run) -> list[Path]:
        """Draw a finished run again; gives the files."""
        raise InputError(f"{run.config.recipe} draws nothing of a finished run.")

    def can_stack(self, config: Any) -> bool:
        """True where `train` trains several seeds as one."""
        return False

    def train(self, config: Any, run: Run) -> Any:
        """Train alone, for seeds that are trained as one; each of them then judges itself."""
        raise InputError(f"{run.config.recipe} trains nothing apart from its whole run.")

    def shown(self, metrics: Mapping[str, Metric]) -> dict[str, Metric]:
        """Those of a report's metrics that are printed one by one; a recipe leaves out what `show` tells better."""
        return {name: metric for name, metric in metrics.items() if not name.startswith("agents=")}  # `along` has these

    def show(self, tables: Tables, console: Console) -> None:  # noqa: B027 (nothing, unless a subclass has something)
        """Print of a report's tables what a person should read after its metrics."""
