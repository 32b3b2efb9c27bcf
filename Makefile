# make demo   install into .venv and draw one transparent picture with the embedded model
# make test   install and run every test
# make check  lint and types
# make bench  print the benchmark tables
# make train  repeat the training of the embedded model from an empty machine

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test check format bench train clean
.DEFAULT_GOAL := demo

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(PIP) --editable '.[dev]'
	touch $@

$(VENV)/.train: $(VENV)/.dev
	$(PIP) --editable '.[dev,train]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/layerdiffuse-mcp generate "a red apple" --seed 1 --output demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

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

clean:
	rm -rf $(VENV) demo build dist
