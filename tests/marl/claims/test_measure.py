"""Claims are measured: which ones, what is recorded and when, and what a check lists."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_claims import COMMIT, ENTRY, MEASURED, TEST, commit, git, make_root

from envs.core import ConcordError, InputError
from marl.claims.check import check_claims
from marl.claims.measure import Ledger, Measurement, StoppedError, measure_claims, passed, with_values
from marl.output.versions import machine


def test_claims_are_selected_by_id_prefix_and_tier(tmp_path: Path):
    others = ({**ENTRY, "id": "core/speed-16"}, {**ENTRY, "id": "bnpg/slow", "tier": "slow"})
    ledger = Ledger(make_root(tmp_path, ENTRY, *others))

    def ids(chosen: list[str], tier: str) -> list[str]:
        return [c.id for c in ledger.select(chosen, tier)]

    assert ids([], "all") == ["core/speed", "core/speed-16", "bnpg/slow"]
    assert ids([], "slow") == ["bnpg/slow"]
    assert ids(["core/speed"], "all") == ["core/speed"]
    assert ids(["core/"], "quick") == ["core/speed", "core/speed-16"]
    with pytest.raises(InputError, match=r"'core/sped'.*core/speed"):
        ledger.select(["core/sped"], "all")
    with pytest.raises(InputError, match="--tier is one of quick, slow, all; got 'fast'"):
        ledger.select([], "fast")


def test_what_was_measured_on_a_clean_tree_is_recorded_with_its_commit(tmp_path: Path, capfd: Any):
    root = make_root(tmp_path, TEST, {**TEST, "id": "core/again", "command": "pytest tests -q"})
    head = commit(root)
    assert measure_claims([], "all", root) == 0
    assert "Not recorded" not in capfd.readouterr().out
    for claim in Ledger(root).claims:  # the second although recording the first has changed the tree
        assert claim.measured is not None
        assert (claim.measured.value, claim.measured.commit, claim.measured.machine) == (1, head, machine())
    assert f"| passed | == 1 | yes | {head[:7]} |" in (root / "docs/claims.md").read_text()


@pytest.mark.parametrize("path", ["marl/learn.py", "marl/new.py"])
def test_what_was_measured_on_a_tree_with_uncommitted_changes_is_printed_and_not_recorded(
    tmp_path: Path, capfd: Any, path: str
):
    root = make_root(tmp_path, {**TEST, "measured": MEASURED})
    commit(root)
    (root / path).write_text("rate = 2")
    before = (root / "benchmarks/claims.yaml").read_text()
    assert measure_claims([], "all", root) == 0
    printed = capfd.readouterr().out
    assert (
        f"Not recorded, since the tree has uncommitted changes ({path}): commit first, then measure again." in printed
    )
    assert "1 holds" in printed
    assert (root / "benchmarks/claims.yaml").read_text() == before
    assert "passed" not in (root / "docs/claims.md").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("pathlib.Path('left.txt').touch()", "uncommitted changes (left.txt)"),
        ("subprocess.run([*GIT, 'commit', '-q', '--allow-empty', '-m', 'x'], check=True)", "moved to another commit"),
    ],
)
def test_a_tree_that_changes_while_a_command_runs_is_not_recorded(
    tmp_path: Path, capfd: Any, change: str, message: str
):
    root = make_root(tmp_path, TEST)
    user = "['git', '-c', 'user.name=Ada', '-c', 'user.email=ada@example.org', '-c', 'commit.gpgsign=false']"
    test = f"import pathlib, subprocess\nGIT = {user}\n\ndef test_true():\n    {change}\n"
    (root / "tests/test_toy.py").write_text(test)
    commit(root)
    assert measure_claims([], "all", root) == 0
    assert message in capfd.readouterr().out
    assert Ledger(root).claims[0].measured is None


def test_outside_a_clone_nothing_is_recorded(tmp_path: Path, capfd: Any):
    root = make_root(tmp_path, TEST)
    assert measure_claims([], "all", root) == 0
    assert "Not recorded, since no git commit says what was measured" in capfd.readouterr().out
    assert Ledger(root).claims[0].measured is None


def test_recording_keeps_what_was_edited_meanwhile(tmp_path: Path):
    root = make_root(tmp_path, ENTRY)
    ledger = Ledger(root)
    make_root(root, {**ENTRY, "bar": ">= 140000"}, {**TEST, "id": "core/new"})
    ledger.record(with_values(ledger.claims, Measurement({"step/16/calibrated": 130_000.0}, {}), COMMIT))
    assert [(c.id, c.state) for c in Ledger(root).claims] == [
        ("core/speed", "falls short"),
        ("core/new", "not measured"),
    ]


def test_a_check_lists_what_falls_short_what_is_not_measured_and_what_is_out_of_date(tmp_path: Path, capsys: Any):
    names = ("old", "new", "elsewhere", "undated", "open", "changed")
    ids = [*(f"core/{name}" for name in names), "bnpg/short", "bnpg/disputed"]
    root = make_root(tmp_path, *({**ENTRY, "id": name} for name in ids))
    first = commit(root)
    (root / "marl/learn.py").write_text("rate = 2")
    second = commit(root, "Faster learning")
    entries = {
        "core/old": {"measured": {**MEASURED, "value": 200_000, "commit": first}},
        "core/new": {"measured": {**MEASURED, "value": 200_000, "commit": second}},
        "core/elsewhere": {"measured": {**MEASURED, "value": 200_000}},
        "core/undated": {"measured": {**MEASURED, "value": 200_000, "commit": None}},
        "core/open": {},
        "core/changed": {"measured": {**MEASURED, "value": 200_000, "commit": second}, "bar": ">= 10"},
        "bnpg/short": {"measured": {**MEASURED, "commit": first}},
        "bnpg/disputed": {"measured": {**MEASURED, "commit": first}, "disputed": "envs"},
    }
    make_root(root, *({**ENTRY, "id": name, **fields} for name, fields in entries.items()))
    (root / "marl/learn.py").write_text("rate = 2")
    commit(root)
    assert check_claims([], "all", root) == 1
    short, disputed, *rest = capsys.readouterr().out.splitlines()[1:]
    assert short.split() == ["bnpg/short", "1.5", ">=", "120000", "falls", "short"]
    assert disputed.endswith("disputed, see envs")
    date = git(root, "log", "-1", "--format=%cs", second).strip()
    assert rest == [
        "Not measured: 1",
        "    core/open",
        "Defined otherwise (command, metric, bar or seeds) when they were measured: 1",
        "    core/changed",
        "Measured before their system or their tests last changed: 3",
        f"  core, by {second[:7]} of {date}, Faster learning:",
        "    core/old core/elsewhere",
        "  measured before their commit was recorded, so measure them again:",
        "    core/undated",
        "2 holds, 2 commit unknown, 1 defined otherwise, 1 falls short, 1 disputed, 1 not measured",
    ]


def test_a_check_finds_a_change_that_was_merged_after_the_measurement_though_it_is_older(tmp_path: Path, capsys: Any):
    root = make_root(tmp_path, ENTRY)
    commit(root)
    trunk = git(root, "branch", "--show-current").strip()
    git(root, "checkout", "--quiet", "-b", "side")
    (root / "envs/__init__.py").write_text("side = 1")
    commit(root, "On the side")
    git(root, "checkout", "--quiet", trunk)
    (root / "marl/graphs.py").write_text("edges = 2")
    measured = commit(root, "On the trunk")
    git(root, "-c", "user.name=Ada", "-c", "user.email=ada@example.org", "merge", "--quiet", "side")
    entry = {**ENTRY, "measured": {**MEASURED, "value": 200_000, "commit": measured}}
    (root / "benchmarks/claims.yaml").write_text(yaml.safe_dump([entry]))
    assert check_claims([], "all", root) == 0
    assert "On the side:\n    core/speed\n" in capsys.readouterr().out


def test_a_claim_of_a_test_is_out_of_date_where_the_test_has_changed(tmp_path: Path, capsys: Any):
    root = make_root(tmp_path, TEST, {**TEST, "id": "core/other", "command": "pytest tests/test_other.py"})
    commit(root)
    assert measure_claims(["core/exact"], "all", root) == 0
    (root / "tests/test_toy.py").write_text("def test_true():\n    pass\n")
    commit(root, "A weaker test")
    capsys.readouterr()
    assert check_claims([], "all", root) == 0
    assert "A weaker test:\n    core/exact\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change", [{"command": "pytest tests -q"}, {"metric": "failed"}, {"bar": "== 0"}, {"seeds": 2}, {"id": "core/name"}]
)
def test_a_value_counts_only_for_the_definition_that_it_was_measured_with(
    tmp_path: Path, capsys: Any, change: dict[str, Any]
):
    root = make_root(tmp_path, {**TEST, "claim": "In other words."})
    measured = {**MEASURED, "value": 1, "commit": commit(root)}
    make_root(root, {**TEST, "measured": measured})
    assert check_claims([], "all", root) == 0
    assert "1 holds" in capsys.readouterr().out
    make_root(root, {**TEST, "measured": measured, **change})
    commit(root)
    assert check_claims([], "all", root) == 0
    assert "1 defined otherwise" in capsys.readouterr().out


def test_nothing_is_recorded_of_a_definition_that_is_not_committed(tmp_path: Path, capfd: Any):
    root = make_root(tmp_path, TEST)
    commit(root)
    make_root(root, {**TEST, "bar": ">= 0"})
    assert measure_claims([], "all", root) == 0
    assert "uncommitted changes (benchmarks/claims.yaml): commit first" in capfd.readouterr().out
    assert Ledger(root).claims[0].measured is None


def test_a_check_passes_where_nothing_falls_short_undisputed(tmp_path: Path, capsys: Any):
    disputed = {**ENTRY, "id": "core/disputed", "measured": MEASURED, "disputed": "envs"}
    root = make_root(tmp_path, {**ENTRY, "measured": {**MEASURED, "value": 200_000}}, disputed)
    assert check_claims(["core/speed"], "all", root) == 0
    assert capsys.readouterr().out.startswith("Fall short or are disputed: none\nNot measured: none\nDefined otherwise")
    assert check_claims([], "all", root) == 0
    printed = capsys.readouterr().out
    assert "`git rev-list` fails" in printed  # no clone: the third list cannot be told, the others can
    assert "1 commit unknown, 1 disputed" in printed


def test_a_test_is_run_once_for_all_its_claims(tmp_path: Path, capfd: Any):
    root = make_root(
        tmp_path, TEST, {**TEST, "id": "core/same"}, {**TEST, "id": "core/none", "command": "pytest tests -k no"}
    )
    commit(root)
    assert measure_claims(["core/exact", "core/same"], "all", root) == 0
    assert capfd.readouterr().out.count("1 passed") == 1
    assert [c.state for c in Ledger(root).claims] == ["holds", "holds", "not measured"]
    assert measure_claims(["core/none"], "all", root) == 1
    assert "exit code 5 after 0 tests" in capfd.readouterr().out
    assert Ledger(root).claims[2].state == "not measured"


@pytest.mark.parametrize(
    ("end", "state"),
    [("sys.exit(2)", "not measured"), ("os.kill(os.getpid(), 9)", "holds"), ("sys.exit(130)", "holds")],
)
def test_a_command_that_fails_by_itself_leaves_no_value_and_one_that_is_stopped_the_old_one(
    tmp_path: Path, capfd: Any, end: str, state: str
):
    recorded = {**ENTRY, "measured": {**MEASURED, "value": 200_000}}
    root = make_root(tmp_path, recorded)
    (root / "marl/__main__.py").write_text(f"import os, sys\n{end}")
    commit(root)
    assert measure_claims([], "all", root) == 1
    printed = capfd.readouterr().out
    assert "failed: " in printed
    assert ("no longer measured (the old values stand in git): core/speed" in printed) == (state == "not measured")
    assert Ledger(root).claims[0].state == state


def test_a_missing_metric_is_told_apart_from_one_that_cannot_be_measured_here(tmp_path: Path, capfd: Any):
    program = """
        import json, pathlib, sys
        out = pathlib.Path(sys.argv[-1])
        out.mkdir()
        found = {"step/16/calibrated": {"value": 1.5e5, "low": 1.0, "high": 2.0, "n": 1}}
        table = {"not_measured": [{"metric": "workers", "reason": "busy"}]}
        report = dict(recipe="x", seed=0, config={}, metrics=found, tables=table, versions={})
        (out / "report.json").write_text(json.dumps(report))
    """
    entries = [
        ENTRY,
        {**ENTRY, "id": "core/busy", "metric": "workers"},
        {**ENTRY, "id": "core/typo", "metric": "step/16", "measured": MEASURED},
    ]
    root = make_root(tmp_path, *entries)
    (root / "marl/__main__.py").write_text(textwrap.dedent(program))
    commit(root)
    assert measure_claims(["core/speed", "core/busy"], "all", root) == 0
    assert "not measured: busy" in capfd.readouterr().out
    assert [c.state for c in Ledger(root).claims] == ["holds", "not measured", "falls short"]
    assert measure_claims([], "all", root) == 1
    assert "no metric 'step/16'; it has step/16/calibrated" in capfd.readouterr().out
    assert [c.state for c in Ledger(root).claims] == ["holds", "not measured", "not measured"]


def test_a_test_passes_only_where_some_ran_and_none_failed_or_was_skipped(tmp_path: Path):
    path, good = tmp_path / "results.xml", '<testcase name="good"/>'

    def outcome(cases: str, code: int) -> bool:
        path.write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
        return passed(path, code)

    assert outcome(good, 0)
    assert not outcome(good + '<testcase name="bad"><failure/></testcase>', 1)
    assert not outcome('<testcase name="unread"><error/></testcase>', 2)
    for kind in ("pytest.skip", "pytest.xfail"):
        with pytest.raises(ConcordError, match=r"skipped were test_it \(no GPU\)"):
            outcome(f'{good}<testcase name="test_it"><skipped type="{kind}" message="no GPU"/></testcase>', 0)
    with pytest.raises(ConcordError, match="exit code 5 after 0 tests"):
        outcome("", 5)
    with pytest.raises(StoppedError, match="stopped with exit code 2"):
        outcome(good, 2)
    with pytest.raises(ConcordError, match="exit code 4"):
        passed(tmp_path / "none.xml", 4)
