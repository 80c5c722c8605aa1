# make demo       the five notebooks on a small data set, in under five minutes once installed
# make test       the tests, in under ten minutes
# make test-slow  the tests that take longer
# make lint       ruff
# make template   REPO=owner/name writes your repository into badges and setup cells
# Each installs what it needs into .venv. PYTHON=python3.12 chooses another interpreter.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow lint template

demo: .venv/notebooks.stamp
	$(BIN)/python scripts/demo.py

test: .venv/test.stamp
	$(BIN)/python -m pytest -m "not slow"

test-slow: .venv/test.stamp
	$(BIN)/python -m pytest -m slow

lint: .venv/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

template:
	$(PYTHON) scripts/template.py "$(REPO)" "$(SOURCE)"

.venv/%.stamp: pyproject.toml | .venv/bin/python
	@echo "Installing what 'make $(MAKECMDGOALS)' needs into .venv (several GB, once) ..."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$*]"
	@touch $@

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Python 3.10 or newer is needed: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv .venv || { rm -rf .venv; \
		echo "Python's venv module is needed: on Debian and Ubuntu, apt install python3-venv"; exit 1; }
