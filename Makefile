# Everything happens in .venv. Works with GNU make 3.81 and any POSIX sh.
PYTHON ?= python3
DEMO_ARGS ?= --env CartPole-v1 --total-steps 500000

VENV := .venv
BIN := $(VENV)/bin
CREATED := $(VENV)/.created
CORE := $(VENV)/.installed-core
DEV := $(VENV)/.installed-dev
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-thorough test-slow lint format bench clean

help: ## list what make can do
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile
	@echo "  Another Python: make PYTHON=python3.12 <target>, before .venv exists."

venv: $(CREATED) ## make .venv with python3, empty

# Debian's python3 comes without ensurepip; its pip can then furnish the environment from outside.
$(CREATED):
	@command -v $(PYTHON) >/dev/null || \
	  { echo "There is no $(PYTHON) here. purerl needs Python 3.11, 3.12 or 3.13." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "purerl needs Python 3.11, 3.12 or 3.13, and $(PYTHON) is `$(PYTHON) -V 2>&1`." \
	    "Name another one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@if $(PYTHON) -c 'import ensurepip' 2>/dev/null; then $(PYTHON) -m venv $(VENV); \
	  else $(PYTHON) -m venv --without-pip $(VENV) && \
	    $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; fi
	@touch $@

# Stamps: pip runs only when the requirements have changed, and the development install covers the core.
$(CORE): $(CREATED) pyproject.toml constraints.txt
	$(INSTALL) -e .
	@touch $@

$(DEV): $(CREATED) pyproject.toml constraints.txt
	$(INSTALL) -e ".[dev]"
	@touch $(CORE) $@

demo: $(CORE) ## install the core and train PPO on CartPole (DEMO_ARGS="...")
	$(BIN)/python experiments/ppo.py $(DEMO_ARGS)

test: $(DEV) ## run the fast tests, spread over the cores
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile

test-thorough: $(DEV) ## run what the fast tests do for more agents, environments and scripts
	$(BIN)/python -m pytest --thorough -n auto --maxprocesses 8 --dist loadfile

test-slow: $(DEV) ## run the learning tests not yet measured on this source (FRESH=1: all)
	$(BIN)/python -m pytest --slow $(if $(FRESH),--fresh)

# Without this setting pyright's wrapper asks the network for its newest version.
lint: $(DEV) ## check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright

format: $(DEV) ## format the code and sort its imports
	$(BIN)/ruff check --select I --fix .
	$(BIN)/ruff format .

bench: $(DEV) ## run every benchmark
	@set -e; for script in benchmarks/[a-z]*.py; do \
	  echo "$$script"; $(BIN)/python "$$script"; done

clean: ## remove caches and builds; .venv and runs stay
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis
	find purerl experiments tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
