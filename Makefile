# Everything runs in a virtual environment that these targets make themselves, with the versions of .ci/constraints.txt.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
EXTRAS_demo := [torch]
EXTRAS_serve := [serve]
EXTRAS_test := [test]
EXTRAS_check := [dev]
EXTRAS_docs := [docs]

.PHONY: demo serve test check docs clean
.NOTPARALLEL:
demo: $(VENV)/.demo
	$(BIN)/triptych demo --out triptych-demo
	@echo "The web page: make serve"

serve: $(VENV)/.serve
	$(BIN)/triptych serve

test: $(VENV)/.test
	$(BIN)/python -m pytest

check: $(VENV)/.check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(BIN)/python:
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.demo $(VENV)/.serve $(VENV)/.test $(VENV)/.check $(VENV)/.docs: $(VENV)/.%: pyproject.toml .ci/constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt --editable '.$(EXTRAS_$*)'
	touch $@

clean:
	rm -rf $(VENV) triptych-demo site
