"""Claims are measured: which ones, what is recorded, and when a recorded value is stale."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from small_claims import ENTRY, MEASURED, REPOSITORY, TEST, make_root

from envs.core import InputError
from marl.claims.entries import Claim
from marl.claims.measure import (
    ORCHESTRATION,
    Ledger,
    Outcome,
    digest,
    module_file,
    modules_in,
    passing_tests,
    run_claims,
)


def outcome(**values: float) -> Outcome:
    return Outcome(
        {name.replace("__", "/"): v for name, v in values.items()}, {}, {"torch": "2"}, ["marl", "marl.learn"]
    )


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


def test_a_digest_changes_with_a_loaded_module_and_with_nothing_else(tmp_path: Path):
    root = make_root(tmp_path, TEST)
    test = Claim.model_validate(TEST)
    before = digest(test, ["marl", "marl.learn"], root)
    (root / "envs/__init__.py").write_text("unrelated = 1")
    assert digest(test, ["marl", "marl.learn"], root) == before
    changed = [before]
    for name in ("marl/learn.py", "tests/test_toy.py"):
        (root / name).write_text("rate = 2")
        changed.append(digest(test, ["marl", "marl.learn"], root))
    changed.append(digest(test.model_copy(update={"metric": "other"}), ["marl", "marl.learn"], root))
    assert len(set(changed)) == 4


def test_a_recorded_claim_is_stale_once_what_it_rests_on_changes(tmp_path: Path):
    root = make_root(tmp_path, ENTRY)
    ledger = Ledger(root)
    ledger.record(outcome(step__16__calibrated=130_000.0), ledger.claims)
    fresh = Ledger(root)
    assert fresh.claims[0].state == "holds"
    assert fresh.claims[0].measured is not None
    assert fresh.claims[0].measured.versions == {"torch": "2"}
    assert not fresh.is_stale(fresh.claims[0])
    (root / "marl/claims.py").write_text("nothing = 2")
    assert not fresh.is_stale(fresh.claims[0])
    (root / "marl/learn.py").unlink()
    assert fresh.is_stale(fresh.claims[0])


def test_recording_keeps_what_was_edited_meanwhile(tmp_path: Path):
    root = make_root(tmp_path, ENTRY)
    ledger = Ledger(root)
    make_root(root, {**ENTRY, "bar": ">= 140000"}, {**TEST, "id": "core/new"})
    ledger.record(outcome(step__16__calibrated=130_000.0), ledger.claims)
    assert [(c.id, c.state) for c in Ledger(root).claims] == [
        ("core/speed", "falls short"),
        ("core/new", "not measured"),
    ]


def test_checking_measures_nothing_and_fails_where_a_claim_falls_short(tmp_path: Path, capsys: Any):
    short = {**ENTRY, "id": "core/short", "measured": MEASURED}
    open_question = {**short, "id": "core/disputed", "disputed": "envs"}
    root = make_root(tmp_path, {**ENTRY, "measured": {**MEASURED, "value": 200_000}}, open_question, short)
    assert run_claims(["core/speed", "core/disputed"], "all", check=True, root=root) == 0
    assert run_claims([], "all", check=True, root=root) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[3:6]] == ["core/speed", "core/disputed", "core/short"]
    assert "200,000" in lines[3]
    assert "holds, stale" in lines[3]
    assert "disputed, stale, see envs" in lines[4]
    assert "falls short, stale" in lines[5]
    assert lines[6] == "1 holds, 1 falls short, 1 disputed"


def test_a_test_is_measured_once_for_all_its_claims_and_recorded(tmp_path: Path, capfd: Any):
    root = make_root(
        tmp_path, TEST, {**TEST, "id": "core/same"}, {**TEST, "id": "core/none", "command": "pytest tests -k no"}
    )
    assert run_claims(["core/exact", "core/same"], "all", check=False, root=root) == 0
    assert capfd.readouterr().out.count("1 passed") == 1
    claims = Ledger(root).claims
    assert [c.state for c in claims] == ["holds", "holds", "not measured"]
    assert json.loads((root / "benchmarks/modules.json").read_text()) == {
        "pytest tests/test_toy.py": ["envs", "marl", "marl.learn"]
    }
    assert run_claims(["core/none"], "all", check=False, root=root) == 1
    assert Ledger(root).claims[2].state == "falls short"


def test_a_command_that_fails_leaves_the_recorded_value(tmp_path: Path, capfd: Any):
    recorded = {**ENTRY, "command": "concord bench nothing", "measured": {**MEASURED, "value": 200_000}}
    root = make_root(tmp_path, recorded)
    (root / "marl/__main__.py").write_text("import sys\nsys.exit(2)")
    assert run_claims([], "all", check=False, root=root) == 1
    assert "exit code 2" in capfd.readouterr().out
    assert Ledger(root).claims[0].state == "holds"


def test_a_missing_metric_is_told_apart_from_one_that_cannot_be_measured_here(tmp_path: Path, capfd: Any):
    program = """
        import json, pathlib, sys
        from marl import record
        out = pathlib.Path(sys.argv[-1])
        out.mkdir()
        found = {"step/16/calibrated": {"value": 1.5e5, "low": 1.0, "high": 2.0, "n": 1}}
        table = {"not_measured": [{"metric": "workers", "reason": "busy"}]}
        versions = {"machine": "m", "torch": "2"}
        report = dict(recipe="x", seed=0, config={}, metrics=found, tables=table, versions=versions)
        (out / "report.json").write_text(json.dumps(report))
    """
    entries = [
        ENTRY,
        {**ENTRY, "id": "core/busy", "metric": "workers"},
        {**ENTRY, "id": "core/typo", "metric": "step/16"},
    ]
    root = make_root(tmp_path, *entries)
    (root / "marl/__main__.py").write_text("\n".join(line.strip() for line in program.splitlines()))
    (root / "marl/record.py").write_text("")
    assert run_claims(["core/speed", "core/busy"], "all", check=False, root=root) == 0
    printed = capfd.readouterr().out
    assert "not measured: busy" in printed
    measured = Ledger(root).claims[0].measured
    assert measured is not None
    assert (measured.value, measured.machine, measured.versions) == (150000, "m", {"torch": "2"})
    assert run_claims([], "all", check=False, root=root) == 1
    assert "no metric 'step/16'; it has step/16/calibrated" in capfd.readouterr().out


def test_tests_count_as_passed_only_if_some_ran_and_none_failed(tmp_path: Path):
    path = tmp_path / "results.xml"
    assert passing_tests(path) == 0
    for counts, passed in (
        ((3, 0, 0, 0), 3),
        ((3, 1, 0, 0), 0),
        ((3, 0, 1, 0), 0),
        ((3, 0, 0, 3), 0),
        ((0, 0, 0, 0), 0),
    ):
        names = ("tests", "failures", "errors", "skipped")
        attributes = " ".join(f'{name}="{count}"' for name, count in zip(names, counts))
        path.write_text(f"<testsuites><testsuite {attributes}/></testsuites>")
        assert passing_tests(path) == passed


def test_every_process_writes_down_the_modules_it_loaded(tmp_path: Path):
    loaded = tmp_path / "loaded.txt"
    environment = {**os.environ, "CONCORD_LOADED": str(loaded)}
    for module in ("marl", "marl.config.catalog"):
        subprocess.run([sys.executable, "-c", f"import {module}"], env=environment, cwd=REPOSITORY, check=True)
    assert loaded.read_text().split().count("marl") == 2
    names = modules_in(loaded, REPOSITORY)
    assert {"marl", "envs", "envs.core"} <= set(names)
    assert "marl.config.catalog" not in names
    assert all(module_file(name, REPOSITORY).is_file() for name in names)


def test_modules_that_only_orchestrate_exist():
    assert all(module_file(name, REPOSITORY).is_file() for name in ORCHESTRATION)
