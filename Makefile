# make bootstrap   set up, run one whole round on the simulated web (opens nothing, needs no hub)
# make round1      set up, then a first bootstrap round from fresh weights, small, on the simulated web
# make rounds ROUNDS=2   the same with so many rounds; runs go on where they were
# make test        set up, check style and types, run all tests
# make bench      rates of every stage, what the ledger costs, memory
# make chaos      60 kills of runs over the simulated web, each resumed and compared; 15 more in a bucket
# make mutants   26 one-line changes of the code, each of which a test must notice
# make bench-models  captions and scores a second against transformers and data-juicer
# make gpu         on a machine with a GPU: equality, determinism, speed, memory, a whole run (10 minutes)
# make proof       the experiment: does CapFilt help on the simulated web as in the paper (docs/proof.md)
# make readers     training jobs' own readers, in an environment of their own, and their tests
# make wheel-test  build the wheel and try it in an environment of its own
# make models      train the embedded models again (see README for how long it takes)

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || echo python3)
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RUN ?= runs/bootstrap
ROUNDS ?= 1
ROUNDS_OUT ?= runs/rounds
ROWS ?= 1000
KILLS ?= 60
PROOF ?= runs/proof
TESTS ?= tests
TEST_WORKERS ?= 2
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu

.PHONY: bootstrap round1 rounds test lint bench chaos mutants bench-models gpu proof readers wheel-test models clean

bootstrap: $(STAMP)
	$(BIN)/capfilt demo --rows $(ROWS) --run $(RUN)

# More rounds in the same folder go on from those that are there.
rounds: $(STAMP)
	$(BIN)/python -m pipelines.experiments.rounds --rounds $(ROUNDS) --out $(ROUNDS_OUT)

round1: ROUNDS = 1
round1: rounds

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile $(TESTS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy capfilt pipelines examples tests

bench: $(STAMP)
	$(BIN)/python -m tests.benchmarks $(BENCH)

chaos: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.e2e.chaos --kills $(KILLS)

# JUICER=path/to/python of an environment with py-data-juicer 1.6.1 puts it into the table.
mutants: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.mutants

bench-models: $(STAMP)
	$(BIN)/python -m tests.benchmarks.models $(if $(JUICER),--data-juicer $(JUICER)) $(BENCH)

gpu: $(STAMP)
	$(BIN)/python -m tests.gpu $(GPU)

proof: $(STAMP)
	$(BIN)/python -m pipelines.experiments.proof --run $(PROOF)

# webdataset 1.0 is what Energon wants, open_clip's release an older one.
readers: $(STAMP)
	test -x .readers/bin/python || $(PYTHON) -m venv .readers
	.readers/bin/python -m pip install --quiet -r tests/readers/requirements.txt
	.readers/bin/python -m pip install --quiet --no-deps --target .readers/open_clip webdataset==0.2.86
	$(BIN)/python -m pytest tests/readers

# The wheel as a user gets it: what is in it, a demo, a shipped pipeline by name, the public names.
wheel-test: $(STAMP)
	rm -rf dist .wheel && $(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	$(BIN)/python -m tests.e2e.wheel dist/*.whl .wheel

models: $(STAMP)
	$(BIN)/python -m pipelines.experiments.train --out runs/models

# Where there is no NVIDIA GPU the CPU build of torch is wanted, which is a tenth of the size: from
# wherever pip already looks, else from PyTorch's own index, else (macOS) the only build there is.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; ok = (3, 11) <= sys.version_info < (3, 14); sys.exit(not ok and f"capfilt needs Python 3.11 to 3.13, {sys.executable} is {sys.version.split()[0]}; give one: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade 'pip>=23.2'
	@if nvidia-smi -L >/dev/null 2>&1; then \
	  echo "installing torch $(TORCH) for the GPU"; $(PIP) torch==$(TORCH); \
	else \
	  echo "installing torch $(TORCH) for the CPU"; \
	  $(PIP) torch==$(TORCH)+cpu 2>/dev/null \
	  || $(PIP) --index-url $(TORCH_CPU_INDEX) torch==$(TORCH) 2>/dev/null \
	  || $(PIP) torch==$(TORCH); \
	fi
	$(PIP) -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) .readers .wheel runs build dist *.egg-info
