# make quickstart   set up, merge four small adapters, print the accuracy table
# make test         everything CI checks: lint, format, types, imports, tests
# make test-slow    training, small benchmarks and repeated kills: some minutes
# make bench        the speed tables of benchmarks/RESULTS.md
# make dist         wheel and sdist in dist/
# make fuzz         RUNS (default 1000000) mutated inputs for every reader of strangers' files; ENGINE=atheris where installed
# make clean        remove what was built or merged (.venv stays)
#
# PYTHON=...        the interpreter (3.11 or newer; default: the first one found on PATH)
# TORCH_INDEX=...   PyTorch's own package index, for instance https://download.pytorch.org/whl/cpu for a small CPU build;
#                   without it torch comes from wherever pip looks (on Linux that is the CUDA build)

PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python3.14; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)
TORCH_INDEX ?=
VENV ?= .venv
JOBS ?= 2
RUNS ?= 1000000
ENGINE ?= plain
FUZZ_TARGETS ?= safetensors-header adapter-config peft-keys recipe
export RMKIT_TEST_INPUTS ?= $(abspath $(wildcard ../shared))

BIN := $(VENV)/bin
# Modules are compiled when they are first imported, not all at once: that shortens the way to the first merge.
PIP := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt
SETTINGS := pyproject.toml constraints.txt hatch_build.py robustmerge_kit/native/kernels.c

.PHONY: help quickstart test test-slow bench dist fuzz clean

help:
	@sed -n '/^$$/q; s/^# \{0,1\}//p' Makefile

$(VENV)/torch: constraints.txt
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer on PATH; name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0
	@touch $@

$(VENV)/ready: $(VENV)/torch $(SETTINGS)
	$(PIP) --editable . peft scikit-learn
	@touch $@

$(VENV)/developing: $(VENV)/ready $(SETTINGS)
	$(PIP) --editable '.[dev]'
	@touch $@

quickstart: $(VENV)/ready
	$(BIN)/rmkit run --overwrite recipes/quickstart.yaml
	$(BIN)/rmkit run --overwrite recipes/methods/robustmerge_paper.yaml
	$(BIN)/rmkit run --overwrite recipes/quickstart_linear.yaml
	$(BIN)/python recipes/quickstart/evaluate.py

test: $(VENV)/developing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n $(JOBS) -m 'not slow'

test-slow: $(VENV)/developing
	$(BIN)/python -m pytest -m slow

bench: $(VENV)/developing
	$(BIN)/python benchmarks/adapter_merge.py
	$(BIN)/python benchmarks/methods.py
	$(BIN)/python benchmarks/method_memory.py
	$(BIN)/python benchmarks/analyze.py
	$(BIN)/python benchmarks/fold.py --peers
	$(BIN)/python benchmarks/batch.py

fuzz: $(VENV)/developing
	for target in $(FUZZ_TARGETS); do \
		$(BIN)/python tests/fuzz/fuzz.py $$target --runs $(RUNS) --engine $(ENGINE) || exit 1; \
	done

dist: $(VENV)/developing
	$(BIN)/python -m build --no-isolation --outdir dist .

clean:
	rm -rf build dist merged scratch .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
