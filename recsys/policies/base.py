"""Policies to evaluate: how probable is each action to them, in the place where a row was logged."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import polars as pl
from jaxtyping import Float, Int

from envs.core import InputError, import_dotted
from marl.output.console import in_words
from recsys.logs.action_tables import by_action, real_numbers
from recsys.logs.labels import as_text
from recsys.logs.log import Chunk, Log, require_rows
from recsys.logs.tables import require_columns
from recsys.models.reward import RewardModel

Distribution = Float[np.ndarray, "n A"]
BLOCK = 2**22  # numbers at most in a block of distributions and predictions
TOLERANCE = 1e-6  # by how much a distribution may miss 1
ROUNDED = 1e-3  # and one that somebody wrote down
STEADY = 1e-4  # by how much it may differ when rows are asked again: single precision depends on who sums with whom


@runtime_checkable
class Policy(Protocol):
    """A distribution over the catalog of A actions for every row.

    `table` is the whole policy where it knows no more of a row than its position, and None where it needs the row.
    """

    name: str
    actions: int

    @property
    def table(self) -> Float[np.ndarray, "positions A"] | None:
        """π(a | position), or None."""

    def distribution(self, rows: Chunk) -> Distribution:
        """π(· | x) of few rows."""

    def probability(self, rows: Chunk) -> Float[np.ndarray, " n"]:
        """π(a | x) of the logged actions of any number of rows."""


class TablePolicy:
    """π(action | position), whatever the context. Raises InputError where a position's probabilities are none.

    of_the_log: whether it is made of the rows that it is judged by.
    """

    of_the_log = False

    def __init__(self, name: str, table: Float[np.ndarray, "positions A"]):
        if np.ndim(table) != 2:
            raise InputError(
                f"The policy {name} is a table [positions, actions]; got an array {list(np.shape(table))}."
            )
        self.name, self.actions, self.table = name, table.shape[1], table
        require_distribution(name, table, "position")

    def distribution(self, rows: Chunk) -> Distribution:
        """The rows of the table."""
        return self.table[rows.position]

    def probability(self, rows: Chunk) -> Float[np.ndarray, " n"]:
        """The entries of the table."""
        return np.take(self.table, rows.position * self.actions + rows.action)


class ContextPolicy:
    """A policy that reads the row: `choose(rows)` gives its distributions, [n, A]."""

    table: Float[np.ndarray, "positions A"] | None = None

    def __init__(self, name: str, actions: int, choose: Callable[[Chunk], Distribution]):
        self.name, self.actions, self._choose = name, actions, choose
        self._is_steady = False

    def distribution(self, rows: Chunk) -> Distribution:
        """Distribution as `choose` gives it, checked.

        Raises InputError where it fails, gives no distribution over the catalog, or gives the rows of the first block
        another one when asked again.
        """
        chances = self._asked(rows)
        require_distribution(self.name, chances, "row", rows.row_numbers)
        if not self._is_steady:
            self._require_steady(rows, chances)
            self._is_steady = True
        return chances

    def _asked(self, rows: Chunk) -> Distribution:
        there = ", ".join(rows.context) or "none (name them in context)"
        wanted = (
            f"A policy is a function of a recsys.logs.log.Chunk that gives numbers [{len(rows)} rows, {self.actions} "
            f"actions], here with the columns {there} in rows.context."
        )
        try:
            given = self._choose(rows)
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"The policy {self.name} failed. {in_words(error)} {wanted}") from error
        chances = _numbers(given, lambda what: f"The policy {self.name} gave {what}. {wanted}")
        if chances.shape != (len(rows), self.actions):
            raise InputError(f"The policy {self.name} gave an array {list(chances.shape)}. {wanted}")
        return chances

    def _require_steady(self, rows: Chunk, chances: Distribution) -> None:
        """Ask for the second half of the rows alone: what draws, counts calls or mixes rows does not give the same."""
        half = slice(len(rows) // 2, len(rows))
        off = np.abs(self._asked(rows.take(half)) - chances[half]).max(1)
        if off.max(initial=0) <= STEADY:
            return
        row = int(rows.row_numbers[half][np.argmax(off)]) + 1
        raise InputError(
            f"The policy {self.name} gave row {row} other probabilities when it was asked again, apart by up to "
            f"{off.max():.3g}. A policy's answer must follow from the row alone: it gives the probabilities with which "
            "it would draw instead of drawing, keeps nothing between calls, and takes rows one by one."
        )

    def probability(self, rows: Chunk) -> Float[np.ndarray, " n"]:
        """Block by block."""
        parts = [
            np.take_along_axis(self.distribution(block), block.action[:, None], 1)[:, 0]
            for block in rows.blocks(max(1, BLOCK // self.actions))
        ]
        return np.concatenate(parts) if parts else np.zeros(0)


class OwnPolicy(ContextPolicy):
    """A policy of any class, whose every answer is checked."""

    def __init__(self, policy: Policy):
        super().__init__(policy.name, policy.actions, policy.distribution)
        self._policy, self.table = policy, policy.table
        self.of_the_log = getattr(policy, "of_the_log", False)
        if self.table is not None:
            require_distribution(policy.name, np.asarray(self.table, dtype=np.float64), "position")

    def probability(self, rows: Chunk) -> Float[np.ndarray, " n"]:
        """Probabilities as the policy gives them. Raises InputError where it fails, or gives others than in [0, 1]."""
        try:
            chances = np.asarray(self._policy.probability(rows), dtype=np.float64)
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"The policy {self.name} failed. {in_words(error)}") from error
        if chances.shape != (len(rows),) or not ((chances >= 0) & (chances <= 1 + TOLERANCE)).all():
            raise InputError(
                f"The policy {self.name} must give each of {len(rows)} rows the probability of its logged action, in "
                f"[0, 1]; it gave an array {list(chances.shape)} of values from {np.min(chances, initial=np.inf):.6g} "
                f"to {np.max(chances, initial=-np.inf):.6g}."
            )
        return chances


def require_distribution(
    name: str, table: Float[np.ndarray, "n A"], place: str, numbers: Int[np.ndarray, " n"] | None = None
) -> None:
    """Raise InputError unless every line of `table` is a probability distribution; numbers: of its lines, from 0."""
    bad = ~(np.isfinite(table).all(1) & (table >= 0).all(1) & (np.abs(table.sum(1) - 1) <= TOLERANCE))
    if bad.any():
        worst = int(np.argmax(bad))
        line, number = table[worst], worst if numbers is None else int(numbers[worst])
        raise InputError(
            f"The policy {name} must give probabilities ≥ 0 that add up to 1; at {place} {number + 1} they "
            f"lie in [{line.min():.6g}, {line.max():.6g}] and add up to {line.sum():.9g} ({int(bad.sum())} such)."
        )


def uniform(log: Log, name: str = "uniform") -> TablePolicy:
    """Every action alike: 1/A."""
    return TablePolicy(name, np.full((log.positions, log.actions), 1 / log.actions))


def popularity(log: Log, name: str = "popularity") -> TablePolicy:
    """In proportion to how often the log shows each action, at any position; one scan."""
    count = np.zeros(log.actions)
    for chunk in log.chunks():
        count += np.bincount(chunk.action, chunk.multiplicity, log.actions)
    policy = TablePolicy(name, np.tile(count / count.sum(), (log.positions, 1)))
    policy.of_the_log = True
    return policy


def stored_table(log: Log, path: str | Path, name: str = "table") -> TablePolicy:
    """A CSV of one line an action: its label in the first column, then its probability at each position.

    Columns that are headed by positions as the log writes them may come in any order; else they come in the log's.
    They are renormalized if they add up to 1 within 1e-3, as rounded ones do. Raises InputError for other files.
    """
    values = f"one of probabilities for each of {log.positions} positions"
    lines = by_action(log, path, "table of a policy", values, log.positions)
    table = np.ascontiguousarray(_by_position(real_numbers(lines, path), log, path).to_numpy().T)
    table = _renormalized(table)
    require_distribution(f"of {path}", table, "position")
    return TablePolicy(name, table)


def _renormalized(table: Float[np.ndarray, "positions A"]) -> Float[np.ndarray, "positions A"]:
    """The table, adding up to 1 where rounded numbers nearly do; any other is refused."""
    total = table.sum(1, keepdims=True)
    return table / total if np.abs(total - 1).max() <= ROUNDED else table


def _by_position(table: pl.DataFrame, log: Log, path: str | Path) -> pl.DataFrame:
    """Columns in the order of the log's positions. Raises InputError where headers name some positions, not all."""
    positions = [] if log.position_catalog is None else as_text(log.position_catalog.labels)
    named = [name for name in table.columns if name in positions]
    if not named:
        return table
    if len(named) < len(positions):
        raise InputError(
            f"{path} heads its columns {', '.join(table.columns)}; the positions are {', '.join(positions)}. Head them "
            "by all of these, or by none of them and in this order."
        )
    return table.select(positions)


def softmax(log: Log, scores: Sequence[str], temperature: float = 1.0, name: str = "softmax") -> ContextPolicy:
    """exp(score / temperature), normalized: one column of scores for each action, in the catalog's order."""
    from scipy import special

    _require_scores(log, scores)

    def choose(rows: Chunk) -> Distribution:
        chances: Distribution = special.softmax(_scores(rows, scores) / temperature, axis=1)
        return chances

    return ContextPolicy(name, log.actions, choose)


def epsilon_greedy(log: Log, scores: Sequence[str], epsilon: float, name: str = "epsilon_greedy") -> ContextPolicy:
    """With probability 1 - ε the action of the highest score (ties share), with ε any alike."""
    _require_scores(log, scores)

    def choose(rows: Chunk) -> Distribution:
        values = _scores(rows, scores)
        best = values == values.max(1, keepdims=True)
        return (1 - epsilon) * best / best.sum(1, keepdims=True) + epsilon / log.actions

    return ContextPolicy(name, log.actions, choose)


NAMED = {"uniform": uniform, "popularity": popularity}
RESERVED = ("", "logged", "truth")  # names of what stands beside policies


def own(log: Log, path: str, name: str | None = None) -> ContextPolicy:
    """A function `module:name` of a Chunk that gives [n, A]. Raises InputError where there is none."""
    try:
        function: Any = import_dotted(path)
    except InputError:
        raise
    except Exception as error:  # whatever a module of the user's own does
        raise InputError(f"Cannot import the policy {path}. {in_words(error)}") from error
    if not callable(function):
        raise InputError(f"A policy by dotted path is a function of a Chunk, module:name; {path} is no such thing.")
    return ContextPolicy(name or path.rpartition(":")[2], log.actions, function)


def policy_of(what: Any, log: Log, name: str) -> Policy:
    """A policy of a name ("uniform", "popularity", "module:function"), of probabilities, or of a function of a Chunk.

    Probabilities are [A], or [positions, A], or by label, such as {"shoes": 0.7, "hats": 0.3}; a function gives [n, A].
    Those given are renormalized as a table's are. Raises InputError for anything else.
    """
    if isinstance(what, Policy):
        renamed = copy.copy(what)
        renamed.name = name
        return _fitting(renamed, log)
    if isinstance(what, str):
        if what not in NAMED and ":" not in what:
            raise InputError(
                f"The policy {name} is {what!r}: expected {', '.join(NAMED)}, or a function of your own, module:name."
            )
        return NAMED[what](log, name) if what in NAMED else own(log, what, name)
    if callable(what):
        return ContextPolicy(name, log.actions, what)
    if isinstance(what, Mapping):
        what = _by_label(what, log, name)
    expected = (
        f"The policy {name} is given as {log.actions} probabilities, in the order of the catalog, as such a list for "
        f"each of {log.positions} positions, by label, as a function of a Chunk, or by name"
    )
    table = np.atleast_2d(_numbers(what, lambda held: f"{expected}; got {held}."))
    if table.ndim != 2 or table.shape[1] != log.actions or len(table) not in (1, log.positions):
        raise InputError(
            f"The policy {name} must give each of {log.actions} actions a probability, at {log.positions} positions or "
            f"at all alike; got an array {list(table.shape)}."
        )
    return TablePolicy(name, np.broadcast_to(_renormalized(table), (log.positions, log.actions)))


def _by_label(given: Mapping[Any, Any], log: Log, name: str) -> list[Any]:
    """Values in the order of the catalog, 0 for labels that are not named. Raises InputError for unknown ones."""
    known = log.catalog.labels.to_list()
    unknown = [label for label in given if label not in known]
    if unknown:
        raise InputError(
            f"The policy {name} gives probabilities to {', '.join(map(repr, unknown[:5]))}, which the catalog of "
            f"{log.name} does not hold: its {len(known)} labels are {', '.join(map(repr, known[:5]))}"
            f"{', …' if len(known) > 5 else ''}."
        )
    return [given.get(label, 0.0) for label in known]


def _numbers(given: Any, refused: Callable[[str], str]) -> Float[np.ndarray, "*shape"]:
    """What somebody gave as an array of numbers.

    Raises InputError, with the sentence that `refused` makes of what it is, for text, for lists of unequal length, and
    for no array at all.
    """
    try:
        numbers = np.asarray(given)
    except Exception as error:  # whatever an array of the user's own says of itself
        raise InputError(refused(f"no array ({in_words(error).rstrip('.')})")) from error
    if numbers.dtype.kind not in "biuf":
        raise InputError(refused(type(given).__name__ if numbers.ndim == 0 else f"an array of {numbers.dtype}"))
    return numbers.astype(np.float64)


def policies_of(policies: Sequence[Policy] | Mapping[str, Any], log: Log) -> list[Policy]:
    """All policies to evaluate, those given by name as `policy_of` makes them.

    Raises InputError for none, for what is no policy, and for names that numbers cannot be told by.
    """
    if not isinstance(log, Log):
        raise InputError(
            "Expected a log, such as recsys.dataframe(frame, action=…, rewards=[…], propensity=…) makes of a table; "
            f"got a {type(log).__name__}."
        )
    if isinstance(policies, Mapping):
        require_names(list(policies))
        policies = [policy_of(what, log, name) for name, what in policies.items()]
    if not isinstance(policies, Sequence) or not all(isinstance(policy, Policy) for policy in policies):
        raise InputError(
            f'Expected policies by name, such as {{"new": "uniform"}}, or a list of them; got {policies!r}.'
        )
    require_names([policy.name for policy in policies])
    return [_fitting(policy, log) for policy in policies]


def _fitting(policy: Policy, log: Log) -> Policy:
    """A policy whose answers are held against the log's catalog. Raises InputError for one of another catalog."""
    table = policy.table
    if policy.actions != log.actions or (table is not None and np.shape(table) != (log.positions, log.actions)):
        of = f"{policy.actions} actions" if table is None else f"a table {list(np.shape(table))}"
        raise InputError(
            f"The policy {policy.name} is of {of}; {log.name} has {log.actions} actions at {log.positions} positions. "
            "Make it for this log."
        )
    return policy if isinstance(policy, TablePolicy | ContextPolicy) else OwnPolicy(policy)


def require_names(names: Sequence[Any]) -> None:
    """Raise InputError for no name, or one that is no text, empty, taken, or given twice."""
    if not names:
        raise InputError("There is nothing to evaluate: give at least one policy.")
    if len(set(names)) < len(names):
        raise InputError(f"Policies are told by their names; got {', '.join(map(str, names))}.")
    for name in names:
        if not isinstance(name, str) or name in RESERVED or "/" in name:
            raise InputError(
                f"A policy has a name of its own, without /, that is not {' or '.join(RESERVED[1:])}; got {name!r}."
            )


def expected_reward(policy: Policy, model: RewardModel, rows: Chunk) -> Float[np.ndarray, "n K"]:
    """Σ_a π(a | x) q(x, a), block by block: no array over all rows and actions is ever made."""
    if policy.table is not None and model.table is not None:
        return np.take(np.einsum("pa,pak->pk", policy.table, model.table), rows.position, axis=0)
    size = max(1, BLOCK // (policy.actions * rows.reward.shape[1]))
    parts = [np.einsum("na,nak->nk", policy.distribution(b), model.predict(b)) for b in rows.blocks(size)]
    return np.concatenate(parts) if parts else np.zeros(rows.reward.shape)


def _scores(rows: Chunk, columns: Sequence[str]) -> Distribution:
    scores: Distribution = np.stack([rows.context[name] for name in columns], 1).astype(np.float64)
    require_rows(~np.isnan(scores).any(axis=1), f"a score of {columns[0]}, … is missing", rows)
    return scores


def _require_scores(log: Log, columns: Sequence[str]) -> None:
    require_columns(columns, log.context, "score columns", "the log's context columns")
    for name in columns:
        if not log.schema[name].is_numeric():
            raise InputError(
                f"Column {name!r} of {log.name} must hold scores, one number a row; it holds {log.held(name)}."
            )
    if len(columns) != log.actions:
        raise InputError(
            f"A policy of scores needs one column for each of the {log.actions} actions; got {len(columns)}."
        )
