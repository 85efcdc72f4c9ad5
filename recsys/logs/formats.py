"""Readers of log formats: the Open Bandit Dataset, KuaiRand, and any CSV or Parquet table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from jaxtyping import Int

from envs.core import InputError
from recsys.logs.action_tables import by_action
from recsys.logs.catalog import Catalog, in_order
from recsys.logs.files import MISSING_WORDS, Cells, Files, scan
from recsys.logs.labels import as_text
from recsys.logs.log import Columns, Log
from recsys.logs.paths import home, matching
from recsys.logs.tables import collect, require_columns, schema_of

SAMPLE = Path(__file__).parents[1] / "data" / "open_bandit"
POSITIONS = 3  # of the Open Bandit Dataset, numbered from 1
ITEMS = {"all": 80, "men": 34, "women": 46}

Campaign = Literal["all", "men", "women"]
Logger = Literal["random", "bts"]
Version = Literal["pure", "1k", "27k"]

KUAIRAND_POOL = 7583  # videos of which the random slice draws one at a time
KUAIRAND_LOGS = {
    "random": ("log_random_4_22_to_5_08",),
    "standard": ("log_standard_4_08_to_4_21", "log_standard_4_22_to_5_08"),
}
KUAIRAND_SIGNALS = (
    "is_click",
    "is_like",
    "is_follow",
    "is_comment",
    "is_forward",
    "is_hate",
    "long_view",
    "play_time_ms",
)
KUAIRAND_FEATURES = {"user_id": "user_features", "video_id": "video_features_basic"}  # files, and what they tell of
KUAIRAND_COLUMNS = (
    *("user_id", "video_id", "date", "hourmin", "time_ms"),
    *KUAIRAND_SIGNALS,
    *("duration_ms", "profile_stay_time", "comment_stay_time", "is_profile_enter", "is_rand", "tab"),
)


def catalog_of(actions: int | Sequence[Any]) -> Catalog:
    """The labels 0, …, actions - 1, or those given. Raises InputError for labels that are missing or given twice."""
    if isinstance(actions, int):
        return Catalog.numbered(actions)
    labels = pl.Series(list(actions))
    if not len(labels) or labels.has_nulls() or labels.n_unique() < len(labels):
        raise InputError(f"actions are how many, or labels, each given once; got {list(actions)[:10]}.")
    return Catalog(in_order(labels))


def table(
    path: str,
    columns: Columns,
    actions: int | Sequence[int | str] | None = None,
    missing: Sequence[str] = MISSING_WORDS,
) -> Log:
    """Any table: a file, a folder of files, or a pattern such as logs/*/*.parquet; read in the order of names.

    actions: the labels are 0, …, actions - 1, or those given; without it, whatever the log shows. missing: words of a
    CSV that stand for no value.
    """
    frame, files = scan(matching(path), path, columns.cells(missing))
    return Log(frame, columns, None if actions is None else catalog_of(actions), name=path, files=files)


def read_real(path: str, columns: Columns, missing: Sequence[str] = MISSING_WORDS) -> tuple[pl.LazyFrame, Files]:
    """The rows of any table whose action is a real number, as `recsys.bandit.kernel.real_log` takes them."""
    cells = columns.cells(missing)
    labels = tuple(name for name in cells.labels if name != columns.action)
    return scan(matching(path), path, replace(cells, labels=labels, numbers=(*cells.numbers, columns.action)))


def categories(log: Log, path: str | Path) -> Int[np.ndarray, " A"]:
    """A number for the category of each action, from a CSV: its label in the first column, its category in the second.

    Raises InputError for other files, and for actions without a category or with several.
    """
    rest = by_action(log, path, "table of categories", "one of categories")
    if rest[:, 0].has_nulls():
        lacking = as_text(log.catalog.labels)[rest[:, 0].is_null().arg_true()[0]]
        raise InputError(f"{path} must give each of the {log.actions} actions one category; {lacking!r} has none.")
    return rest[:, 0].rank("dense").to_numpy().astype(np.int64) - 1


def dataframe(
    data: Any, *, actions: int | Sequence[Any] | None = None, missing: Sequence[str] = (), **columns: Any
) -> Log:
    """A log from a DataFrame of polars or pandas, an Arrow table, or a dict of columns.

    columns: as in `log.Columns`, so at least action and rewards. actions: how many, which says that they are
    0, 1, 2, …; or their labels, which may be more than the log shows; without it, those that it shows. Without
    propensity, `recsys.bandit.fitted_propensities.fit` fits it. missing: words that stand for no value in columns of
    text, beside the missing values that the table itself has.
    Raises InputError for what is no table, and for columns of no such name.
    """
    known = [each.name for each in fields(Columns)]
    require_columns(list(columns), known, "arguments", "what a column may be")
    frame = data if isinstance(data, pl.DataFrame | pl.LazyFrame) else None
    if frame is None:
        try:
            frame = pl.DataFrame(data) if isinstance(data, dict) else pl.DataFrame(pl.from_dataframe(data))
        except (TypeError, ValueError, AttributeError, OverflowError, pl.exceptions.PolarsError) as error:
            raise InputError(f"A log is a DataFrame or a dict of columns; got {type(data).__name__}: {error}") from None
    for several in {"rewards", "segments", "context"} & {"rewards", *columns}:
        names = columns.get(several, ())
        columns[several] = (names,) if isinstance(names, str) else tuple(names)
    lacking = [name for name in ("action", "rewards") if not columns.get(name)]
    if lacking:
        raise InputError(f"A log needs the names of its columns; {', '.join(lacking)} missing.")
    named = Columns(**columns)
    if missing:
        schema = schema_of(frame.lazy(), "the log")
        text = [name for name in named.cells().named() if schema.get(name) in (pl.String, pl.Categorical)]
        frame = frame.with_columns(pl.col(name).replace(list(missing), None) for name in text)
    return Log(frame.lazy(), named, None if actions is None else catalog_of(actions))


def open_bandit(
    path: Path | None,
    campaign: Campaign,
    logged_by: Logger,
    segments: Sequence[str] = (),
    missing: Sequence[str] = MISSING_WORDS,
) -> Log:
    """One log of the Open Bandit Dataset: the sample that comes with Concord, or a folder of your own.

    A folder holds <logger>_<campaign>.csv[.gz], as the sample, or <logger>/<campaign>/<campaign>.csv, as published.
    It has no column of users.
    """
    folder = SAMPLE if path is None else home(path)
    stems = (f"{logged_by}_{campaign}.csv", f"{logged_by}/{campaign}/{campaign}.csv")
    options = [folder / f"{stem}{suffix}" for stem in stems for suffix in ("", ".gz")]
    files = [option for option in options if option.is_file()]
    if not files:
        raise InputError(
            f"{folder} holds no log of {campaign} by {logged_by}: expected {options[1].name} or {stems[1]}."
        )
    columns = Columns("item_id", ("click",), "propensity_score", "position", segments=tuple(segments))
    positions = Catalog.numbered(POSITIONS, 1, "position")
    name = str(files[0])
    frame, source = scan(files[:1], name, columns.cells(missing))
    if logged_by == "bts":
        frame = frame.with_columns(_sixteen_decimals(pl.col("propensity_score")))
    return Log(frame, columns, Catalog.numbered(ITEMS[campaign]), positions, name, files=source)


def _sixteen_decimals(propensity: pl.Expr) -> pl.Expr:
    """Propensities cut after 16 decimals, as the reader of the published pipeline cuts them: at most 1e-13 of one.

    It decides ties: 1/46 is in the logs with 18 decimals, and there a weight of (1/46) / (1/46) is above a threshold of
    1 of switch_dr, here as in the reference values.
    """
    cut = propensity.cast(pl.String).str.slice(0, len("0.") + 16).cast(pl.Float64)
    return pl.when(propensity > 1e-3).then(cut).otherwise(propensity)


def open_bandit_policy(campaign: Campaign) -> Path:
    """The table of Thompson sampling's choices, from the prior it was deployed with."""
    return SAMPLE / f"bts_action_dist_{campaign}.csv"


def kuairand(
    folder: Path,
    version: Version,
    logged_by: Literal["random", "standard"],
    signals: Sequence[str] = KUAIRAND_SIGNALS,
    segments: Sequence[str] = (),
    more: Sequence[str] = (),
    missing: Sequence[str] = MISSING_WORDS,
) -> Log:
    """KuaiRand's random slice or its standard log, as published: Pure, 1K or 27K (whose logs come in parts).

    Random rows were drawn uniformly from a pool of 7,583 videos: their propensity, given that a video was replaced, is
    1/7583. The standard log has none: they have to be fitted. Users are clusters. segments, more: columns of the log,
    or of the published files of user and video features in the same folder; what these do not have of a row is missing.
    Source: Gao et al., CIKM 2022 (arXiv 2208.08696).
    """
    folder = home(folder)
    paths = [path for base in KUAIRAND_LOGS[logged_by] for path in sorted(folder.glob(f"{base}_{version}*.csv*"))]
    bases = [base for base in KUAIRAND_LOGS[logged_by] if not any(path.name.startswith(base) for path in paths)]
    if bases:
        raise InputError(f"{folder} lacks {bases[0]}_{version}.csv, a log of KuaiRand-{version}.")
    name = f"KuaiRand-{version}, {logged_by}"
    columns = Columns("video_id", tuple(signals), user="user_id", segments=tuple(segments))
    cells = columns.cells(missing)
    frame, files = scan(paths, name, cells)
    require_columns(KUAIRAND_COLUMNS, schema_of(frame, name), "columns", f"the columns of {paths[0].name}")
    frame, files = _with_features(frame, files, folder, version, (*segments, *more), cells)
    if logged_by == "random":
        columns = replace(columns, propensity="propensity")
        frame = frame.with_columns(propensity=pl.lit(1 / KUAIRAND_POOL))
    return Log(frame, columns, name=name, files=files)


def _with_features(
    frame: pl.LazyFrame, files: Files, folder: Path, version: Version, names: Sequence[str], cells: Cells
) -> tuple[pl.LazyFrame, Files]:
    """The log with those of the columns that are features of users or videos, joined as rows are read.

    Raises InputError for names that are nowhere, and for files that tell of a user or a video twice.
    """
    mine = schema_of(frame, str(folder))
    known = list(mine)
    wanted = [name for name in dict.fromkeys(names) if name not in known]
    lacking = []
    for key, base in KUAIRAND_FEATURES.items() if wanted else ():
        paths = sorted(folder.glob(f"{base}_{version}.csv*"))[:1]
        if not paths:
            lacking.append(f"{base}_{version}.csv")
            continue
        name = str(paths[0])
        features, source = scan(paths, name, Cells((key,), cells.segments, missing=cells.missing))
        schema = schema_of(features, name)
        require_columns([key], schema, "columns", f"the columns of {name}")
        found = [column for column in wanted if column in schema]
        wanted, known = [column for column in wanted if column not in found], [*known, *schema]
        if found:
            _require_key(features, key, (schema[key], mine[key]), name, source)
            frame = frame.join(features.select(key, *found), on=key, how="left", maintain_order="left")
            files = files.and_of(source)
    where = f"the columns of KuaiRand-{version} in {folder}"
    require_columns(wanted, known, "columns", f"{where}, which lacks {' and '.join(lacking)}" if lacking else where)
    return frame, files


def _require_key(features: pl.LazyFrame, key: str, kinds: tuple[Any, Any], name: str, files: Files) -> None:
    """Raise InputError for features that do not tell of each user or video once; kinds: of the key here and there."""
    if not all(kind.is_integer() for kind in kinds):
        raise InputError(
            f"{key} must be a whole number, written as 12 is, in {name} and in the log; they hold {kinds[0]} and "
            f"{kinds[1]}."
        )
    bad = pl.col(key).is_duplicated().any() | pl.col(key).is_null().any()
    if collect(features.select(bad), name, files.fault).item():
        raise InputError(f"{name} must tell of each {key} once, by its whole number; some are missing or repeated.")


def random_rows(log: Log, column: str) -> tuple[Log, pl.LazyFrame]:
    """A log without the rows that a column marks as shown at random, and these. Raises InputError for other columns."""
    require_columns([column], log.schema, "columns", f"the columns of {log.name}")
    kind = log.schema[column]
    if not (kind == pl.Boolean or kind.is_integer()):
        held = log.held(column, pl.Int64)
        raise InputError(f"Column {column!r} of data.random must hold true and false, or 1 and 0; it holds {held}.")
    distinct = log.frame.select(pl.col(column).cast(pl.Int64)).unique()
    marks = collect(distinct, log.name, log.files.fault).to_series().to_list()
    if set(marks) != {0, 1}:
        raise InputError(
            f"Column {column!r} of data.random must mark some rows as random and others not, each one; it holds "
            f"{', '.join(map(str, sorted(marks, key=str)[:10]))}."
        )
    random = pl.col(column).cast(pl.Boolean)
    rest = log.of_rows(log.frame.filter(~random), f"{log.name} without {column}")
    return rest, log.frame.filter(random)


def random_slice(frame: pl.LazyFrame, columns: Columns, name: str, files: Files | None = None) -> Log:
    """Rows whose actions were drawn uniformly: propensity 1/A of the A actions that they show.

    By symmetry this holds given the set that is shown, however many there were to draw from.
    """
    shown = Log(frame, replace(columns, propensity=None), name=name, files=files)
    frame = shown.frame.with_columns(slice_propensity=pl.lit(1 / shown.actions))
    columns = replace(columns, propensity="slice_propensity")
    return Log(frame, columns, shown.catalog, shown.position_catalog, name, files=files)


def one_catalog(log: Log, slice_: Log) -> tuple[Log, Log]:
    """Both with the actions of either. Raises InputError where their labels are of two kinds."""
    labels = [x.catalog.labels for x in (log, slice_)]
    if not log.catalog.holds(slice_.catalog.labels.dtype):
        raise InputError(
            f"The actions of a log and of its random slice must be labels of one kind; they are {labels[0].dtype} and "
            f"{labels[1].dtype}. Write them alike in both."
        )
    if labels[0].dtype.is_integer():
        kind = pl.Int128 if any(x.dtype in (pl.UInt64, pl.Int128) for x in labels) else pl.Int64
        labels = [x.cast(kind) for x in labels]
    catalog = Catalog(in_order(pl.concat(labels).unique()))
    return log.over(catalog, log.position_catalog), slice_.over(catalog, log.position_catalog)
