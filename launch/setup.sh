# shellcheck shell=bash
# Sourced by the scripts beside it: makes the project's own environment in .venv, once, and puts it first on PATH.
# PYTHON names the interpreter to make it with (3.11 to 3.13); VENV another place for it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VENV="${VENV:-.venv}"
case "$VENV" in
  /*) ;;
  *) VENV="$PWD/$VENV" ;;
esac

find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11 python; do
    if [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 &&
      "$candidate" -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "launch: no Python 3.11 to 3.13 found; install one, or name it: PYTHON=/path/to/python3 bash $0" >&2
  exit 2
}

# Installs what the arguments name (pip's words) unless exactly that was installed before.
install() {
  local stamp="$VENV/.installed-$1"
  local wanted
  wanted="$({ cat requirements.txt pyproject.toml && echo "$@"; } | cksum)"
  if [ ! -x "$VENV/bin/python" ]; then
    local python
    python="$(find_python)"
    echo "launch: making $VENV" >&2
    "$python" -m venv "$VENV"
  fi
  if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "launch: installing (a minute or two the first time)" >&2
    shift
    # What is never imported need not be compiled; the rest is when it first is.
    "$VENV/bin/python" -m pip install --quiet --no-compile --disable-pip-version-check "$@"
    echo "$wanted" >"$stamp"
  fi
}

use_venv() {
  export PATH="$VENV/bin:$PATH"
  # Compiled once and kept, wherever that was turned off: it is five seconds of every start.
  unset PYTHONDONTWRITEBYTECODE
  export PYTHONPYCACHEPREFIX="$VENV/pycache"
}
