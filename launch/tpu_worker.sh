#!/usr/bin/env bash
# The worker's side of tpu_pod.sh, which copies the project to each worker and calls this there:
#
#   tpu_worker.sh install                 the project's environment, with JAX for TPU
#   tpu_worker.sh start ID COMMAND...     starts a command that outlives the connection
#   tpu_worker.sh follow ID LINES,...     its output, each worker's from behind its number of LINES, until it ends
#   tpu_worker.sh status | stop
#
# Output begins with the worker's number in brackets. A blank follows if it is the command's, a word of this script's
# if not: `[2] loss 0.69`, `[2]exit 0`.
set -euo pipefail

PROJECT="$HOME/selfreward"
VENV="$HOME/selfreward-venv"
JOBS="$HOME/selfreward-jobs" # a folder for each command: command, pid, log, and status once it has ended
SECRETS="$HOME/.selfreward-env"
LOST=75 # as the command itself says: try again

worker_number() {
  case "$(hostname)" in
    *-w-[0-9]*) hostname | sed 's/.*-w-\([0-9][0-9]*\).*/\1/' ;;
    *)
      curl -sf -H 'Metadata-Flavor: Google' \
        http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number || echo 0
      ;;
  esac
}

me="$(worker_number)"

say() { printf '[%s]%s\n' "$me" "$*"; }

# Only while the process that wrote it is there: numbers of processes are given again after a restart.
is_running() {
  local pid
  pid="$(cat "$JOBS/$1/pid" 2>/dev/null)" && case "$(ps -o args= -p "$pid" 2>/dev/null)" in
    *"supervise $1 "*) return 0 ;;
  esac
  return 1
}

current() { cat "$JOBS/current" 2>/dev/null; }

install_project() {
  # The images bring Python 3.10 or 3.12; uv fetches one that the project runs on.
  export PATH="$HOME/.local/bin:$PATH"
  command -v uv >/dev/null || python3 -m pip install --user --quiet uv
  [ -x "$VENV/bin/python" ] || uv venv --quiet --python 3.12 "$VENV"
  uv pip install --quiet --python "$VENV/bin/python" -e "${PROJECT}[tpu]"
  say "installed $(uname -n)"
}

start_command() {
  local id="$1"
  shift
  mkdir -p "$JOBS/$id"
  printf '%q ' "$@" >"$JOBS/$id/command"
  : >"$JOBS/$id/log"
  setsid bash "$0" supervise "$id" "$@" </dev/null >/dev/null 2>&1 &
  echo "$!" >"$JOBS/$id/pid"
  echo "$id" >"$JOBS/current"
  say "started $id"
}

supervise() {
  local id="$1" child status=0
  shift
  export SELFREWARD_HOSTS=auto PATH="$VENV/bin:$PATH"
  if [ -f "$SECRETS" ]; then
    # shellcheck source=/dev/null
    . "$SECRETS"
  fi
  cd "$PROJECT"
  "$@" >"$JOBS/$id/log" 2>&1 &
  child=$!
  trap 'kill -TERM "$child" 2>/dev/null' TERM # of `stop`, and of a machine that is being taken away
  while :; do
    wait "$child" && status=0 || status=$?
    kill -0 "$child" 2>/dev/null || break
  done
  echo "$status" >"$JOBS/$id/status.tmp"
  mv "$JOBS/$id/status.tmp" "$JOBS/$id/status"
}

follow() {
  local job="$JOBS/$1" lines line
  case "${2:-}" in *[!0-9,]*) say "no numbers of lines: $2"; return 2 ;; esac # bash would run a command that hides there
  IFS=, read -r -a lines <<<"${2:-}"
  while IFS= read -r line || [ -n "$line" ]; do
    printf '[%s] %s\n' "$me" "$line"
  done < <(tail -s 0.2 -n "+$((${lines[me]:-0} + 1))" -f --pid="$(cat "$job/pid")" "$job/log")
  say "exit $(cat "$job/status" 2>/dev/null || echo "$LOST")"
}

status() {
  local id
  if ! id="$(current)"; then
    say "idle"
  elif is_running "$id"; then
    say "running $id $(cat "$JOBS/$id/command")"
  else
    say "ended $id $(cat "$JOBS/$id/status" 2>/dev/null || echo "$LOST") $(cat "$JOBS/$id/command")"
  fi
}

stop() {
  local id
  if id="$(current)" && is_running "$id"; then
    kill -TERM "$(cat "$JOBS/$id/pid")"
    say "stopping $id"
  else
    say "idle"
  fi
}

what="$1"
shift
case "$what" in
  install) install_project ;;
  start) start_command "$@" ;;
  supervise) supervise "$@" ;;
  follow) follow "$@" ;;
  status) status ;;
  stop) stop ;;
esac
