# Two commands: `make quickstart` pre-trains on real images, `make test` passes the tests. Both set themselves up.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test lint types clean

quickstart: .venv/.run
	$(BIN)/negbank train configs/quickstart.yaml --overwrite

test: .venv/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) types

# Type checkers do not follow an editable install's package-dir: a tree of links has the folders as they are installed.
types: .venv/.dev
	rm -rf .venv/typed && mkdir -p .venv/typed/negbank
	ln -s $(CURDIR)/negbank/* $(CURDIR)/samplers $(CURDIR)/train .venv/typed/negbank
	cd .venv/typed && ../bin/mypy --config-file ../../pyproject.toml

.venv/.run: pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'negbank needs Python 3.10 or newer: make PYTHON=python3.11')"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable ".[train]"
	touch $@

.venv/.test: .venv/.run
	$(BIN)/pip install --quiet --editable ".[test]"
	$(BIN)/pip install --quiet --no-deps "libauc>=2"   # an oracle whose losses need torch alone, not its two dozen requirements
	touch $@

.venv/.dev: .venv/.run
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache
