# Defaults train a sparse TD3 on Hopper-v4 within ten minutes on two slow cores; override any of them:
#   make train STEPS=1000000 ENV=HalfCheetah-v4 ALGO=sac METHOD=dense SEED=1
STEPS ?= 20000
ENV ?= Hopper-v4
ALGO ?= td3
METHOD ?= static
SEED ?= 0
# Interpreter that makes the virtual environment, and further options for pip (e.g. an index of CPU-only torch builds)
PYTHON ?= python3
PIP_OPTIONS ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_OPTIONS)
LINT_PATHS := .
# One thread per process: runs side by side do not fight over the cores
export OMP_NUM_THREADS ?= 1

.PHONY: train test pytest sanitize lint type format check-codestyle commit-checks doc clean

# --- Environments. The stamp files say which extras are installed ---

.venv/bin/python:
	$(PYTHON) -c "import sys; v = sys.version_info[:2]; assert (3, 10) <= v < (3, 14), f'Python 3.10-3.13 is needed, not {v}'"
	$(PYTHON) -m venv .venv

.venv/train.stamp: pyproject.toml constraints.txt | .venv/bin/python
	@echo "Installing sb3-sparse into .venv (a few minutes the first time) ..."
	$(PIP) torch
	$(PIP) -e ".[zoo,mujoco,box2d]"
	@touch $@

.venv/dev.stamp: pyproject.toml constraints.txt | .venv/bin/python
	@echo "Installing sb3-sparse and what its tests need into .venv (a few minutes the first time) ..."
	$(PIP) torch
	$(PIP) -e ".[dev]"
	@touch $@ .venv/train.stamp

# --- For users ---

train: .venv/train.stamp
	$(BIN)/sb3-sparse train --method $(METHOD) --algo $(ALGO) --env $(ENV) -n $(STEPS) --seed $(SEED) \
		--eval-freq $$(( $(STEPS) / 4 )) -P --verbose 0
	$(BIN)/sb3-sparse enjoy --algo $(ALGO) --env $(ENV) --no-render -n 3000
ifneq ($(METHOD),dense)
	$(BIN)/sb3-sparse report logs/$(ALGO)
endif

test: .venv/dev.stamp
	$(BIN)/python -m pytest -n 2

# --- For developers, under the names Stable-Baselines3 uses ---

pytest: test

# The kernels under the address, undefined-behaviour and thread sanitizers
sanitize: .venv/dev.stamp
	$(BIN)/python -m pytest -m expensive tests/engine/test_build.py

# Style, and that imports only ever point down (the floors are in pyproject.toml)
lint: .venv/dev.stamp
	$(BIN)/ruff check $(LINT_PATHS)
	$(BIN)/lint-imports --no-cache

type: .venv/dev.stamp
	$(BIN)/mypy

format: .venv/dev.stamp
	$(BIN)/ruff check --select I --fix $(LINT_PATHS)
	$(BIN)/ruff format $(LINT_PATHS)

check-codestyle: .venv/dev.stamp
	$(BIN)/ruff check --select I $(LINT_PATHS)
	$(BIN)/ruff format --check $(LINT_PATHS)

doc: .venv/dev.stamp
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

commit-checks: format lint type

clean:
	rm -rf .venv docs/_build build *.egg-info
