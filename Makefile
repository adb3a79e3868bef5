# Everything a newcomer types. `make sweep` and `make test` set up what they need; nothing here needs root.
PYTHON  ?= python3
PROFILE ?= quick
VENV    := .venv
BIN     := $(VENV)/bin
STATE   := $(or $(ISOFLOP_HOME),.isoflop)
PAPER_DATA ?= ../shared/data/paper

.PHONY: help setup sweep paper test peers browser ui down lint clean
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  PROFILE=quick|gpu|path.yaml chooses the sweep; PYTHON=python3.12 the interpreter of the set-up"

setup: $(VENV)/.complete ## virtual environment with pinned dependencies

$(VENV)/.complete: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "isoflop needs Python 3.11 or newer and $(PYTHON) is `$(PYTHON) -V 2>&1`: try make PYTHON=python3.12" >&2; \
	  exit 2; }
	@echo "installing the pinned dependencies into $(VENV) (once, a few minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

sweep: setup ## plan, train, fit and report; PROFILE=quick unless told otherwise
	@$(BIN)/isoflop sweep $(PROFILE)

paper: setup ## xLSTM Scaling Laws again: import PAPER_DATA where nothing is imported, analyse, report
	@test -f '$(STATE)/sweeps/paper/published/runs.parquet' || $(BIN)/isoflop import xlstm-scaling-laws '$(PAPER_DATA)'
	@$(BIN)/isoflop report paper

peers: .peers/.complete ## the official implementations that checkpoints are tested against

.peers/.complete: $(VENV)/.complete
	@echo "installing transformers and xlstm beside the environment (once)"
	@rm -rf .peers && mkdir .peers
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt --no-deps \
	  --target .peers/transformers transformers
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt --no-deps \
	  --target .peers/xlstm_large xlstm mlstm_kernels einops ninja omegaconf antlr4-python3-runtime
	@touch $@

test: setup peers ## the tests
	@$(BIN)/python -m pytest -q -n 2 --dist worksteal

browser: setup ## Chromium for the tests of the report (root on Debian), and these tests
	@command -v chromium > /dev/null || { \
	  test "`id -u`" = 0 || { echo "no chromium here: install your distribution's package, then again" >&2; exit 2; }; \
	  apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium > /dev/null; }
	@$(BIN)/python -m pytest -q -m browser

test-faults: setup ## break sweeps at random instants, 68 times over 17 kinds of faults; FAULTS=136 for more
	@ISOFLOP_FAULTS=$(or $(FAULTS),68) $(BIN)/python -m pytest -q -m faults tests/faults

ui: setup ## MLflow and Prefect in the browser, on loopback
	@$(BIN)/isoflop ui

down: setup ## stop the services
	@$(BIN)/isoflop down

lint: setup ## ruff, types, import arrows
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

clean: ## build products; RESULTS=1 also stops the services and deletes every run, model and report
	@rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache $(VENV)/.complete
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
ifeq ($(RESULTS),1)
	@test ! -x $(BIN)/isoflop || $(BIN)/isoflop down
	@test ! -f '$(STATE)/state.json' || rm -rf '$(STATE)'
	@echo "deleted $(STATE): runs, models and reports"
else
	@echo "kept $(STATE) (results) and $(VENV); RESULTS=1 deletes the results"
endif
