# Everything runs in .venv, made from constraints.txt on first use. PIP_ARGS is passed to pip.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
DEMO ?= runs/demo
READY := $(VENV)/.ready

.PHONY: demo test test-all check claims claims-slow bench clean

demo: $(READY)
	@if [ -f $(DEMO)/report.json ]; then rm -rf $(DEMO); fi
	@if [ -f $(DEMO)/config.yaml ]; then $(BIN)/concord resume $(DEMO); \
	else $(BIN)/concord run configs/swarm/vicsek.yaml --out $(DEMO); fi

test: $(READY)
	$(BIN)/pytest -m "not slow" -n 2

test-all: $(READY)
	$(BIN)/pytest -n 2

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

claims: $(READY)
	$(BIN)/concord claims --tier quick

claims-slow: $(READY)
	$(BIN)/concord claims --tier slow

bench: $(READY)
	$(BIN)/concord bench

clean:
	rm -rf $(VENV) build *.egg-info

# torch comes first and alone: resolved together with packages that ask for it, pip may prefer a newer build.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(PIP_ARGS) $$(grep '^torch==' constraints.txt)
	$(BIN)/pip install --quiet $(PIP_ARGS) --constraint constraints.txt --editable ".[dev]"
	@touch $(READY)
