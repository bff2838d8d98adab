# Every target sets up what it needs on a machine with nothing but Python and make.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# one test process for each core, and one thread in each
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

.PHONY: demo test test-slow test-all lint docs clean

demo: $(VENV)/.installed
	$(BIN)/datacomp-flyt demo

test: lint
	$(PYTEST)

test-slow test-all: export OPEN_CLIP_2_16 ?= $(abspath $(VENV))/open_clip-2.16.1

test-slow: lint $(VENV)/open_clip-2.16.1
	$(PYTEST) -m slow

test-all: lint $(VENV)/open_clip-2.16.1
	$(PYTEST) -m "slow or not slow"

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/deptry .

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[train,report]'
	touch $@

$(VENV)/.installed-dev: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev,docs,train,ray,report]'
	touch $@ $(VENV)/.installed $(VENV)/.installed-docs

# without torch: mkdocstrings reads the sources and imports none of them
$(VENV)/.installed-docs: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[docs]'
	touch $@

# the open_clip that DataComp pins, for tests to put before the installed one
$(VENV)/open_clip-2.16.1: $(VENV)/.installed-dev
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target $@ open_clip_torch==2.16.1

clean:
	rm -rf $(VENV)
