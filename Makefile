# Everything a person types. `make help` lists it.
SHELL := bash
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
.DELETE_ON_ERROR:

VENV ?= .venv
BIN := $(VENV)/bin
# Parallel test processes, each with brokers of its own (up to 1 GB). They wait more than they work: two for each core.
JOBS ?= 4
# More arguments for pytest: make unit ARGS="-k offsets --explain"
ARGS ?=
PYTEST := $(BIN)/pytest $(ARGS)
# Files in their order, chaos first and units last: the short ones fill the gaps at the end.
PARALLEL := -n $(JOBS) --dist loadfile --no-loadscope-reorder

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Units only work: one process for each core, and whoever is done takes from the others.
BUSY := -n auto --dist worksteal
FUZZED := hostile_input records_merge records_convert records_codec retention group_history

.PHONY: demo
demo: venv image ## back up and restore three real topics through Dagster, and compare every record
	@exec $(BIN)/python -m demo

.PHONY: dev
dev: venv image ## a broker with the demo's topics, and Dagster's user interface on it, until Ctrl-C
	@exec $(BIN)/python -m demo.dev

.PHONY: test
test: venv images stores chromium ## every test; installs what is missing first
	$(PYTEST) $(PARALLEL)

.PHONY: unit
unit: venv ## tests without a broker
	$(PYTEST) -m unit $(BUSY)

.PHONY: fuzz
fuzz: venv ## the tests of hostile input and of any record, batch and history, with 5,000 examples each (some minutes)
	$(PYTEST) $(BUSY) $(addprefix tests/unit/test_,$(addsuffix .py,$(FUZZED))) --hypothesis-profile=deep --timeout 1800

.PHONY: integration
integration: venv images stores ## tests on a real broker, and on object stores
	$(PYTEST) -m integration $(PARALLEL)

# Exit code 5 is pytest's "no such test".
.PHONY: chaos
chaos: venv image ## tests that kill, freeze and cut off brokers
	$(PYTEST) -m chaos $(PARALLEL) || [ $$? = 5 ]

.PHONY: e2e
e2e: venv image chromium ## tests of the whole way, user interface included
	$(PYTEST) -m e2e $(PARALLEL) || [ $$? = 5 ]

.PHONY: oldest-dagster
oldest-dagster: image ## the tests of the Dagster face on the oldest Dagster that pyproject.toml allows
	@$(MAKE) VENV=$(VENV)-oldest venv
	@$(VENV)-oldest/bin/python -m pip install --quiet --disable-pip-version-check \
	  $$(grep -oE '"dagster[a-z-]*>=[0-9.]+"' pyproject.toml | tr -d '"' | sed 's/>=/==/' | sort -u)
	$(VENV)-oldest/bin/pytest $(ARGS) $(PARALLEL) tests/unit/test_dagster_*.py tests/unit/test_examples.py \
	  tests/integration/test_dagster*.py

.PHONY: coverage
coverage: venv images stores chromium ## every test, and which lines none of them reaches (htmlcov/); fails where too many are not
	$(PYTEST) $(PARALLEL) --cov --cov-report=xml --cov-report=html
	$(BIN)/python scripts/coverage_gate.py

.PHONY: bench
bench: venv $(VENV)/.bench ## the engine beside other clients: times, memory, a chart (ARGS=--quick: only see that it works)
	@exec $(BIN)/python -m bench $(ARGS)

$(VENV)/.bench: pyproject.toml constraints.txt
	@command -v mvn >/dev/null && command -v java >/dev/null || bash scripts/apt-install.sh "the benchmarks" maven default-jdk-headless
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,bench]' --constraint constraints.txt
	@touch $@

CRASHES ?= 300
.PHONY: crashes
crashes: venv image ## kill backups, restores and expiries at random moments (CRASHES=300)
	CRASHES=$(CRASHES) $(PYTEST) tests/chaos/test_crashes.py -k moment --timeout 7200

.PHONY: mutants
mutants: venv image ## take out lines that keep a promise, one at a time, and see whether a test notices (long)
	$(BIN)/python scripts/mutants.py --jobs $(JOBS) $(ARGS)

RUNS ?= 10
.PHONY: flake-hunt
flake-hunt: venv images stores ## every test ten times in a row; what it found goes into docs/testing.md (RUNS=10)
	@$(BIN)/python scripts/flake_hunt.py --runs $(RUNS) --jobs $(JOBS) $(ARGS)

.PHONY: testing-table
testing-table: venv ## write where each test of the testing PRD is into docs/testing.md
	@$(BIN)/python -m tests.support.testing_prd

.PHONY: kept-repository
kept-repository: venv image ## write a repository with everything in it, which every later release must open (once, before a release)
	@$(BIN)/python -m tests.support.kept_repository

.PHONY: lint
lint: venv ## ruff, mypy, import-linter
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: format
format: venv ## let ruff format and fix what it can
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

.PHONY: venv
venv: $(VENV)/.installed ## the virtual environment

$(VENV)/.installed: pyproject.toml constraints.txt scripts/venv.sh
	@bash scripts/venv.sh $(VENV)
	@touch $@

.PHONY: docker
docker: ## a Docker engine: started, and on Debian (as root) installed, if there is none
	@bash scripts/docker.sh

.PHONY: image
image: venv docker ## the Kafka image: pulled, or built here where it cannot be
	@$(BIN)/python -m tests.support.kafka_image >/dev/null

.PHONY: chromium
chromium: ## a Chromium for the tests of the user interface: found, or on Debian (as root) installed
	@bash scripts/chromium.sh

.PHONY: images
images: venv docker ## the same, and the oldest Kafka that is tested
	@$(BIN)/python -m tests.support.kafka_image all >/dev/null

.PHONY: stores
stores: docker ## the object stores of the tests: built or installed once, in the user's cache
	@bash scripts/object-stores.sh >/dev/null

.PHONY: clean
clean: ## remove what was made here, the virtual environment included
	rm -rf $(VENV) $(VENV)-oldest .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .coverage* coverage.xml htmlcov \
	  build dist .dagster_home bench/build tests/support/kafka-image/build
