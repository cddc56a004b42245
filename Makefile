PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

.PHONY: demo test test-fast lint docs bench clean

demo: $(INSTALLED)  ## From raw counts to a report, on 700 cells: demo-output/report.html
	$(BIN)/python examples/demo.py

test: $(INSTALLED)  ## All tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-fast: $(INSTALLED)  ## Those that take no launch and no long training, to run while working
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

lint: $(INSTALLED)  ## Style, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --config-file setup.cfg
	$(BIN)/mypy --config-file= --strict --follow-imports=silent tests/typed_use.py

docs: $(VENV)/installed-docs  ## The site, notebooks run: docs/_build/html/index.html; prose alone: make docs SPHINXOPTS='-D nb_execution_mode=off'
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -j 2 -W --keep-going -q $(SPHINXOPTS) docs docs/_build/html

bench: $(INSTALLED)  ## Speed and memory beside the stock way, in under an hour: bench-output/table.md
	$(BIN)/python benchmarks/bench.py

clean:
	rm -rf $(VENV) build docs/_build *.egg-info .pytest_cache .ruff_cache .mypy_cache

$(INSTALLED): setup.cfg constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; give one: make PYTHON=python3.11 …")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

$(VENV)/installed-docs: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	touch $@
