"""No key of the user's, and no memory of earlier servers."""

from __future__ import annotations

from collections import Counter

import pytest


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr("planners.language.backends.server._FOUND", {})  # an earlier server may have had the same port
    monkeypatch.setattr("planners.language.backends.server._ODD", Counter())
