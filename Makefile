# The environment is made once, by the first target that needs it, and again when its pins change.
PYTHON := $(or $(shell command -v python3.11),$(shell command -v python3))
# Learned baselines that `make train` trains beside, each in a process of its own.
BASELINES ?= mermaide rl2
# Which benchmark `make bench` runs: a module of benchmarks/.
WHAT ?= speed
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# One thread per process: torch's default of one per core slows small networks down up to five times.
export OMP_NUM_THREADS := 1

.PHONY: train test test-slow test-cluster test-nodes test-hosts test-gpu sbom lint format format-check types bench clean
.DEFAULT_GOAL := test

train: $(READY) ## meta-train with the default config and print the final table; ARGS="--seed 1 …"
	$(BIN)/mermaide train $(addprefix --baseline ,$(BASELINES)) $(ARGS)

test: $(READY) ## the tests that take seconds, on up to four CPUs; ARGS="-k name …"
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile -m "not slow and not cluster and not gpu" $(ARGS)

test-slow: $(READY) ## the tests that take longer: kills, searchers, buckets, the tutorial
	$(BIN)/python -m pytest -m "slow and not cluster and not gpu" $(ARGS)

test-cluster: $(READY) ## the tests that start several nodes, on one machine and on three; each half prints when it is done
	@$(MAKE) --no-print-directory --keep-going --jobs=2 --output-sync=target test-nodes test-hosts

test-nodes: $(READY) ## several nodes of one machine; NODES="-k name …"
	$(BIN)/python -m pytest -m "cluster and not gpu" --ignore=tests/cluster -rs $(NODES)

test-hosts: $(READY) ## three machines in namespaces of this one: root, ssh, rsync; HOSTS="-k name …"
	$(BIN)/python -m pytest -m "cluster and not gpu" tests/cluster -rs $(HOSTS)

test-gpu: $(READY) ## learning on a GPU; skipped where there is none
	$(BIN)/python -m pytest -m gpu -rs $(ARGS)

sbom: ## software bill of materials of the pinned set, as sbom.json
	$(PYTHON) -m venv .venv-tools
	.venv-tools/bin/python -m pip install --quiet --disable-pip-version-check cyclonedx-bom
	.venv-tools/bin/cyclonedx-py requirements constraints.txt --of JSON -o sbom.json

lint: $(READY)
	$(BIN)/ruff check .

format: $(READY)
	$(BIN)/ruff format .

format-check: $(READY)
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

bench: $(READY) ## speed, in CPU seconds and as ratios of one run; WHAT=sweep, report or scaling for theirs
	$(BIN)/python -W ignore -m benchmarks.$(WHAT) $(ARGS)

clean: ## remove the environment and caches, never results
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache *.egg-info

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "make: Python >= 3.11 is required, found none (install python3.11, or make PYTHON=/path/to/python)" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: Python >= 3.11 is required, got `$(PYTHON) -V` at $(PYTHON) (install python3.11, or make PYTHON=/path/to/python)" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --editable '.[dev]'
	@# On all cores, where pip compiles on one; some packages bring files that are no Python of this version.
	@$(BIN)/python -m compileall -q -j 0 $(VENV)/lib > /dev/null 2>&1 || true
	@touch $@
