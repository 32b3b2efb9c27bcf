# make demo      install into .venv and draw one transparent picture with the embedded model
# make test      install and run every test that a plain install can run
# make test-all  those, then what needs Node, Chromium and the extras packaging, ray and train; what is missing fails
# make test-newest  the tests, in an environment of their own, on the versions of constraints-newest.txt
# make gpu       what needs a CUDA device: its tests, the golden cases on it, and tables of speed and memory
# make quick     the quick tests of what decides and of what is written, in under a minute
# make fuzz      hostile input for longer, other input each time
# make check     lint and types
# make bench     print the benchmark tables
# make dist      the sdist, and the wheel that is built from it, looked through as the index does
# make mcpb      the bundle for Claude Desktop (needs Node)
# make train     repeat the training of the embedded model from an empty machine

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS)

PYTEST := $(BIN)/python -m pytest
# tests start processes by the hundred: what these import is compiled once
unexport PYTHONDONTWRITEBYTECODE
# three for two cores, as many tests wait; files come in the order of tests/conftest.py
PARALLEL := --numprocesses 3 --dist loadfile --no-loadscope-reorder
# no network computes there, and no worker starts
QUICK := $(addprefix tests/,api hub images jobs outputs recipes text test_house.py test_settings.py)
NOT_QUICK := $(addprefix tests/,hub/test_engine_downloads.py images/test_memory.py jobs/test_workers.py)

.PHONY: demo test test-all test-newest gpu chromium quick fuzz check format bench dist mcpb train clean
.DEFAULT_GOAL := demo

$(VENV)/.installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(PIP) --editable '.[dev]'
	touch $@

$(VENV)/.train: $(VENV)/.dev
	$(PIP) --editable '.[dev,packaging,train]'
	touch $@

$(VENV)/.extras: $(VENV)/.train
	$(PIP) --editable '.[ray]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/layerdiffuse-mcp generate "a red apple" --seed 1 --output demo

test: $(VENV)/.dev
	$(PYTEST) $(PARALLEL)

test-all: test $(VENV)/.extras chromium
	$(PYTEST) -m extras

# where it is missing and may be installed; elsewhere the tests that need it say so
chromium:
	if ! command -v chromium && [ "$$(id -u)" = 0 ] && command -v apt-get; then \
		apt-get update --quiet && DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet chromium; fi

test-newest:
	$(MAKE) test VENV=.venv-newest CONSTRAINTS=constraints-newest.txt

gpu: $(VENV)/.dev
	$(PYTEST) -m gpu tests/gpu
	NVIDIA_TF32_OVERRIDE=0 $(PYTEST) tests/golden --device cuda
	$(BIN)/python -m benchmarks.gpu --minutes 60

quick: $(VENV)/.dev
	$(PYTEST) $(PARALLEL) $(QUICK) $(NOT_QUICK:%=--ignore %)

fuzz: $(VENV)/.dev
	FUZZ_TIMES=20 $(PYTEST) $(PARALLEL) tests/fuzz

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks

train: $(VENV)/.train
	$(BIN)/python -m training

dist: $(VENV)/.train
	rm -f dist/*.whl dist/*.tar.gz
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*.whl dist/*.tar.gz

mcpb:
	npx --yes @anthropic-ai/mcpb@2 validate packaging/mcpb/manifest.json
	mkdir -p dist
	npx --yes @anthropic-ai/mcpb@2 pack packaging/mcpb dist/layerdiffuse-mcp.mcpb

clean:
	rm -rf $(VENV) .venv-newest demo build dist
