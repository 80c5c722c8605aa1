# make demo       the five notebooks on a small data set, in under five minutes once installed
# make test       the tests, in about ten minutes
# make test-slow  the tests that take longer
# make lint       ruff
# make bench-speed  this library beside others, in about 40 minutes; FRESH=1 starts anew
# make bench-accuracy  whole recipes beside others, in about two hours; row by row, FRESH=1 anew
# make template   REPO=owner/name writes your repository into badges and setup cells
# Each installs what it needs into .venv, bench-speed and bench-accuracy into .venv-bench.
# PYTHON=python3.12 chooses another interpreter.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow lint bench-speed bench-accuracy template

demo: .venv/notebooks.stamp
	$(BIN)/python scripts/demo.py

test: .venv/test.stamp
	$(BIN)/python -m pytest -m "not slow"

test-slow: .venv/test.stamp
	$(BIN)/python -m pytest -m slow

lint: .venv/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench-speed: .venv-bench/bench.stamp
	.venv-bench/bin/python benchmarks/speed.py $(if $(FRESH),--fresh) $(if $(PHOTOS),--photos "$(PHOTOS)")

bench-accuracy: .venv-bench/bench.stamp
	.venv-bench/bin/python benchmarks/accuracy.py $(if $(FRESH),--fresh) $(if $(DATA),--data "$(DATA)")

template:
	$(PYTHON) scripts/template.py "$(REPO)" "$(SOURCE)"

.venv/%.stamp: pyproject.toml | .venv/bin/python
	@echo "Installing what 'make $(MAKECMDGOALS)' needs into .venv (several GB, once) ..."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$*]"
	@touch $@

.venv-bench/bench.stamp: benchmarks/requirements.txt pyproject.toml | .venv-bench/bin/python
	@echo "Installing what this library is measured beside into .venv-bench (several GB, once) ..."
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check \
		--requirement benchmarks/requirements.txt --editable .
	@touch $@

.venv/bin/python .venv-bench/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(@:/bin/python=) || { rm -rf $(@:/bin/python=); \
		echo "Python's venv module is needed: on Debian and Ubuntu, apt install python3-venv"; exit 1; }
