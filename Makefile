# Two commands for a newcomer: `make quickstart` and `make test`. Each sets up everything it needs, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TESTS ?= -n 2
STAMP := $(VENV)/.installed
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help

.PHONY: help
help:  ## show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.PHONY: quickstart
quickstart: $(STAMP)  ## the whole main job on the embedded synthetic world (five to six minutes on two cores)
	$(BIN)/python train.py

.PHONY: test
test: $(STAMP)  ## all quick tests in two processes (under five minutes); TESTS="-n 8" for eight
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 WANDB_MODE=offline $(BIN)/python -m pytest --dist loadfile $(TESTS)

.PHONY: slow
slow: $(STAMP)  ## the slow tests
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 WANDB_MODE=offline $(BIN)/python -m pytest -m slow

.PHONY: lint
lint: $(STAMP)  ## ruff on the whole tree, mypy --strict on what runs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict leadre experiments benchmarks train.py evaluate.py index.py generate.py

BENCHMARKS := indexing trie decoding training metrics decoding_gpu training_gpu

.PHONY: bench
bench: $(STAMP)  ## speeds of indexing, decoding and training against their goals, one module after another, all of them
	failed=; for name in $(BENCHMARKS); do \
		HF_HUB_OFFLINE=1 WANDB_MODE=offline $(BIN)/python -m benchmarks.$$name || failed="$$failed $$name"; \
	done; test -z "$$failed" || { echo "missed goals:$$failed"; exit 1; }

.PHONY: triton
triton: $(STAMP)  ## Triton (an extra of 300 MB), where PyTorch is not a CUDA build, which brings its own
	$(BIN)/python -c 'import sys, torch; sys.exit(torch.version.cuda is None)' || \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-kernels.txt -c constraints.txt

.PHONY: kernels
kernels: triton  ## the GPU kernels, on a machine without a GPU in Triton's interpreter
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/decoding/test_decoding_kernels.py tests/lm/test_lm_quantized.py

.PHONY: clean
clean:  ## remove results and caches (not the environment)
	rm -rf store outputs multirun .pytest_cache .mypy_cache .ruff_cache

# The lock pins everything below the direct requirements too.
$(STAMP): requirements.txt requirements-dev.txt constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt -c constraints.txt
	touch $(STAMP)
