#!/usr/bin/env bash
# Prints a JobSet that runs a command on a TPU slice of a GKE cluster, for kubectl.
#
#   IMAGE=... ACCELERATOR=v5litepod-16 bash launch/gke/jobset.sh selfreward run --workdir=gs://BUCKET/RUN ... \
#     | kubectl apply -f -
#
# Variables:
#   IMAGE=...                 of launch/Dockerfile, with --build-arg PLATFORM=tpu
#   ACCELERATOR=v5litepod-16  kind and size: v4-N, v5litepod-N, v5p-N, v6e-N, as gcloud names them
#   TOPOLOGY=4x4              of the node pool (default for v5litepod and v6e: by size)
#   NAME=selfreward           of the JobSet
#   SPOT=1                    on a pool of spot machines
#   RESTARTS=10               times that the command is started again after a preemption or a failure; it resumes
#   SERVICE_ACCOUNT=default   of Kubernetes, with access to the bucket
#   SECRET=NAME               a Kubernetes secret whose entries become environment variables, such as HF_TOKEN
#   CACHE=gs://BUCKET/DIR     keeps compiled programs
set -euo pipefail

fail() {
  printf 'jobset: %s\n' "${1//[[:cntrl:]]/ }" >&2
  exit 2
}

# What stands in YAML as it is, or in arithmetic, is checked before: bash would run commands that hide in a "number".
is_count() { case "$1" in '' | *[!0-9]* | ??????*) return 1 ;; esac }
is_name() { # of Kubernetes
  case "$1" in '' | *[!a-z0-9.-]* | [.-]* | *[.-]) return 1 ;; esac
  [ "${#1}" -le 253 ]
}

ACCELERATOR="${ACCELERATOR:-v5litepod-16}" NAME="${NAME:-selfreward}"
[ -n "${IMAGE:-}" ] || fail "IMAGE: not set; see the head of launch/gke/jobset.sh"
[ $# -gt 0 ] || fail "no command; such as: selfreward run --config=... --workdir=gs://..."

kind="${ACCELERATOR%-*}" size="${ACCELERATOR##*-}"
case "$IMAGE" in *[!A-Za-z0-9._/:@-]* | [!A-Za-z0-9]*) fail "IMAGE=$IMAGE: no name of an image" ;; esac
is_count "$size" || fail "ACCELERATOR=$ACCELERATOR: no size; such as v5litepod-16"
size=$((10#$size))
is_name "$NAME" || fail "NAME=$NAME: no name for Kubernetes: small letters, digits and -"
is_name "${SERVICE_ACCOUNT:-default}" || fail "SERVICE_ACCOUNT=$SERVICE_ACCOUNT: no name for Kubernetes: small letters, digits, - and ."
is_name "${SECRET:-none}" || fail "SECRET=$SECRET: no name for Kubernetes: small letters, digits, - and ."
is_count "${RESTARTS:-10}" || fail "RESTARTS=$RESTARTS: no number"
# v4 and v5p are counted in cores, two of a chip.
case "$kind" in
  v4) label=tpu-v4-podslice chips=$((size / 2)) ;;
  v5p) label=tpu-v5p-slice chips=$((size / 2)) ;;
  v5litepod) label=tpu-v5-lite-podslice chips=$size ;;
  v6e) label=tpu-v6e-slice chips=$size ;;
  *) fail "ACCELERATOR=$ACCELERATOR: unknown; v4-N, v5litepod-N, v5p-N or v6e-N" ;;
esac
if [ -z "${TOPOLOGY:-}" ]; then
  case "$kind-$chips" in
    v5litepod-1 | v6e-1) TOPOLOGY=1x1 ;;
    v5litepod-4 | v6e-4) TOPOLOGY=2x2 ;;
    v5litepod-8 | v6e-8) TOPOLOGY=2x4 ;;
    v5litepod-16 | v6e-16) TOPOLOGY=4x4 ;;
    v5litepod-32 | v6e-32) TOPOLOGY=4x8 ;;
    v5litepod-64 | v6e-64) TOPOLOGY=8x8 ;;
    v5litepod-128 | v6e-128) TOPOLOGY=8x16 ;;
    v5litepod-256 | v6e-256) TOPOLOGY=16x16 ;;
    *) fail "TOPOLOGY: not set; that of the node pool for $chips chips, such as 2x2x4" ;;
  esac
fi
[[ "$TOPOLOGY" =~ ^[1-9][0-9]{0,2}(x[1-9][0-9]{0,2}){1,2}$ ]] || fail "TOPOLOGY=$TOPOLOGY: none; such as 4x4 or 2x2x4"
[ $((${TOPOLOGY//x/*})) -eq "$chips" ] || fail "TOPOLOGY=$TOPOLOGY: that is $((${TOPOLOGY//x/*})) chips, $ACCELERATOR has $chips"
# A slice of one machine has all its chips there, a larger one four on each.
hosts=$(((chips + 3) / 4)) each=4
if [ "$chips" -lt 4 ] || { [ "$chips" -eq 8 ] && [ "$TOPOLOGY" = 2x4 ]; }; then hosts=1 each=$chips; fi

text() { # as a string of YAML, whatever stands in it
  local quoted="${1//\\/\\\\}"
  # shellcheck disable=SC2016 # Kubernetes puts variables in for $(NAME), and takes $$ for one $.
  case "$quoted" in *'$('* | *'$$'*) quoted="${quoted//\$/\$\$}" ;; esac
  quoted="${quoted//\"/\\\"}"
  quoted="${quoted//$'\n'/\\n}"
  quoted="${quoted//$'\r'/\\r}"
  printf '"%s"' "${quoted//$'\t'/\\t}"
}

for word in "$@" "${CACHE:-}"; do
  word="${word//[$'\t\n\r']/}"
  [ "$word" = "${word//[[:cntrl:]]/}" ] || fail "$word: has a control character, which YAML can't hold"
done
words=""
for word in "$@"; do words="$words$(text "$word"), "; done

optional() { # indentation, and lines that follow it
  local line
  for line in "${@:2}"; do printf '%*s%s\n' "$1" '' "$line"; done
}
spot="" cache="" secret=""
[ "${SPOT:-0}" = 0 ] || spot="$(optional 16 'cloud.google.com/gke-spot: "true"')"
[ -z "${CACHE:-}" ] || cache="$(optional 20 "- name: JAX_COMPILATION_CACHE_DIR" "  value: $(text "$CACHE")")"
[ -z "${SECRET:-}" ] || secret="$(optional 18 "envFrom:" "  - secretRef:" "      name: $SECRET")"

sed '/^$/d' <<END
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $NAME
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: ${RESTARTS:-10}
  replicatedJobs:
    - name: slice
      replicas: 1
      template:
        spec:
          parallelism: $hosts
          completions: $hosts
          backoffLimit: 0
          template:
            spec:
              restartPolicy: Never
              serviceAccountName: ${SERVICE_ACCOUNT:-default}
              terminationGracePeriodSeconds: 120
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $label
                cloud.google.com/gke-tpu-topology: $TOPOLOGY
$spot
              containers:
                - name: selfreward
                  image: "$IMAGE"
                  command: [${words%, }]
                  env:
                    - name: SELFREWARD_HOSTS
                      value: auto
$cache
$secret
                  ports:
                    - containerPort: 8471
                    - containerPort: 8482
                  resources:
                    limits:
                      google.com/tpu: $each
END
