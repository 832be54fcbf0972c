"""Scripts for clusters that others keep: a JobSet for GKE, a batch job for Slurm, an image."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import tiny

LAUNCH = tiny.ROOT / "launch"


def jobset(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "IMAGE": "registry/selfreward:1", **variables}
    script = ["bash", str(LAUNCH / "gke" / "jobset.sh")]
    return subprocess.run([*script, *words], env=env, capture_output=True, text=True, timeout=30)


def manifest(*words: str, **variables: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The JobSet, and its pods."""
    made = jobset(*words, **variables)
    assert made.returncode == 0, made.stderr
    whole = yaml.safe_load(made.stdout)
    return whole, whole["spec"]["replicatedJobs"][0]["template"]["spec"]


@pytest.mark.parametrize(
    ("accelerator", "topology", "label", "hosts", "chips"),
    [
        ("v5litepod-16", "", "tpu-v5-lite-podslice", 4, 4),
        ("v5litepod-256", "", "tpu-v5-lite-podslice", 64, 4),
        ("v6e-8", "", "tpu-v6e-slice", 1, 8),
        ("v6e-1", "", "tpu-v6e-slice", 1, 1),
        ("v5p-128", "4x4x4", "tpu-v5p-slice", 16, 4),  # counted in cores, two of a chip
        ("v4-16", "2x2x2", "tpu-v4-podslice", 2, 4),
    ],
)
def test_a_pod_for_each_machine_of_the_slice(accelerator, topology, label, hosts, chips):
    whole, job = manifest("selfreward", "run", ACCELERATOR=accelerator, TOPOLOGY=topology)
    assert (whole["apiVersion"], whole["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert job["parallelism"] == job["completions"] == hosts
    pod = job["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-accelerator"] == label
    x = [int(n) for n in pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")]
    assert hosts * chips == x[0] * x[1] * (x[2] if len(x) > 2 else 1)
    [container] = pod["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": chips}
    assert {"name": "SELFREWARD_HOSTS", "value": "auto"} in container["env"] and "envFrom" not in container


def test_arguments_arrive_as_they_are():
    words = ["selfreward", "two words", "it's", 'a "b"', "a\\b", "line\nline", "tab\t", "", "{}", "# no", "$HOME", "é"]
    whole, job = manifest(*words, NAME="m3", SPOT="1", SECRET="tokens", CACHE="gs://b/c", RESTARTS="3")
    pod = job["template"]["spec"]
    assert pod["containers"][0]["command"] == words
    assert pod["containers"][0]["envFrom"] == [{"secretRef": {"name": "tokens"}}]
    assert {"name": "JAX_COMPILATION_CACHE_DIR", "value": "gs://b/c"} in pod["containers"][0]["env"]
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert whole["metadata"]["name"] == "m3" and whole["spec"]["failurePolicy"]["maxRestarts"] == 3


@pytest.mark.parametrize(
    ("words", "variables", "said"),
    [
        (["x"], {"IMAGE": ""}, "IMAGE: not set"),
        ([], {}, "no command"),
        (["x"], {"ACCELERATOR": "h100-8"}, "ACCELERATOR=h100-8: unknown"),
        (["x"], {"ACCELERATOR": "v6e"}, "ACCELERATOR=v6e: no size"),
        (["x"], {"ACCELERATOR": "v5p-128"}, "TOPOLOGY: not set; that of the node pool for 64 chips"),
        (["x"], {"TOPOLOGY": "2x2"}, "TOPOLOGY=2x2: that is 4 chips, v5litepod-16 has 16"),
    ],
)
def test_what_can_not_be_is_one_line(words, variables, said):
    ended = jobset(*words, **variables)
    assert ended.returncode == 2 and ended.stdout == ""
    assert ended.stderr.startswith(f"jobset: {said}") and ended.stderr.count("\n") == 1


# ---------------------------------------------------------------------------------------------------------------------
# Slurm


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """Environment of a batch job, with commands that write down what they are asked; `srun` runs one task."""
    commands = {
        "srun": 'while [ "${1#--}" != "$1" ]; do shift; done; "$@" & echo $! >"$JOB/task"; wait $!; exit $?',
        "scancel": 'echo "scancel $*" >>"$JOB/asked"; kill -TERM "$(cat "$JOB/task")"',
        "scontrol": 'echo "scontrol $*" >>"$JOB/asked"',
    }
    for name, text in commands.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "JOB": str(tmp_path), "SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(tmp_path)}


def asked(slurm: dict[str, str]) -> str:
    path = Path(slurm["JOB"]) / "asked"
    return path.read_text() if path.exists() else ""


@pytest.mark.parametrize(
    ("status", "restarts", "again"), [(0, 0, False), (2, 0, False), (75, 0, True), (75, 10, False)]
)
def test_a_job_that_lost_a_worker_waits_in_the_queue_again(status, restarts, again, slurm):
    words = ["bash", str(LAUNCH / "slurm.sbatch"), "bash", "-c", f"exit {status}"]
    env = slurm | {"SLURM_RESTART_COUNT": str(restarts)}
    ended = subprocess.run(words, env=env, capture_output=True, text=True, timeout=30)
    assert ended.returncode == status and asked(slurm) == ("scontrol requeue 7\n" if again else "")


def test_ahead_of_the_time_limit_the_command_saves_and_the_job_waits_in_the_queue_again(slurm):
    command = "trap 'echo saved; exit 130' TERM; echo up; while :; do sleep 0.1; done"
    words = ["bash", str(LAUNCH / "slurm.sbatch"), "bash", "-c", command]
    with subprocess.Popen(words, env=slurm, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "up\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == "saved\n"
    assert process.returncode == 130 and asked(slurm) == "scancel --signal=TERM 7\nscontrol requeue 7\n"


def test_slurm_is_told_in_time_and_keeps_all_gpus_visible():
    options = re.findall(r"^#SBATCH (\S+)$", (LAUNCH / "slurm.sbatch").read_text(), re.M)
    assert {"--signal=B:TERM@300", "--requeue", "--open-mode=append"} <= set(options)
    assert not any(word.startswith("--gpus-per-task") for word in options)


# ---------------------------------------------------------------------------------------------------------------------
# The image


def test_the_image_copies_what_is_there_and_runs_as_nobody_special():
    lines = [line.split() for line in (LAUNCH / "Dockerfile").read_text().splitlines() if line]
    copied = [name for words in lines if words[0] == "COPY" and "--from" not in words[1] for name in words[1:-1]]
    kept = [line[1:] for line in (LAUNCH / "Dockerfile.dockerignore").read_text().splitlines() if line[0] == "!"]
    for name in copied:
        assert (tiny.ROOT / name).exists() and name in kept
    assert [words[1] for words in lines if words[0] == "USER"] == ["selfreward"]
    assert sum(words[0] == "FROM" for words in lines) == 2  # what builds stays behind
