# Everything here works on a bare machine with Python >= 3.10 and make; .venv is made on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow test-gpu lint clean

demo: $(VENV)/.demo
	$(BIN)/edgeopt demo

test: $(VENV)/.test
	$(BIN)/python -m pytest -m "not slow and not gpu"

test-slow: $(VENV)/.test
	$(BIN)/python -m pytest -m "slow and not gpu"

test-gpu: $(VENV)/.test
	$(BIN)/python -m pytest -m gpu

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The stamps are newer than pyproject.toml when what it asks for is installed.
$(VENV)/.%: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable ".[$*]"
	touch $@

# One that failed is removed: its python alone would count as made the next time.
NEEDED := needed is Python >= 3.10 with venv and pip: apt install python3-venv, or make PYTHON=python3.12
$(VENV)/bin/python:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10))" && $(PYTHON) -m venv $(VENV) && \
	$@ -m pip --version || { rm -rf $(VENV); echo "$(NEEDED)" >&2; exit 1; }

clean:
	rm -rf $(VENV)
