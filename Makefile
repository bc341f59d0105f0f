# Tambo. `make` alone says what there is. PYTHON=/path/to/python3 chooses another interpreter (>= 3.11).
PYTHON ?= python3
export PYTHON
BIN := .venv/bin
JOBS := 2

.DEFAULT_GOAL := help
.PHONY: help setup tools up test check format accept bench lock clean install upgrade uninstall wheels

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## virtual environment with everything, tests included
	@tools/setup dev

tools: ## Debian's test tools, unpacked into .tools (nothing is installed)
	@tools/unpack-debian

up: ## the whole relay in the foreground, with a sandbox; ONCE=1: one message through it, then stop
	@tools/setup run
	@exec $(BIN)/relayctl up $(if $(ONCE),--once)

test: setup tools ## all tests, two files at a time (most wait); JOBS=0: one, in this process
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

check: setup ## format, lint, types, floors
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_floors.py

format: setup ## puts the source in the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

accept: setup tools ## the acceptance runs; figures go to benchmarks/results/
	$(BIN)/python -m benchmarks.accept $(ARGS)

bench: setup tools ## the benchmarks
	$(BIN)/python -m benchmarks $(ARGS)

install: ## for systemd, as root: PREFIX=/opt/tambo DESTDIR= WHEELS=directory (offline); see docs/install.md
	@PREFIX="$(PREFIX)" DESTDIR="$(DESTDIR)" WHEELS="$(WHEELS)" tools/install

upgrade: ## the same, then from the version that runs to this one, one instance after the other
	@PREFIX="$(PREFIX)" DESTDIR="$(DESTDIR)" WHEELS="$(WHEELS)" tools/install upgrade

uninstall: ## takes it away; configuration and queue stay, PURGE=1 takes them too
	@PREFIX="$(PREFIX)" DESTDIR="$(DESTDIR)" PURGE="$(PURGE)" tools/uninstall

wheels: setup ## fetches the dependencies into WHEELS=directory, for an install without network
	@WHEELS="$(WHEELS)" tools/wheels

lock: ## newest requirements*.txt from pyproject.toml (needs uv)
	@tools/lock --upgrade

clean: ## removes what was built; var/ (queue and logs) stays
	rm -rf .venv .tools build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
