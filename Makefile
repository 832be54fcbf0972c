.PHONY: quickstart test fast lint format clean

quickstart: ## the whole loop on a CPU
	bash launch/quickstart.sh

test: ## everything that must hold
	bash launch/test.sh

fast: ## tests that take seconds
	bash launch/test.sh -m "not slow"

lint: ## lint and types
	.venv/bin/ruff check . && .venv/bin/ruff format --check . && PATH="$$PWD/.venv/bin:$$PATH" .venv/bin/pyright

format:
	.venv/bin/ruff check --fix . && .venv/bin/ruff format .

clean: ## the environment; runs stay
	rm -rf .venv build *.egg-info
