.PHONY: quickstart test fuzz torch fast drill lint bench format clean

quickstart: ## the whole loop on a CPU
	bash launch/quickstart.sh

test: ## everything that must hold
	bash launch/test.sh

torch: ## what `test` skips: comparisons with PyTorch, TRL, PEFT and lm-eval, TPU programs; these are installed for it
	SELFREWARD_TEST_TORCH=1 bash launch/test.sh -m torch

N ?= 20000
SEED ?= 2000
fuzz: ## N inputs that are nearly right, from seed SEED on: each is read, or refused in one line
	JAX_PLATFORMS=cpu .venv/bin/python -m tests.fuzz.harness --n $(N) --first $(SEED)

fast: ## tests that take seconds
	bash launch/test.sh -m "not slow"

N ?= 200
drill: ## kills a tiny run N times at random moments, and compares what it ends with bit by bit
	.venv/bin/python -m tests.drills.kills --kills=$(N)

lint: ## lint and types
	.venv/bin/ruff check . && .venv/bin/ruff format --check . && PATH="$$PWD/.venv/bin:$$PATH" .venv/bin/pyright

bench: ## a round against transformers, for which .venv needs torch (pip install torch), a decode step against the machine's limits, memory, a training step (half an hour)
	.venv/bin/python benchmarks/round.py --peer transformers
	.venv/bin/python benchmarks/decode_step.py
	.venv/bin/python benchmarks/memory.py
	.venv/bin/python benchmarks/train.py

format:
	.venv/bin/ruff check --fix . && .venv/bin/ruff format .

clean: ## the environment; runs stay
	rm -rf .venv build *.egg-info
