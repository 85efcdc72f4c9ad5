"""Claims: what the file may say, how they are measured, when they hold, and when they are stale."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from envs.core import InputError
from marl.claims import (
    Claim,
    Ledger,
    Outcome,
    by_command,
    digest,
    dump_claims,
    figure,
    module_file,
    modules_in,
    passing_tests,
    read_claims,
    renew_tables,
    results_table,
    run_claims,
)

REPOSITORY = Path(__file__).resolve().parents[2]
ENTRY: dict[str, Any] = {
    "id": "core/speed",
    "claim": "It is fast.",
    "command": "concord bench step",
    "metric": "step/16/calibrated",
    "bar": ">= 120000",
    "tier": "quick",
    "seeds": 1,
    "minutes": 1,
    "measured": None,
}
MEASURED = {"value": 1.5, "date": "2026-01-31", "versions": {"torch": "2"}, "machine": "x", "digest": "0"}
TEST = {**ENTRY, "id": "core/exact", "command": "pytest tests/test_toy.py", "metric": "passed", "bar": "== 1"}


def make_root(folder: Path, *entries: dict[str, Any]) -> Path:
    """A small repository with these claims."""
    for name, text in (
        ("benchmarks/claims.yaml", yaml.safe_dump(list(entries))),
        ("marl/__init__.py", ""),
        ("marl/learn.py", "rate = 1"),
        ("marl/claims.py", "nothing = 1"),
        ("envs/__init__.py", ""),
        ("tests/test_toy.py", "def test_true():\n    assert True\n"),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def claim(**fields: Any) -> Claim:
    return Claim.model_validate({**ENTRY, **fields})


def outcome(**values: float) -> Outcome:
    return Outcome(
        {name.replace("__", "/"): v for name, v in values.items()}, {}, {"torch": "2"}, ["marl", "marl.learn"]
    )


def test_the_projects_own_claims_are_valid_and_the_quick_ones_take_half_an_hour():
    claims = read_claims(REPOSITORY / "benchmarks" / "claims.yaml", REPOSITORY)
    groups = by_command([c for c in claims if c.tier == "quick"])
    assert sum(max(c.minutes for c in group) for group in groups.values()) <= 30
    assert all(c.bar == "== 1" for c in claims if c.is_test)
    for c in claims:
        if c.is_test:
            paths = [word.partition("::")[0] for word in c.command.split() if word.startswith("tests")]
            assert paths
            assert all((REPOSITORY / path).exists() for path in paths), c.id


def test_claims_yaml_is_written_as_it_is_read(tmp_path: Path):
    first = claim(claim="A sentence: " + "long " * 60, measured=MEASURED)
    second = claim(id="bnpg/x", disputed="docs/proof.md", minutes=0.5)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/proof.md").touch()
    path = tmp_path / "claims.yaml"
    path.write_text(dump_claims([first, second]))
    assert read_claims(path, tmp_path) == [first, second]
    assert dump_claims(read_claims(path, tmp_path)) == path.read_text()
    assert len([line for line in path.read_text().splitlines() if "A sentence" in line and "long long" in line]) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bar": "0.97"}, "core/speed: bar: expected one of >=, <=, ==, >, < and a number.*'0.97'"),
        ({"bar": "=> 1"}, "bar"),
        ({"id": "cor/speed"}, "cor/speed: id: expected system/name"),
        ({"id": "core"}, "expected system/name"),
        ({"tier": "fast"}, "tier: expected 'quick' or 'slow'; got 'fast'"),
        ({"command": "make demo"}, "expected concord run"),
        ({"metrics": "x"}, "unknown key metrics. Did you mean metric"),
        ({"disputed": "docs/none.md"}, "disputed by docs/none.md, which does not exist"),
    ],
)
def test_a_wrong_entry_is_an_error_that_says_where_and_what(tmp_path: Path, change: dict[str, Any], message: str):
    root = make_root(tmp_path, {**ENTRY, **change})
    with pytest.raises(InputError, match=message):
        Ledger(root)


def test_missing_fields_repeated_ids_and_files_without_claims_are_errors(tmp_path: Path):
    with pytest.raises(InputError, match="core/speed lacks bar"):
        Ledger(make_root(tmp_path / "a", {k: v for k, v in ENTRY.items() if k != "bar"}))
    with pytest.raises(InputError, match="each id is used once; got core/speed"):
        Ledger(make_root(tmp_path / "b", ENTRY, ENTRY))
    root = make_root(tmp_path / "c")
    (root / "benchmarks/claims.yaml").write_text("claims: none")
    with pytest.raises(InputError, match="must hold a list"):
        Ledger(root)
    with pytest.raises(InputError, match="Claims are measured in a checkout"):
        Ledger(tmp_path / "d")


@pytest.mark.parametrize(
    ("bar", "meets", "fails"),
    [(">= 0.97", 0.97, 0.96), ("<= -1e-6", -1e-6, 0), ("== 1", 1, 0), ("> 0", 0.1, 0), ("< 6", 5.9, float("nan"))],
)
def test_whether_a_claim_holds_follows_from_value_and_bar(bar: str, meets: float, fails: float):
    assert claim(bar=bar, measured={**MEASURED, "value": meets}).state == "holds"
    assert claim(bar=bar, measured={**MEASURED, "value": fails}).state == "falls short"
    assert claim(bar=bar, measured={**MEASURED, "value": fails}, disputed="x").state == "disputed"
    assert claim(bar=bar).state == "not measured"


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
    for module in ("marl", "marl.catalog"):
        subprocess.run([sys.executable, "-c", f"import {module}"], env=environment, cwd=REPOSITORY, check=True)
    assert loaded.read_text().split().count("marl") == 2
    names = modules_in(loaded, REPOSITORY)
    assert {"marl", "envs", "envs.core"} <= set(names)
    assert "marl.catalog" not in names
    assert all(module_file(name, REPOSITORY).is_file() for name in names)


def test_tables_are_made_anew_between_their_markers():
    claims = [
        claim(measured={**MEASURED, "value": 1234567.8}),
        claim(id="core/b", claim="a|b", bar="<= 1", measured=MEASURED),
        Claim.model_validate({**TEST, "id": "bnpg/c", "measured": {**MEASURED, "value": 1}}),
        claim(id="slim/d"),
    ]
    head = "| claim | measured | bar | holds? | command |\n| --- | --- | --- | --- | --- |\n"
    core = (
        "| It is fast. | 1,234,568 | >= 120000 | yes (stale) | `concord bench step` |\n"
        "| a\\|b | 1.5 | <= 1 | **no** | `concord bench step` |\n"
    )
    assert results_table(claims[:2], {"core/speed"}) == head + core
    text = (
        "before\n<!-- claims: core/ -->\nold\n<!-- /claims -->\nafter\n<!-- claims: bnpg/ slim/ -->\n<!-- /claims -->\n"
    )
    others = (
        "| It is fast. | passed | == 1 | yes | `pytest tests/test_toy.py` |\n"
        "| It is fast. |  | >= 120000 | not measured | `concord bench step` |\n"
    )
    renewed = renew_tables(text, claims, {"core/speed"})
    assert renewed == (
        f"before\n<!-- claims: core/ -->\n{head}{core}<!-- /claims -->\nafter\n"
        f"<!-- claims: bnpg/ slim/ -->\n{head}{others}<!-- /claims -->\n"
    )
    assert renew_tables(renewed, claims, {"core/speed"}) == renewed


def test_figures_have_four_digits():
    assert [figure(x) for x in (1234.5, 3.0, 0.123456, -12.3456, float("inf"))] == [
        "1,234",
        "3",
        "0.1235",
        "-12.35",
        "inf",
    ]
