# The environment is made once, in .venv, and again only when what it is made from changes.
# Which index pip asks is yours to configure; no host is named here.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
INPUTS := pyproject.toml constraints.txt

.PHONY: demo test lint bench proto clean

# torch comes first and by itself: it is by far the largest, and a failure should show early.
$(VENV)/.runtime: $(INPUTS)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): some minutes the first time"
	$(PIP) torch
	$(PIP) -e .
	touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(PIP) -e '.[dev]'
	touch $@

demo: $(VENV)/.runtime
	$(BIN)/discreet simulate

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --cov=privacy --cov-branch --cov-report=term:skip-covered --cov-fail-under=100

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

# The generated files are checked in; a test holds that they are current.
proto: $(VENV)/.dev
	$(BIN)/python -m grpc_tools.protoc -I .typings --python_out=.typings --grpc_python_out=.typings --pyi_out=.typings discreet/common/link.proto

bench: $(VENV)/.dev
	$(BIN)/python tests/bench/run.py

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache .coverage
