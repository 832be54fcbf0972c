#!/usr/bin/env bash
# A pod on one machine: the same command in N processes that compute together, each with M simulated CPU devices.
#
#   bash launch/local_pod.sh N [--devices M] COMMAND...
#   bash launch/local_pod.sh 2 --devices 4 selfreward sft --config=configs/quickstart.py --workdir=runs/pod
#
# Every line of output begins with the index of its process. Ctrl-C and SIGTERM reach every process. The exit status
# is that of the process that failed first, or 0.
set -um # a process group for each, so that a signal reaches each of them once

usage() {
  echo "local_pod: ${1//[[:cntrl:]]/ }; usage: bash launch/local_pod.sh N [--devices M] COMMAND..." >&2
  exit 2
}

is_count() { case "$1" in '' | *[!0-9]* | 0* | ??????*) return 1 ;; esac }

[ $# -gt 0 ] || usage "how many processes?"
processes="$1" devices=1
shift
is_count "$processes" || usage "$processes is no number of processes"
if [ "${1:-}" = --devices ]; then
  devices="${2:-}"
  is_count "$devices" || usage "${devices:-nothing} is no number of devices"
  shift 2
fi
[ $# -gt 0 ] || usage "no command"

free_port() {
  local port
  while port=$((20000 + RANDOM % 12000)) && (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do :; done
  echo "$port"
}

prefixed() {
  while IFS= read -r line || [ -n "$line" ]; do printf '[%s] %s\n' "$1" "$line"; done
}

JAX_COORDINATOR_ADDRESS="127.0.0.1:$(free_port)"
export JAX_COORDINATOR_ADDRESS
export JAX_NUM_PROCESSES="$processes"
export JAX_PLATFORMS=cpu JAX_CPU_COLLECTIVES_IMPLEMENTATION=gloo
export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices"

pids=()
# shellcheck disable=SC2329 # the traps call it
pass_on() { for pid in "${pids[@]}"; do kill "-$1" -- "-$pid" 2>/dev/null; done; }
trap 'pass_on INT' INT
trap 'pass_on TERM' TERM

pipes="$(mktemp -d)"
trap 'rm -rf "$pipes"' EXIT
for ((index = 0; index < processes; index++)); do
  mkfifo "$pipes/$index.out" "$pipes/$index.err"
  prefixed "$index" <"$pipes/$index.out" &
  prefixed "$index" <"$pipes/$index.err" >&2 &
  JAX_PROCESS_ID="$index" "$@" </dev/null >"$pipes/$index.out" 2>"$pipes/$index.err" &
  pids+=("$!")
done

# Which one fails first is not for `wait` to say on every bash (macOS has 3.2), so look. What bash itself says of a
# process that a signal ended is told better below.
exec 3>&2 2>/dev/null
first=0
left=("${!pids[@]}")
while [ "${#left[@]}" -gt 0 ]; do
  sleep 0.1 &
  wait "$!"
  going=()
  for index in "${left[@]}"; do
    if kill -0 "${pids[index]}"; then
      going+=("$index")
      continue
    fi
    wait "${pids[index]}"
    status=$?
    if [ "$status" -ne 0 ] && [ "$first" -eq 0 ]; then
      first=$status
      echo "local_pod: process $index ended first, with status $status" >&3
    fi
  done
  left=(${going[@]+"${going[@]}"})
done
wait
exit "$first"
