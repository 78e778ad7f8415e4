# Everything runs in a virtual environment that these targets make themselves.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
EXTRAS_demo :=
EXTRAS_test := [test]
EXTRAS_check := [dev]

.PHONY: demo test check clean
demo: $(VENV)/.demo
	$(BIN)/triptych demo --out triptych-demo

test: $(VENV)/.test
	$(BIN)/python -m pytest

check: $(VENV)/.check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

$(BIN)/python:
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.demo $(VENV)/.test $(VENV)/.check: $(VENV)/.%: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.$(EXTRAS_$*)'
	touch $@

clean:
	rm -rf $(VENV) triptych-demo
