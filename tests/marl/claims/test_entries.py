"""Claims: what the file may say, how it is written, when a claim holds, the tables, and the README's figures."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from small_claims import ENTRY, MEASURED, REPOSITORY, SYSTEMS, TEST, claim, make_root

from envs.core import InputError
from marl.claims.entries import (
    Claim,
    definitions,
    dump_claims,
    figure,
    read_claims,
    read_systems,
    renew_tables,
    results_table,
)
from marl.claims.measure import Ledger, by_command
from marl.config.catalog import find_config


@pytest.fixture(scope="module")
def own_claims() -> list[Claim]:
    return Ledger(REPOSITORY).claims


def test_the_quick_claims_of_the_project_take_half_an_hour(own_claims: list[Claim]):
    groups = by_command([c for c in own_claims if c.tier == "quick"])
    assert sum(max(c.minutes for c in group) for group in groups.values()) <= 30
    assert all(c.bar == "== 1" for c in own_claims if c.is_test)


def test_every_test_and_config_that_a_command_names_exists(own_claims: list[Claim]):
    for c in own_claims:
        words = shlex.split(c.command)
        if c.is_test:
            paths = [word.partition("::")[0] for word in words[1:] if word.startswith("tests")]
            assert paths, c.id
            assert all((REPOSITORY / path).exists() for path in paths), c.id
        elif words[1] == "run":
            for name in words[2].split(","):
                assert find_config(name).is_file(), c.id


def test_every_module_that_decides_numbers_belongs_to_a_system() -> None:
    places = [place for listed in read_systems(REPOSITORY).values() for place in listed]
    modules = [
        path.relative_to(REPOSITORY)
        for name in ("envs", "marl", "recsys")
        for path in REPOSITORY.glob(f"{name}/**/*.py")
    ]
    homeless = [m for m in modules if not any(m.is_relative_to(place) for place in places)]
    assert {str(m) for m in homeless if m.name != "__init__.py"} == {"envs/drawing.py"}  # pictures


def test_the_page_of_claims_has_a_table_for_every_system_and_is_up_to_date(own_claims: list[Claim]):
    page = (REPOSITORY / "docs/claims.md").read_text()
    ledger = Ledger(REPOSITORY)
    assert re.findall("<!-- claims: (.*) -->", page) == [f"{system}/" for system in read_systems(REPOSITORY)]
    if all(ledger.defined_at(c.commit) for c in own_claims if c.commit):  # else this clone's history is cut short
        assert renew_tables(page, own_claims, ledger.state) == page


def test_the_readmes_headline_figures_are_the_recorded_ones(own_claims: list[Claim]):
    results = (REPOSITORY / "README.md").read_text().partition("| what | figure | command |\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| .* \| (-?[\d.,]+) \| `([^`]+)` \|$", results, re.MULTILINE)
    assert len(rows) == 6
    for shown, command in rows:
        recorded = [figure(c.measured.value) for c in own_claims if c.command == command and c.measured]
        assert shown in recorded, f"README says {shown} of {command}; recorded are {recorded}"


def test_claims_yaml_is_written_as_it_is_read(tmp_path: Path):
    first = claim(claim="A sentence: " + "long " * 60, measured=MEASURED)
    second = claim(id="bnpg/x", disputed="docs/proof.md", minutes=0.5)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/proof.md").touch()
    path = tmp_path / "benchmarks/claims.yaml"
    path.parent.mkdir()
    path.write_text(dump_claims([first, second]))
    assert read_claims(tmp_path, SYSTEMS) == [first, second]
    assert dump_claims(read_claims(tmp_path, SYSTEMS)) == path.read_text()
    assert len([line for line in path.read_text().splitlines() if "A sentence" in line and "long long" in line]) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bar": "0.97"}, "core/speed: bar: expected one of >=, <=, ==, >, < and a number.*'0.97'"),
        ({"bar": "=> 1"}, "bar"),
        ({"id": "cor/speed"}, "cor/speed: id: expected one of benchmarks/systems.yaml before the /: core, bnpg"),
        ({"id": "core"}, "expected system/name"),
        ({"tier": "fast"}, "tier: expected 'quick' or 'slow'; got 'fast'"),
        ({"command": "make demo"}, "expected concord run"),
        ({"metrics": "x"}, "unknown key metrics. Did you mean metric"),
        ({"measured": {**MEASURED, "commit": "0123abc"}}, "measured.commit: expected .*; got '0123abc'"),
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
    with pytest.raises(InputError, match="Claims are measured in a clone"):
        Ledger(tmp_path / "d")


@pytest.mark.parametrize(
    ("systems", "message"),
    [
        ("core: [marl/gone.py]", "core names marl/gone.py, which does not exist"),
        ("core: marl", "must hold, for each system, the list of its files"),
        ("core: [", "is not valid YAML"),
    ],
)
def test_systems_name_files_that_exist(tmp_path: Path, systems: str, message: str):
    root = make_root(tmp_path, ENTRY)
    (root / "benchmarks/systems.yaml").write_text(systems)
    with pytest.raises(InputError, match=message):
        Ledger(root)


@pytest.mark.parametrize(
    ("bar", "meets", "fails"),
    [(">= 0.97", 0.97, 0.96), ("<= -1e-6", -1e-6, 0), ("== 1", 1, 0), ("> 0", 0.1, 0), ("< 6", 5.9, float("nan"))],
)
def test_whether_a_claim_holds_follows_from_value_and_bar(bar: str, meets: float, fails: float):
    assert claim(bar=bar, measured={**MEASURED, "value": meets}).state == "holds"
    assert claim(bar=bar, measured={**MEASURED, "value": fails}).state == "falls short"
    assert claim(bar=bar, measured={**MEASURED, "value": fails}, disputed="x").state == "disputed"
    assert claim(bar=bar, measured={**MEASURED, "value": meets, "commit": None}).state == "commit unknown"
    assert claim(bar=bar).state == "not measured"


def test_a_table_says_what_cannot_be_checked() -> None:
    met = {**MEASURED, "value": 200_000}
    undated, moved = claim(measured={**met, "commit": None}), claim(measured=met)
    assert "| >= 120000 | yes, commit unknown |  |" in results_table([undated], lambda c: c.state)
    assert "| defined otherwise when measured | 0123456 |" in results_table([moved], lambda c: "defined otherwise")


def test_definitions_leave_out_what_was_measured_and_a_damaged_file_has_none() -> None:
    text = dump_claims([claim(measured=MEASURED)])
    assert definitions(text) == {"core/speed": {k: v for k, v in ENTRY.items() if k != "measured"}}
    assert claim(claim="In other words.").defined_by(definitions(text)["core/speed"])
    assert not claim(bar=">= 1").defined_by(definitions(text)["core/speed"])
    assert definitions("- [") == definitions("core: 1") == {}


def test_tables_are_made_anew_between_their_markers():
    claims = [
        claim(measured={**MEASURED, "value": 1234567.8}),
        claim(id="core/b", claim="a|b", bar="<= 1", measured={**MEASURED, "commit": None}),
        Claim.model_validate({**TEST, "id": "bnpg/c", "measured": {**MEASURED, "value": 1}}),
        claim(id="slim/d", measured=MEASURED, disputed="docs/proof.md"),
        claim(id="slim/e"),
    ]
    head = "| claim | measured | bar | holds? | commit | command |\n| --- | --- | --- | --- | --- | --- |\n"
    core = (
        "| It is fast. | 1,234,568 | >= 120000 | yes | 0123456 | `concord bench step` |\n"
        "| a\\|b | 1.5 | <= 1 | **no** |  | `concord bench step` |\n"
    )
    assert results_table(claims[:2], lambda c: c.state) == head + core
    text = (
        "before\n<!-- claims: core/ -->\nold\n<!-- /claims -->\nafter\n<!-- claims: bnpg/ slim/ -->\n<!-- /claims -->\n"
    )
    others = (
        "| It is fast. | passed | == 1 | yes | 0123456 | `pytest tests/test_toy.py` |\n"
        "| It is fast. | 1.5 | >= 120000 | no, [disputed](../docs/proof.md) | 0123456 | `concord bench step` |\n"
        "| It is fast. |  | >= 120000 | not measured |  | `concord bench step` |\n"
    )
    renewed = renew_tables(text, claims, lambda c: c.state)
    assert renewed == (
        f"before\n<!-- claims: core/ -->\n{head}{core}<!-- /claims -->\nafter\n"
        f"<!-- claims: bnpg/ slim/ -->\n{head}{others}<!-- /claims -->\n"
    )
    assert renew_tables(renewed, claims, lambda c: c.state) == renewed


def test_figures_have_four_digits():
    assert [figure(x) for x in (1234.5, 3.0, 0.123456, -12.3456, float("inf"))] == [
        "1,234",
        "3",
        "0.1235",
        "-12.35",
        "inf",
    ]
