"""The things that a config asks for: the log, what is known of its logger, and the policies to evaluate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from envs.core import InputError
from recsys.bandit.importance_weights import LoggerInfo
from recsys.bandit.kernel import RealPolicy, real_log
from recsys.config import COLUMN, TRAINED, TargetConfig
from recsys.logs import formats
from recsys.logs.config import DataConfig
from recsys.logs.files import scan
from recsys.logs.log import Columns, Log
from recsys.logs.paths import home, matching
from recsys.policies import base as policies
from recsys.policies.base import Policy
from recsys.policies.from_run import columns_of, trained
from recsys.problems.bandit import SyntheticBandit


def read_log(data: DataConfig, seed: int, more: Sequence[str] = ()) -> Log:
    """The log; the rows of a synthetic one follow from the seed. more: columns of KuaiRand's features to read too."""
    if data.format == "synthetic":
        return SyntheticBandit(data.synthetic).log(seed).with_context(data.context)
    if data.format == "table":
        assert data.path is not None
        columns = columns_of_table(data)
        if data.bandwidth is not None:
            frame, files = formats.read_real(data.path, columns, data.missing)
            log = real_log(frame, columns, data.path, files)
        else:
            log = formats.table(data.path, columns, data.actions, data.missing)
    elif data.format == "kuairand":
        assert data.path is not None
        more = (*data.context, *more)
        log = formats.kuairand(
            Path(data.path), data.version, _kuairand(data), data.signals, data.segments, more, data.missing
        )
    else:
        path = None if data.path is None else Path(data.path)
        logger: Literal["random", "bts"] = "bts" if data.logged_by == "bts" else "random"
        log = formats.open_bandit(path, data.campaign, logger, data.segments, data.missing)
        if data.hide_propensity:
            log = log.with_columns(replace(log.columns, propensity=None))
    return log.with_context((*data.context, *data.loggers))


def _kuairand(data: DataConfig) -> Literal["random", "standard"]:
    return "standard" if data.logged_by == "standard" else "random"


def open_slice(data: DataConfig, log: Log, more: Sequence[str] = ()) -> tuple[Log, Log | None]:
    """The log and its random slice, where the config names one, over the actions of both; more: as of `read_log`."""
    if data.random_slice and data.format == "kuairand":
        slice_ = formats.kuairand(
            Path(str(data.path)),
            data.version,
            "random",
            data.signals,
            more=(*log.context, *more),
            missing=data.missing,
        )
        slice_ = formats.random_slice(slice_.frame, slice_.columns, slice_.name, slice_.files)
    elif data.random_slice:
        path = None if data.path is None else Path(data.path)
        return log, formats.open_bandit(path, data.campaign, "random", missing=data.missing)
    elif data.random is not None and data.random.path is not None:
        frame, files = scan(matching(data.random.path), data.random.path, log.columns.cells(data.missing))
        slice_ = formats.random_slice(frame, log.columns, data.random.path, files)
    elif data.random is not None:
        log, frame = formats.random_rows(log, str(data.random.column))
        slice_ = formats.random_slice(frame, log.columns, f"the random rows of {data.path}", log.files)
    else:
        return log, None
    slice_ = slice_.with_context(log.context)
    if data.actions is not None:
        return log, slice_.over(log.catalog, log.position_catalog)
    return formats.one_catalog(log, slice_)


def columns_of_table(data: DataConfig) -> Columns:
    """The columns of a table, as the config names them."""
    assert data.columns is not None
    return data.columns.of_log(segments=data.segments)


def logger_of(data: DataConfig, log: Log) -> LoggerInfo:
    """The config's knowledge of who logged; that this was at random is known where the format says so."""
    logging: Policy | None = None
    problem = problem_of(data)
    if problem is not None:
        logging = problem.logging
    elif data.logging == "uniform" or (data.logging is None and _random(data)):
        logging = policies.uniform(log, "logging")
    elif data.logging is not None and ":" in data.logging and not home(data.logging).is_file():
        logging = policies.own(log, data.logging, "logging")
    elif data.logging is not None:
        logging = policies.stored_table(log, data.logging, "logging")
    category = None if data.categories is None else formats.categories(log, data.categories)
    return LoggerInfo(logging, category, data.loggers or None)


def _random(data: DataConfig) -> bool:
    return data.format == "open_bandit" and data.logged_by == "random" and not data.hide_propensity


def problem_of(data: DataConfig) -> SyntheticBandit | None:
    """The problem that a synthetic log is from."""
    return SyntheticBandit(data.synthetic) if data.format == "synthetic" else None


def with_columns(target: TargetConfig, log: Log) -> Log:
    """The log with the columns that the policies read."""
    seen = [column for path in runs_of(target) for column in columns_of(path, target.observation)]
    real = [name.removeprefix(COLUMN) for name in target.target if name.startswith(COLUMN)]
    return log.with_context((*_score_columns(target, log), *seen, *real))


def runs_of(target: TargetConfig) -> list[str]:
    """The folders of trained policies."""
    return [name.removeprefix(TRAINED) for name in target.target if name.startswith(TRAINED)]


def _score_columns(target: TargetConfig, log: Log) -> list[str]:
    return [] if target.scores is None else [f"{target.scores}{action}" for action in range(log.actions)]


def make_policies(data: DataConfig, target: TargetConfig, log: Log) -> list[Policy]:
    """All that the config asks for. Raises InputError where two would go by one name."""
    made = [make_policy(name, data, target, log) for name in target.target]
    names = [policy.name for policy in made]
    for told, name in zip(target.target, names, strict=True):
        if names.count(name) > 1:
            raise InputError(f"policy.target: {told} and another target both go by the name {name}; rename one.")
    return made


def make_policy(name: str, data: DataConfig, target: TargetConfig, log: Log) -> Policy:
    """The policy that the config calls `name`."""
    scores = _score_columns(target, log)
    if name.startswith(TRAINED):
        return trained(log, name.removeprefix(TRAINED), target.observation)
    if name.startswith(COLUMN):
        assert data.bandwidth is not None
        return RealPolicy(name.removeprefix(COLUMN), columns_of_table(data), data.bandwidth)
    problem = problem_of(data)
    makers: dict[str, Callable[[], Policy]] = (
        {} if problem is None else {"best": problem.best, "logging": lambda: problem.logging}
    )
    makers |= {
        "random": lambda: policies.uniform(log, "random"),
        "uniform": lambda: policies.uniform(log),
        "popularity": lambda: policies.popularity(log),
        "bts": lambda: policies.stored_table(log, formats.open_bandit_policy(data.campaign), "bts"),
        "table": lambda: policies.stored_table(log, str(target.table)),
        "softmax": lambda: policies.softmax(log, scores, target.temperature),
        "epsilon_greedy": lambda: policies.epsilon_greedy(log, scores, target.epsilon),
    }
    return makers.get(name, lambda: policies.own(log, name))()
