#!/usr/bin/env bash
# A Cloud TPU slice of any size: made, set up, used, watched over and given back, from your own machine.
#
#   bash launch/tpu_pod.sh [--dry-run] COMMAND
#
#   up                        makes the slice, or takes the one there is, and waits until it is ready
#   setup                     copies this project to every worker and installs it
#   run -- selfreward ...     starts a command on all workers and follows it; it goes on without this machine
#   keep -- selfreward ...    up, setup and run, and again after each preemption, until the command has ended
#   logs | status | stop      follows the command; tells how things stand; asks the command to save and stop
#   down                      gives the slice back
#   --dry-run                 prints every gcloud command and does nothing
#
# Variables:
#   ACCELERATOR=v5litepod-16  kind and size of the slice: v4-N, v5litepod-N, v5p-N, v6e-N
#   NAME=selfreward           of the slice
#   ZONE, PROJECT             default: what gcloud is configured with
#   SPOT=1                    cheaper, and may be taken away at any time
#   QUEUED=0                  ask once instead of waiting in the queue for a free slice
#   VERSION=...               of the machines' software (default: by accelerator)
#   CREATE="--reserved ..."   further flags for gcloud's create
#   SOURCE=URL[@REF]          a git repository instead of this folder
#   ENV="HF_TOKEN ..."        names of variables that the command is to have; their values are never shown
#   CACHE=gs://BUCKET/DIR     keeps compiled programs, also from one slice to the next
#   LOGS=runs/tpu             where the workers' logs go: LOGS/NAME/COMMAND'S START/worker-N.log
#
# A run resumes from its workdir, so that must be a path that every worker sees: --workdir=gs://BUCKET/RUN. For more than
# one worker gcloud wants your key in an agent, once: ssh-add ~/.ssh/google_compute_engine
set -u

NAME="${NAME:-selfreward}" ACCELERATOR="${ACCELERATOR:-v5litepod-16}" QUEUED="${QUEUED:-1}" SPOT="${SPOT:-0}"
POLL="${POLL:-20}" # seconds between two looks
LOST=75 RERUNS="${RERUNS:-3}" # a command that lost a worker is started again, so often in a row on a slice that is well
here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
LOGS="${LOGS:-$here/runs/tpu}"
dry=0 seen="" # whether gcloud has ever answered: before, that it can't is no matter of patience
job=""         # what runs on the workers: "running ID COMMAND", or "ended ID STATUS COMMAND"

say() { printf 'tpu_pod: %s\n' "${*//[[:cntrl:]]/ }" >&2; }
fail() {
  say "$1"
  exit "${2:-2}"
}
usage() { sed -n '2,/^set -u/{/^set/d;s/^#\{0,1\} \{0,1\}//;p;}' "${BASH_SOURCE[0]}"; }

# ---------------------------------------------------------------------------------------------------------------------
# gcloud

show() {
  local word line=gcloud
  for word in "$@"; do
    case "$word" in
      *[!A-Za-z0-9_./:=,@%+-]*) word="'$(printf '%s' "$word" | sed "s/'/'\\\\''/g")'" ;;
    esac
    line="$line $word"
  done
  printf '%s\n' "$line"
}

# What gcloud says of its own goes to a file, and is shown when it fails.
gcloud_() {
  if [ "$dry" = 1 ]; then
    show "$@"
    return 0
  fi
  gcloud "$@" 2>"$said" </dev/null
}

complain() { # what failed
  local why
  why="$(grep -v '^ *$' "$said" | tail -n 8)"
  say "$1${why:+; gcloud says:}"
  [ -z "$why" ] || printf '%s\n' "$why" | sed 's/^/  /' >&2
}

tpus() { gcloud_ compute tpus "$@" --zone="$ZONE" --project="$PROJECT" --quiet; }

# On all workers at once. gcloud takes the command apart at blanks and ssh joins it again, so quoting survives.
on_workers() { tpus tpu-vm ssh "$NAME" --worker=all --command="$1"; }

SCRIPT=selfreward/launch/tpu_worker.sh
worker() { # the script beside this one, with arguments as they are
  local word line="bash $SCRIPT"
  for word in "$@"; do line="$line $(printf '%q' "$word")"; done
  on_workers "$line"
}

FIELDS="state,acceleratorType.basename(),networkEndpoints.len()"

# Fields of what there is; nothing where there is none. Fails if gcloud can't tell.
describe() { # tpu-vm | queued-resources, fields
  tpus "$1" describe "$NAME" --format="value($2)" && return 0
  grep -qi 'not[_ ]found' "$said"
}

# Sets `state` (nothing where there is no slice), `kind` and `workers`.
look() {
  local answer
  answer="$(describe tpu-vm "$FIELDS")" || return 1
  state="" kind="" workers=0 seen=1
  [ -z "$answer" ] || read -r state kind workers <<<"$answer"
  case "$workers" in '' | *[!0-9]*) workers=0 ;; esac
}

# What would be an option of gcloud, a place in another folder, or a command that hides in a "number" or in the name of
# a variable, which bash would run.
check_variables() {
  local name
  case "$NAME" in
    '' | [!a-z]* | *[!a-z0-9-]* | *-) fail "NAME=$NAME: must begin with a small letter and have such, digits and - only" ;;
  esac
  for name in SPOT QUEUED RERUNS; do
    case "${!name}" in '' | *[!0-9]* | ??????*) fail "$name=${!name}: no whole number" ;; esac
  done
  case "$POLL" in '' | *[!0-9.]* | *.*.*) fail "POLL=$POLL: no number of seconds" ;; esac
  case "$LOGS" in *[[:cntrl:]]*) fail "LOGS=$LOGS: no folder" ;; -*) LOGS="./$LOGS" ;; esac
  case "${SOURCE:-}" in -* | *@-*) fail "SOURCE=$SOURCE: no address of a git repository" ;; esac
  read -r -d '' -a env_names <<<"${ENV:-}"
  for name in ${env_names[@]+"${env_names[@]}"}; do
    case "$name" in [!A-Za-z_]* | *[!A-Za-z0-9_]*) fail "ENV: $name: no name of a variable" ;; esac
  done
}

prepare() {
  check_variables
  case "$ACCELERATOR" in
    v2-[0-9]* | v3-[0-9]* | v4-[0-9]*) VERSION="${VERSION:-tpu-ubuntu2204-base}" ;;
    v5litepod-[0-9]*) VERSION="${VERSION:-v2-alpha-tpuv5-lite}" ;;
    v5p-[0-9]*) VERSION="${VERSION:-v2-alpha-tpuv5}" ;;
    v6e-[0-9]*) VERSION="${VERSION:-v2-alpha-tpuv6e}" ;;
    v5e-* | v5lite-*) [ -n "${VERSION:-}" ] || fail "ACCELERATOR=$ACCELERATOR: gcloud calls it v5litepod-${ACCELERATOR#*-}" ;;
    *) [ -n "${VERSION:-}" ] || fail "ACCELERATOR=$ACCELERATOR: unknown; v4-N, v5litepod-N, v5p-N, v6e-N, or say VERSION too" ;;
  esac
  said="$(mktemp)"
  trap 'rm -f "$said" ${packed:+"$packed"}' EXIT
  if [ "$dry" = 1 ]; then
    ZONE="${ZONE:-ZONE}" PROJECT="${PROJECT:-PROJECT}"
    return
  fi
  command -v gcloud >/dev/null || fail "gcloud is not installed; see https://cloud.google.com/sdk/docs/install"
  [ -n "$(gcloud_ auth list --filter=status:ACTIVE --format='value(account)')" ] ||
    fail "nobody is logged in to gcloud; run: gcloud auth login"
  ZONE="${ZONE:-$(gcloud_ config get-value compute/zone)}" PROJECT="${PROJECT:-$(gcloud_ config get-value project)}"
  [ -n "$ZONE" ] || fail "ZONE: not set, and gcloud has no default; a zone with $ACCELERATOR is needed"
  [ -n "$PROJECT" ] || fail "PROJECT: not set, and gcloud has no default"
}

# ---------------------------------------------------------------------------------------------------------------------
# The slice

create() {
  local flags=() words
  [ "$SPOT" = 0 ] || flags+=(--spot)
  read -r -d '' -a words <<<"${CREATE:-}" # flags, split at blanks
  flags+=(${words[@]+"${words[@]}"})
  say "asking for $NAME: $ACCELERATOR in $ZONE"
  if [ "$QUEUED" = 1 ]; then
    tpus queued-resources create "$NAME" --node-id="$NAME" --accelerator-type="$ACCELERATOR" \
      --runtime-version="$VERSION" ${flags[@]+"${flags[@]}"}
  else
    tpus tpu-vm create "$NAME" --accelerator-type="$ACCELERATOR" --version="$VERSION" ${flags[@]+"${flags[@]}"}
  fi
}

# What stands in the queue goes with its slice; a slice that was made without the queue is deleted by itself.
delete() { # the queue's state
  if [ -n "$1" ]; then
    tpus queued-resources delete "$NAME" --force
  else
    tpus tpu-vm delete "$NAME"
  fi
}

# Sets `queue` beside what `look` sets; says why if it can't.
look_at_both() {
  queue=""
  look && { [ "$QUEUED" != 1 ] || queue="$(describe queued-resources state.state)"; } && return
  complain "can't tell how $NAME is"
  return 1
}

# Makes whatever is missing, one step at each look, until the slice is ready.
up() { # "patient": a lack of room is no reason to give up, nor is a failure of the queue
  local patient="${1:-}" told="" now
  if [ "$dry" = 1 ]; then
    describe tpu-vm "$FIELDS"
    [ "$QUEUED" != 1 ] || describe queued-resources state.state
    create
    return
  fi
  while :; do
    if ! look_at_both; then
      [ -n "$seen" ] || return 1
      sleep "$POLL"
      continue
    fi
    now="${state:-${queue:-nothing}}"
    case "$state/$queue" in
      READY/*)
        [ "$kind" = "$ACCELERATOR" ] || fail "$NAME is there as $kind; give another NAME, or ACCELERATOR=$kind"
        say "$NAME is ready: $ACCELERATOR, $workers workers"
        return
        ;;
      STOPPED/*) tpus tpu-vm start "$NAME" || { complain "can't start $NAME"; return 1; } ;;
      PREEMPTED/* | TERMINATED/* | /SUSPENDED | /FAILED)
        if [ "$now" = FAILED ] && [ -z "$patient" ]; then
          say "$NAME could not be made; gcloud compute tpus queued-resources describe $NAME --zone=$ZONE says why"
          return 1
        fi
        say "$NAME is $now; making it anew"
        delete "$queue" || { complain "can't delete what is left of $NAME"; return 1; }
        continue
        ;;
      /)
        if ! create; then
          complain "could not make $NAME"
          [ -n "$patient" ] && grep -qiE 'RESOURCE_EXHAUSTED|capacity|unavailable' "$said" || return 1
        fi
        ;;
      *) [ "$now" = "$told" ] || say "$NAME: $now; waiting" ;;
    esac
    told="$now"
    sleep "$POLL"
  done
}

down() {
  if [ "$dry" = 1 ]; then
    delete "${QUEUED#0}"
    return
  fi
  look_at_both || return 1
  if [ -z "$state$queue" ]; then
    say "$NAME: there is no such slice in $ZONE"
    return
  fi
  delete "$queue" || { complain "can't delete $NAME"; return 1; }
  say "$NAME is given back"
}

# ---------------------------------------------------------------------------------------------------------------------
# The project on the workers

setup() {
  local url="${SOURCE:-}" ref="" answer
  answer="$(on_workers "install -m 600 /dev/null .selfreward-env; [ ! -e $SCRIPT ] || bash $SCRIPT status")" ||
    { complain "can't reach the workers"; return 1; }
  [ "$dry" = 0 ] || printf '%s\n' "$answer"
  take_job "$answer"
  refuse_if_running
  send_environment || return 1
  if [ -z "$url" ]; then
    say "copying $here"
    packed="$(mktemp)"
    [ "$dry" = 1 ] || pack >"$packed" || fail "can't pack $here" 1
    tpus tpu-vm scp "$packed" "$NAME:selfreward.tar.gz" --worker=all || { complain "can't copy the project"; return 1; }
    on_workers "rm -rf selfreward && mkdir selfreward && tar -xzf selfreward.tar.gz -C selfreward"
  else
    case "${url##*/}" in *@*) ref="${url##*@}" url="${url%@*}" ;; esac
    on_workers "rm -rf selfreward && git clone --quiet $(printf '%q' "$url") selfreward &&\
 git -C selfreward checkout --quiet $(printf '%q' "${ref:-HEAD}")"
  fi || { complain "can't unpack the project"; return 1; }
  say "installing on every worker"
  worker install || { complain "can't install"; return 1; }
}

# What git would keep, or everything where there is no git; never environments and runs.
pack() {
  local file
  if git -C "$here" rev-parse --is-inside-work-tree >/dev/null 2>&1; then
    git -C "$here" ls-files -z --cached --others --exclude-standard |
      (cd "$here" && while IFS= read -r -d '' file; do [ ! -e "$file" ] || printf '%s\0' "$file"; done) |
      COPYFILE_DISABLE=1 tar -C "$here" --null -T - -czf -
  else
    COPYFILE_DISABLE=1 tar -C "$here" --exclude=./.venv --exclude=./runs --exclude=./.git -czf - .
  fi
}

# Values travel in a file that only you can read, on either side, and stand on no command line.
send_environment() {
  local file name
  file="$(umask 077 && mktemp)"
  for name in ${env_names[@]+"${env_names[@]}"}; do
    if [ -z "${!name:-}" ]; then
      rm -f "$file"
      fail "ENV: $name is not set here"
    fi
    printf 'export %s=%q\n' "$name" "${!name}" >>"$file"
  done
  [ -z "${CACHE:-}" ] || printf 'export JAX_COMPILATION_CACHE_DIR=%q\n' "$CACHE" >>"$file"
  tpus tpu-vm scp "$file" "$NAME:.selfreward-env" --worker=all
  local status=$?
  rm -f "$file"
  [ "$status" = 0 ] || { complain "can't copy to the workers"; return 1; }
}

# ---------------------------------------------------------------------------------------------------------------------
# The command

take_job() { # what the workers answered; one that runs stands for all
  job="$(printf '%s\n' "$1" | sed -n 's/^\[[0-9]*\]\(running .*\)/\1/p' | head -n 1)"
  [ -n "$job" ] || job="$(printf '%s\n' "$1" | sed -n 's/^\[[0-9]*\]\(ended .*\)/\1/p' | head -n 1)"
}

look_at_command() {
  local answer
  look || { complain "can't tell how $NAME is"; return 1; }
  [ "$state" = READY ] || { say "$NAME is ${state:-not there}"; return 1; }
  answer="$(worker status)" || { complain "can't ask the workers; has setup run?"; return 1; }
  take_job "$answer"
}

refuse_if_running() {
  case "$job" in
    "running "*) fail "a command is running on $NAME already: ${job#* * }; follow it with logs, or end it with stop" 3 ;;
  esac
}

start() {
  local id
  id="$(date -u +%Y%m%d-%H%M%S)"
  if [ "$dry" = 1 ]; then
    worker status
    worker start "$id" "$@"
    worker follow "$id" 0
    return
  fi
  case " $* " in
    *" --workdir=gs://"* | *" --workdir gs://"*) ;;
    *" --workdir"*) say "the workdir is no gs:// path: each worker has its own disk, and it goes with the slice" ;;
  esac
  look_at_command || return 1
  refuse_if_running
  worker start "$id" "$@" >/dev/null || { complain "could not start on every worker; end what did with stop"; return 1; }
  say "started on $workers workers; Ctrl-C leaves it running"
  job="running $id $(printf '%q ' "$@")"
}

# Lines of all workers, to the screen and to a file for each. Gives the status that the command ended with, or LOST if
# not every worker could be followed to the end.
follow() { # ID
  local folder="$LOGS/$NAME/$1" lines="" number line
  mkdir -p "$folder" || fail "LOGS=$LOGS: can't be written"
  rm -f "$folder"/worker-*.status
  for ((number = 0; number < workers; number++)); do
    touch "$folder/worker-$number.log"
    lines="$lines,$(wc -l <"$folder/worker-$number.log" | tr -d ' ')"
  done
  worker follow "$1" "${lines#,}" | while IFS= read -r line; do
    number="${line%%]*}" number="${number#[}"
    case "$line" in
      "[$number] "*)
        printf '%s\n' "${line#*] }" >>"$folder/worker-$number.log" # first, so that no line is ever shown twice
        printf '%s\n' "$line"
        ;;
      "[$number]exit "*) printf '%s\n' "${line##* }" >"$folder/worker-$number.status" ;;
    esac
  done
  ended="$(find "$folder" -name 'worker-*.status' | wc -l)"
  # A worker that failed ends the others with LOST, so its own status says more.
  find "$folder" -name 'worker-*.status' | sort -t- -k2n | while IFS= read -r line; do cat "$line"; done |
    awk -v lost="$LOST" '$1 == lost { any = lost } $1 && $1 != lost && !own { own = $1 } END { exit own ? own : any }'
}

# Follows until the command has ended or the slice is gone, over lost connections.
follow_to_the_end() {
  local id="${job#* }" status
  id="${id%% *}"
  say "logs: $LOGS/$NAME/$id/"
  while :; do
    follow "$id"
    status=$?
    if [ "$ended" -ge "$workers" ]; then break; fi
    status=$LOST
    if look && [ "$state" != READY ]; then break; fi
    say "lost the connection; trying again"
    sleep "$POLL"
  done
  job="ended $id $status"
  return "$status"
}

tell_end() { # status
  if [ "$1" = 0 ]; then
    say "the command has ended well"
  elif [ "$state" != READY ]; then
    say "$NAME is ${state:-gone}, and the command with it; make it anew and run the same again, or use keep"
  else
    say "the command ended with status $1"
  fi
  return "$1"
}

run() {
  start "$@" || return
  [ "$dry" = 0 ] || return 0
  follow_to_the_end
  tell_end "$?"
}

logs() {
  if [ "$dry" = 1 ]; then
    worker status
    worker follow ID 0
    return
  fi
  look_at_command || return 1
  [ -n "$job" ] || fail "no command has run on $NAME" 1
  follow_to_the_end
  tell_end "$?"
}

status() {
  if [ "$dry" = 1 ]; then
    describe tpu-vm "$FIELDS"
    [ "$QUEUED" != 1 ] || describe queued-resources state.state
    worker status
    return
  fi
  look_at_both || return 1
  printf '%s: %s\n' "$NAME" "${state:-not there}${state:+, $kind, $workers workers, $ZONE}${queue:+; queue: $queue}"
  [ "$state" = READY ] || return 0
  worker status | sed 's/]/] /'
  [ "${PIPESTATUS[0]}" = 0 ] || { complain "can't ask the workers; has setup run?"; return 1; }
}

stop() {
  worker stop | sed 's/]/] /'
  [ "${PIPESTATUS[0]}" = 0 ] || { complain "can't reach the workers"; return 1; }
}

keep() {
  local status lost=0 installed=""
  if [ "$dry" = 1 ]; then
    up && setup && run "$@"
    return
  fi
  while up patient; do
    # After this machine was away, what runs is followed and not started twice.
    if look_at_command 2>/dev/null && [ "${job%% *}" = running ]; then
      say "following what runs already: ${job#* * }"
    elif { [ -n "$installed" ] || setup; } && start "$@"; then
      installed=1
    else
      if look && [ "$state" = READY ]; then return 1; fi
      continue
    fi
    follow_to_the_end
    status=$?
    # A machine that is being taken away first asks the command to stop, and is seen to go a little later.
    [ "$status" = 0 ] || { sleep "$POLL" && look; }
    if [ "$status" != 0 ] && [ "$state" != READY ]; then
      say "$NAME was taken away"
      lost=0 installed=""
    elif [ "$status" = "$LOST" ] && [ "$((lost += 1))" -le "$RERUNS" ]; then
      say "a worker was lost; starting the command again"
    else
      tell_end "$status"
      return
    fi
  done
  return 1
}

interrupted() {
  echo >&2
  case "$job" in
    "running "*) say "the command goes on running on $NAME; NAME=$NAME bash launch/tpu_pod.sh logs follows it, stop ends it" ;;
    *) say "$NAME stays as it is; NAME=$NAME bash launch/tpu_pod.sh down gives it back" ;;
  esac
  exit 130
}

# ---------------------------------------------------------------------------------------------------------------------

if [ "${1:-}" = --dry-run ]; then
  dry=1
  shift
fi
what="${1:-}"
[ $# = 0 ] || shift
[ "${1:-}" != -- ] || shift
case "$what" in
  up | setup | logs | status | stop | down) [ $# = 0 ] || fail "$what takes nothing more: $1" ;;
  run | keep) [ $# -gt 0 ] || fail "$what: no command; such as: $what -- selfreward run --config=... --workdir=gs://..." ;;
  "" | -h | --help | help)
    usage
    [ -n "$what" ] || exit 2
    exit 0
    ;;
  *) fail "$what: no such command; see bash launch/tpu_pod.sh --help" ;;
esac
trap interrupted INT
prepare
"$what" "$@"
