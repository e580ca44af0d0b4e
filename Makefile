# Two commands: `make demo` and `make test`. Each makes the environment first,
# in .venv and nowhere else, and is otherwise one line that can be typed by hand.

PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
# A file's tests run one after another in one worker, and share what is costly to make.
WORKING := --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder
PYTEST := PATH="$(CURDIR)/$(BIN):$$PATH" pytest $(WORKING)

.PHONY: demo check test test-all coverage mutation test-lowest lint docs examples benchmark gpu lock generated

demo: .venv/ready
	PATH="$(CURDIR)/$(BIN):$$PATH" snakemake --cores all

# Linters, types, and the tests that train for no more than a few steps: what to run while changing something. Takes
# 2 minutes on two cores.
check: lint examples
	$(PYTEST) tests/unit -m "not slow"

# Every promise once, the workflow from end to end among them. Takes 12 minutes.
test: lint examples
	$(PYTEST) -m "not slow"

# All: that and what is marked slow. Takes 20 minutes.
test-all: lint examples
	$(PYTEST)

# The same, and which lines and branches of the library nothing reached.
coverage: .venv/ready
	$(PYTEST) --cov --cov-report=term-missing:skip-covered

lint: .venv/ready docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/snakefmt --check workflow
	PATH="$(CURDIR)/$(BIN):$$PATH" snakemake --lint

# The manual, in build/docs; a link that leads nowhere fails.
docs: .venv/ready
	$(BIN)/mkdocs build

# The examples in docstrings.
examples: .venv/ready
	PATH="$(CURDIR)/$(BIN):$$PATH" pytest --quiet --doctest-modules workflow/eigendet --ignore workflow/eigendet/cli/templates

# The quick tests and the workflow from data to report on the lowest versions that pyproject.toml names. mypy is left out:
# types differ by version. Takes 3 minutes on two cores, and 1 more and 7 GB of disk to make .venv-lowest at first.
test-lowest: .venv-lowest/ready
	PATH="$(CURDIR)/.venv-lowest/bin:$$PATH" pytest $(WORKING) -m "not slow" tests/unit \
	  tests/workflow/test_workflow.py::test_everything_from_data_to_report_is_there

.venv/ready: envs/requirements.txt pyproject.toml
.venv/ready: PYTHONS := sys.version_info >= (3, 11), "3.11 or newer,"
.venv-lowest/ready: envs/lowest.txt pyproject.toml
.venv-lowest/ready: PYTHONS := sys.version_info[:2] == (3, 11), "3.11, since for it the lowest versions were published,"
.venv/ready .venv-lowest/ready:
	$(PYTHON) -c 'import sys; fits, wanted = $(PYTHONS); fits or sys.exit(f"$(@D) needs Python {wanted} not {sys.version.split()[0]}")'
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check "uv==0.13.9"
	VIRTUAL_ENV=$(CURDIR)/$(@D) $(@D)/bin/uv pip install --quiet --compile-bytecode --require-hashes -r $<
	VIRTUAL_ENV=$(CURDIR)/$(@D) $(@D)/bin/uv pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# One of the benchmarks: tests/benchmarks/NAME.md, anew. Takes, on two cores,
#   covariance   8 minutes: what tapping costs, beside what others do (the page is cpu.md)
#   channels     5 to 20: which networks of torchvision and timm can be resized
#   allocators   hours: whether allocators beat profiles of their own cost (`--help` of the module says for how many)
#   allocation   2: how long it takes to spend a budget
#   analysis     20, and 12 GB of disk: spectra and comparisons of a large experiment
#   page         3: how fast the page is at that size, in Chromium
#   intervals    8: how often intervals of dimensions and widths hold what they claim
#   power        15: what comparisons of arms can find
#   throughput   10: training through the library beside each framework's own loop
#   monitor      5: what watching spectra adds to a training step
#   overhead     none: what the demo's workflow costs beside its work, from the times that `make demo` left
benchmark: .venv/ready
	$(BIN)/python -m tests.benchmarks.$(NAME)

# Whether the GPU of this machine computes what it should, and how fast: build/gpu/gpu.md. Takes 8 minutes at most, and
# ends with an error where a check fails. Elsewhere than here `python tests/gpu/run.py` needs no environment of its own.
gpu: .venv/ready
	$(BIN)/python tests/gpu/run.py --minutes 8 --out build/gpu

# Whether the unit tests notice mistakes in the modules that compute: tests/mutation.md, anew. Takes half an hour.
mutation: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.mutation

# The pinned lists, anew from the ranges in pyproject.toml, for every platform and without addresses.
LOCK := $(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
  --upgrade
lock: .venv/ready
	$(LOCK) --all-extras pyproject.toml --group dev --output-file envs/requirements.txt
	$(LOCK) --all-extras pyproject.toml --group test --resolution lowest-direct --output-file envs/lowest.txt
	$(LOCK) envs/gpu.in --output-file envs/gpu.txt

# What follows from the code: the schema of experiments, and the pages on configuration and commands.
generated: .venv/ready
	$(BIN)/python -m eigendet.config > workflow/schemas/experiment.schema.json
	$(BIN)/python -m docs.generate
