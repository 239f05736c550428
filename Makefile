# Everything from nothing:    make quickstart
# Lint, types and all tests:  make test
# An hour of made-up input:   make fuzz
# docs/tour.ipynb anew:       make tour
# All make their own environment in $(VENV) if there is none; nothing is installed globally.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: quickstart test fuzz tour lint format environment clean

quickstart: environment
	$(BIN)/python auto_deeplab/quickstart.py --output_dir=build/quickstart

# Two processes: most of the time, one thread traces graphs. The tests of a file stay in one of them. In parts, as what
# TensorFlow keeps of thousands of tests in one process once reached 12 GB, and the system killed it.
# The second pass is for processors on which TensorFlow starts without oneDNN.
test: lint
	@{ command -v chromium && command -v chromedriver; } >/dev/null || \
		echo "no chromium and chromedriver: report pages are not opened in a browser"
	@status=0; for part in tests/auto_deeplab "tests/official tests/tfrecords_tools tests/fuzz" "tests/test_*.py"; do \
		$(BIN)/python -m pytest -n 2 --dist loadfile --durations=10 $$part || status=1; \
	done; exit $$status
	TF_ENABLE_ONEDNN_OPTS=0 $(BIN)/python -m pytest -n 2 --dist loadfile -m every_machine

fuzz: environment
	FUZZ_MINUTES=$(or $(MINUTES),60) $(BIN)/python -m pytest -n 2 --timeout=0 tests/fuzz

tour: environment
	$(BIN)/python docs/tour.py

lint: environment
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: environment
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

environment: $(VENV)/installed

$(VENV)/installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
		{ echo "error: $(PYTHON) is not Python 3.11, 3.12 or 3.13: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

clean:
	rm -rf build $(VENV)
