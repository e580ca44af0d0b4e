# Two commands: `make demo` and `make test`. Each makes the environment first,
# in .venv and nowhere else, and is otherwise one line that can be typed by hand.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-cluster lint bench resizable budget analysis page power throughput overhead lock schema

demo: .venv/ready
	PATH="$(CURDIR)/$(BIN):$$PATH" snakemake --cores all

test: .venv/ready lint
	PATH="$(CURDIR)/$(BIN):$$PATH" pytest

# The part of it that needs a Slurm, which it fetches from Debian's packages. Takes 10 minutes.
test-cluster: .venv/ready
	PATH="$(CURDIR)/$(BIN):$$PATH" pytest tests/cluster

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check workflow
	PATH="$(CURDIR)/$(BIN):$$PATH" snakemake --lint

.venv/ready: envs/requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "eigendet needs Python 3.11 or newer, not " + sys.version.split()[0])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv==0.13.9"
	VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/uv pip install --quiet --compile-bytecode --require-hashes -r envs/requirements.txt
	VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# What tapping costs, beside what others do: tests/benchmarks/<device>.md, anew. Takes 8 minutes on two cores.
bench: .venv/ready
	$(BIN)/python -m tests.benchmarks.covariance

# Which networks of torchvision and timm can be resized: tests/benchmarks/channels.md, anew. Takes 5 to 20 minutes.
resizable: .venv/ready
	$(BIN)/python -m tests.benchmarks.channels

# How long it takes to spend a budget: tests/benchmarks/allocation.md, anew. Takes 2 minutes.
budget: .venv/ready
	$(BIN)/python -m tests.benchmarks.allocation

# How long spectra and comparisons of a large experiment take: tests/benchmarks/analysis.md, anew. Takes 20 minutes and
# 12 GB of disk.
analysis: .venv/ready
	$(BIN)/python -m tests.benchmarks.analysis

# How fast the page is at that size, in Chromium: tests/benchmarks/page.md, anew. Takes 3 minutes.
page: .venv/ready
	$(BIN)/python -m tests.benchmarks.page

# What comparisons of arms can find: tests/benchmarks/power.md, anew. Takes 15 minutes.
power: .venv/ready
	$(BIN)/python -m tests.benchmarks.power

# Training through the library beside each framework's own loop: tests/benchmarks/throughput.md, anew. Takes 10 minutes.
throughput: .venv/ready
	$(BIN)/python -m tests.benchmarks.throughput

# What the demo's workflow costs beside its work, from the times that `make demo` left: tests/benchmarks/overhead.md, anew.
overhead: .venv/ready
	$(BIN)/python -m tests.benchmarks.overhead

# The pinned list, anew from the ranges in pyproject.toml, for every platform and without addresses.
lock: .venv/ready
	$(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-header --upgrade --group dev pyproject.toml --output-file envs/requirements.txt

schema: .venv/ready
	$(BIN)/python -m eigendet.config > workflow/schemas/experiment.schema.json
