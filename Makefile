# make demo       the five notebooks on sample data, in under five minutes once installed
# make lint       style, types, dead code, CI's own files
# make test       the tests, in about ten minutes, and the lines that they do not reach
# make test-slow  the tests that take longer
# make test-browser  the notebooks in Chromium, where there is one: JupyterLab and notebook 6.5
# make test-gpu   the tests that need a GPU
# make docs       the documentation, into docs/_build/html/index.html
# make bench-speed  this library beside others, in about 40 minutes; FRESH=1 measures all again
# make bench-accuracy  whole recipes beside others, in about two hours; FRESH=1 measures all again
# make bench-recipe  what helps fine_tune where nothing was chosen, in many hours; it may be stopped
# make bench-gpu  how busy a GPU is kept, in about ten minutes; QUICK=1 takes four
# make template   writes your repository, the remote "origin" or REPO=owner/name, into badges,
#                 links and setup cells
# Each installs what it needs into .venv, the benchmarks into .venv-bench, and test-browser
# notebook 6.5 into .venv-classic.
# PYTHON=python3.12 chooses another interpreter.

PYTHON ?= python3
BIN := .venv/bin
VALIDATE := $(BIN)/check-jsonschema --quiet --builtin-schema
# Run a shell command and print how long the target took.
timed = @began=$$(date +%s); { $(1); } && echo "make $@: $$(($$(date +%s) - began)) s"

.PHONY: demo lint test test-slow test-browser test-gpu docs bench-speed bench-accuracy \
	bench-recipe bench-gpu template

demo: .venv/notebooks.stamp
	$(call timed,$(BIN)/python scripts/demo.py)

lint: .venv/test.stamp
	$(call timed,$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy resnet_ft && \
		$(BIN)/python scripts/public_names.py > .venv/public_names.py && $(BIN)/vulture && \
		$(VALIDATE) vendor.github-workflows .github/workflows/ci.yml && \
		$(VALIDATE) vendor.github-issue-forms .github/ISSUE_TEMPLATE/bug.yml .github/ISSUE_TEMPLATE/idea.yml && \
		$(VALIDATE) vendor.citation-file-format CITATION.cff && \
		$(BIN)/python scripts/template.py --check)

test: .venv/test.stamp
	$(call timed,$(BIN)/python -m pytest -m "not slow and not gpu and not browser" --cov=resnet_ft)

test-slow: .venv/test.stamp
	$(call timed,$(BIN)/python -m pytest -m slow)

test-browser: .venv/test.stamp .venv-classic/classic.stamp
	$(call timed,$(BIN)/python -m pytest -m browser tests/test_browser.py)

test-gpu: .venv/test.stamp
	$(call timed,$(BIN)/python -m pytest -m gpu tests/test_gpu.py)

docs: .venv/docs.stamp runs/demo/report.html
	$(call timed,$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going docs docs/_build/html)
	@echo "Look at $(CURDIR)/docs/_build/html/index.html"

runs/demo/report.html:
	$(MAKE) demo

bench-speed: .venv-bench/bench.stamp
	$(call timed,.venv-bench/bin/python benchmarks/speed.py \
		$(if $(FRESH),--fresh) $(if $(PHOTOS),--photos "$(PHOTOS)"))

bench-accuracy: .venv-bench/bench.stamp
	$(call timed,.venv-bench/bin/python benchmarks/accuracy.py \
		$(if $(FRESH),--fresh) $(if $(DATA),--data "$(DATA)"))

bench-recipe: .venv-bench/bench.stamp
	$(call timed,.venv-bench/bin/python benchmarks/recipe.py $(if $(DATA),--data "$(DATA)"))

bench-gpu: .venv/test.stamp
	$(call timed,$(BIN)/python benchmarks/gpu.py $(if $(FRESH),--fresh) $(if $(QUICK),--quick) \
		$(if $(DATA),--data "$(DATA)"))

template:
	$(PYTHON) scripts/template.py "$(REPO)" "$(SOURCE)"

.venv/%.stamp: pyproject.toml | .venv/bin/python
	@echo "Installing what 'make $(MAKECMDGOALS)' needs into .venv (several GB, once) ..."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$*]"
	@touch $@

.venv-bench/bench.stamp: benchmarks/requirements.txt pyproject.toml | .venv-bench/bin/python
	@echo "Installing the libraries to compare with into .venv-bench (several GB, once) ..."
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check \
		--requirement benchmarks/requirements.txt --editable .
	@touch $@

# Colab's notebook and widgets; of the rest, such as torch, it sees what .venv has.
.venv-classic/classic.stamp: tests/classic.txt | .venv/test.stamp .venv-classic/bin/python
	@echo "Installing notebook 6.5 and ipywidgets 7.7 into .venv-classic ..."
	.venv-classic/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	$(BIN)/python -c 'import sysconfig; print("$(CURDIR)", sysconfig.get_path("purelib"), sep="\n")' \
		> "$$(.venv-classic/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/venv.pth"
	@touch $@

.venv/bin/python .venv-bench/bin/python .venv-classic/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(@:/bin/python=) || { rm -rf $(@:/bin/python=); \
		echo "Python's venv module is needed: on Debian and Ubuntu, apt install python3-venv"; exit 1; }
