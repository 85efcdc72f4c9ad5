"""What `make demo` promises, run as it runs it."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import numpy as np
import pytest

from marl.__main__ import main
from marl.evaluation.plots import read_curve

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_demo_trains_a_swarm_in_three_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = (ROOT / "Makefile").read_text()
    (config,) = re.findall(r"concord run (\S+) --out \$\(DEMO\)", recipe)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", ["concord", "run", config, "--out", str(tmp_path / "demo")])
    began = time.monotonic()
    with pytest.raises(SystemExit) as done:
        main()
    assert not done.value.code
    assert time.monotonic() - began < 180
    _, returns = read_curve(tmp_path / "demo")
    tenth = len(returns) // 10
    assert np.mean(returns[-tenth:]) > 2 * np.mean(returns[:tenth]), "the curve rises"
    report = json.loads((tmp_path / "demo" / "report.json").read_text())
    rows = report["tables"]["along"]
    assert len(rows) >= 8
    assert rows[-1]["agents"] >= 1000
    assert sum(row["trained"] for row in rows) == 1
    assert report["metrics"]["late_reward_per_agent"]["value"] > 0.9
    for picture in ("film.gif", "learning_curve.png", "agents.png"):
        assert (tmp_path / "demo" / picture).stat().st_size > 10_000
