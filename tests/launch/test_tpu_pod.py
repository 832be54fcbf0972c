"""launch/tpu_pod.sh against a cloud of folders: what it asks of gcloud, what reaches the workers, how it ends."""

import dataclasses
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import tiny

SCRIPT = tiny.ROOT / "launch" / "tpu_pod.sh"
READY = ["READY", "ACTIVE"]

pytestmark = pytest.mark.skipif(not shutil.which("setsid"), reason="workers are Linux machines")


def script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@dataclasses.dataclass
class Cloud:
    folder: Path

    def env(self, **variables: str) -> dict[str, str]:
        own = {"FAKE_CLOUD": str(self.folder), "POLL": "0.1", "LOGS": str(self.folder / "logs"), "NAME": "pod"}
        env = {name: value for name, value in os.environ.items() if name not in ("ZONE", "PROJECT", "HF_TOKEN")}
        return {**env, **own, "PATH": f"{self.folder / 'bin'}:{env['PATH']}", **variables}

    def pod(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", str(SCRIPT), *words], env=self.env(**variables), capture_output=True, text=True, timeout=60
        )

    def set(self, **facts: Any) -> None:
        path = self.folder / "cloud.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | facts))

    def calls(self) -> list[list[str]]:
        path = self.folder / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def asked(self, *words: str) -> list[str]:
        """Calls in which these words follow one another, as one line each."""
        return [line for line in map(" ".join, self.calls()) if " ".join(words) in line]

    def jobs(self, number: int) -> list[Path]:
        return sorted((self.folder / f"worker-{number}" / "selfreward-jobs").glob("2*"))

    def log(self, number: int) -> str:
        return "".join(p.read_text() for p in sorted(self.folder.glob(f"logs/pod/*/worker-{number}.log")))


@pytest.fixture
def cloud(tmp_path: Path) -> Cloud:
    """Two workers, no slice yet; one that is asked for is there at the second look."""
    for name in ("bin", "worker_bin"):
        (tmp_path / name).mkdir()
    fake = tiny.ROOT / "tests" / "launch" / "fake_gcloud.py"
    script(tmp_path / "bin" / "gcloud", f'#!/bin/sh\nexec {sys.executable} -ISs {fake} "$@"\n')
    script(tmp_path / "worker_bin" / "hostname", "#!/bin/sh\necho $FAKE_HOST\n")
    script(tmp_path / "worker_bin" / "uv", '#!/bin/sh\necho "$@" >>"$HOME/uv.log"\n')
    (tmp_path / "account").touch()
    state = {"now": ["", ""], "coming": [], "after": [READY], "errors": {}, "kind": "v5litepod-16", "workers": 2}
    (tmp_path / "cloud.json").write_text(json.dumps(state))
    return Cloud(tmp_path)


@pytest.fixture
def pod(cloud: Cloud) -> Cloud:
    """A slice that is ready and set up, as after `up` and `setup`."""
    cloud.set(now=READY)
    for number in range(2):
        place = cloud.folder / f"worker-{number}" / "selfreward" / "launch"
        place.mkdir(parents=True)
        shutil.copy(tiny.ROOT / "launch" / "tpu_worker.sh", place)
    return cloud


# ---------------------------------------------------------------------------------------------------------------------
# The slice


@pytest.mark.parametrize(
    ("accelerator", "version"),
    [
        ("v5litepod-256", "v2-alpha-tpuv5-lite"),
        ("v5p-128", "v2-alpha-tpuv5"),
        ("v6e-256", "v2-alpha-tpuv6e"),
        ("v4-32", "tpu-ubuntu2204-base"),
    ],
)
def test_a_slice_is_asked_for_with_the_software_of_its_generation(accelerator, version, cloud):
    asked = cloud.pod("--dry-run", "up", ACCELERATOR=accelerator, SPOT="1").stdout.splitlines()[-1]
    assert shlex.split(asked)[1:] == [
        "compute", "tpus", "queued-resources", "create", "pod", "--node-id=pod", f"--accelerator-type={accelerator}",
        f"--runtime-version={version}", "--spot", "--zone=ZONE", "--project=PROJECT", "--quiet",
    ]  # fmt: skip
    assert cloud.calls() == []


def test_without_the_queue_a_slice_is_made_at_once(cloud):
    ended = cloud.pod("up", QUEUED="0", ZONE="z", PROJECT="p", VERSION="mine", CREATE="--reserved --tags=a")
    assert ended.returncode == 0, ended.stderr
    [asked] = cloud.asked("create")
    assert asked == (
        "compute tpus tpu-vm create pod --accelerator-type=v5litepod-16 --version=mine --reserved --tags=a"
        " --zone=z --project=p --quiet"
    )
    assert not cloud.asked("queued-resources")


def test_up_waits_in_the_queue_and_tells_each_change_once(cloud):
    waiting = [["", "WAITING_FOR_RESOURCES"]] * 3 + [["CREATING", "PROVISIONING"]] * 2 + [READY]
    cloud.set(after=waiting)
    ended = cloud.pod("up")
    assert ended.returncode == 0
    assert ended.stderr.splitlines() == [
        "tpu_pod: asking for pod: v5litepod-16 in zone-a",
        "tpu_pod: pod: WAITING_FOR_RESOURCES; waiting",
        "tpu_pod: pod: CREATING; waiting",
        "tpu_pod: pod is ready: v5litepod-16, 2 workers",
    ]


def test_a_slice_that_is_there_is_taken_as_it_is(pod):
    assert pod.pod("up").returncode == 0
    assert not pod.asked("create") and not pod.asked("delete")


def test_a_slice_of_another_kind_is_not_taken(pod):
    ended = pod.pod("up", ACCELERATOR="v6e-8")
    assert ended.returncode == 2
    assert ended.stderr == "tpu_pod: pod is there as v5litepod-16; give another NAME, or ACCELERATOR=v5litepod-16\n"


@pytest.mark.parametrize("now", [["PREEMPTED", "SUSPENDED"], ["", "SUSPENDED"]])
def test_what_is_left_of_a_slice_that_was_taken_away_is_removed_before_a_new_one_is_asked_for(now, cloud):
    cloud.set(now=now)
    assert cloud.pod("up").returncode == 0
    words = [call[3] for call in cloud.calls() if call[3:] and call[3] in ("create", "delete")]
    assert words == ["delete", "create"] and cloud.asked("queued-resources delete pod --force")


def test_up_says_what_gcloud_says_when_there_is_no_room(cloud):
    cloud.set(errors={"create": "ERROR: there is no more capacity in the zone"})
    ended = cloud.pod("up", QUEUED="0")
    assert ended.returncode == 1
    assert ended.stderr.endswith("could not make pod; gcloud says:\n  ERROR: there is no more capacity in the zone\n")


def test_a_look_that_fails_makes_no_slice(cloud):
    cloud.set(errors={"describe": "ERROR: PERMISSION_DENIED"})
    ended = cloud.pod("up")
    assert ended.returncode == 1 and "PERMISSION_DENIED" in ended.stderr and not cloud.asked("create")


def test_down_gives_back_and_a_second_time_there_is_nothing(pod):
    assert pod.pod("down").returncode == 0
    assert pod.asked("queued-resources delete pod --force")
    ended = pod.pod("down")
    assert ended.returncode == 0 and ended.stderr == "tpu_pod: pod: there is no such slice in zone-a\n"
    assert len(pod.asked("delete")) == 1


def test_a_slice_made_without_the_queue_is_given_back_without_it(pod):
    pod.set(now=["READY", ""])
    assert pod.pod("down").returncode == 0
    assert pod.asked("tpu-vm delete pod") and not pod.asked("queued-resources delete")


# ---------------------------------------------------------------------------------------------------------------------
# The project on the workers


def test_setup_copies_what_git_knows_and_installs_it_on_every_worker(pod):
    assert pod.pod("setup").returncode == 0
    for number in range(2):
        home = pod.folder / f"worker-{number}"
        assert (home / "selfreward/selfreward_jax/cli.py").exists() and (home / "selfreward/launch/setup.sh").exists()
        assert not (home / "selfreward/.git").exists() and not (home / "selfreward/runs").exists()
        assert f"-e {home}/selfreward[tpu]" in (home / "uv.log").read_text()


def test_setup_takes_a_git_repository_at_a_ref(pod, tmp_path):
    asked = pod.pod("--dry-run", "setup", SOURCE="https://example.com/a/b.git@v1").stdout
    assert "git clone --quiet https://example.com/a/b.git selfreward" in asked and "checkout --quiet v1" in asked
    assert "selfreward.tar.gz" not in asked


def test_a_secret_reaches_the_workers_and_is_seen_nowhere_else(pod):
    token = "hf_secret value'"
    ended = pod.pod("setup", ENV="HF_TOKEN", HF_TOKEN=token, CACHE="gs://b/cache")
    assert ended.returncode == 0
    for number in range(2):
        file = pod.folder / f"worker-{number}" / ".selfreward-env"
        assert file.stat().st_mode & 0o777 == 0o600
    shown = 'echo $JAX_COMPILATION_CACHE_DIR $SELFREWARD_HOSTS; [ "$HF_TOKEN" = "$(cat $FAKE_CLOUD/token)" ]'
    (pod.folder / "token").write_text(token)
    ended = pod.pod("run", "--", "bash", "-c", shown)
    assert ended.returncode == 0 and "[1] gs://b/cache auto\n" in ended.stdout
    seen = json.dumps(pod.calls()) + ended.stdout + ended.stderr + pod.pod("--dry-run", "setup", HF_TOKEN=token).stdout
    assert "hf_secret" not in seen


def test_a_variable_that_is_not_set_is_named(pod):
    ended = pod.pod("setup", ENV="HF_TOKEN")
    assert ended.returncode == 2 and ended.stderr == "tpu_pod: ENV: HF_TOKEN is not set here\n"


def test_an_installation_that_fails_shows_why(pod):
    script(pod.folder / "worker_bin" / "uv", "#!/bin/sh\necho no such wheel >&2; exit 4\n")
    ended = pod.pod("setup")
    assert ended.returncode == 1 and "can't install; gcloud says:\n  no such wheel" in ended.stderr


# ---------------------------------------------------------------------------------------------------------------------
# The command

ODD = ["two words", "it's", 'a "b"', "$HOME", "`x`", "  ", "a\nb", "*", "é", "a\\b", "--config.x=(1, 2)", ";", ""]


def test_arguments_arrive_as_they_are(pod):
    write = "import json, os, sys; json.dump(sys.argv[1:], open(os.environ['HOME'] + '/got', 'w'))"
    ended = pod.pod("run", "--", sys.executable, "-c", write, *ODD)
    assert ended.returncode == 0, ended.stderr
    for number in range(2):
        assert json.loads((pod.folder / f"worker-{number}" / "got").read_text()) == ODD


def test_lines_bear_their_worker_and_go_to_its_file(pod):
    ended = pod.pod("run", "--", "bash", "-c", "echo I am $(hostname); printf 'no end' >&2")
    assert sorted(ended.stdout.splitlines()) == [
        "[0] I am t1v-n-0123-w-0", "[0] no end", "[1] I am t1v-n-0123-w-1", "[1] no end",
    ]  # fmt: skip
    assert pod.log(1) == "I am t1v-n-0123-w-1\nno end\n"


@pytest.mark.parametrize(
    ("exits", "status"),
    [((0, 0), 0), ((3, 0), 3), ((75, 3), 3), ((0, 75), 75)],
    ids=["all well", "one failed", "one failed and the other left", "one left"],
)
def test_the_status_is_that_of_the_worker_that_failed(exits, status, pod):
    ended = pod.pod("run", "--", "bash", "-c", f"case $(hostname) in *0) exit {exits[0]} ;; *) exit {exits[1]} ;; esac")
    assert ended.returncode == status
    assert ended.stderr.endswith("ended well\n" if status == 0 else f"ended with status {status}\n")


def running(pod: Cloud, command: str) -> subprocess.Popen[str]:
    """`run` of a command that says that it is `up` on both workers; in a process group of its own."""
    process = subprocess.Popen(
        ["bash", str(SCRIPT), "run", "--", "bash", "-c", command],
        env=pod.env(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout
    assert sorted(process.stdout.readline() for _ in range(2)) == ["[0] up\n", "[1] up\n"]
    return process


STAYS = "trap 'echo saved; exit 130' TERM; echo up; while :; do sleep 0.1; done"


def test_ctrl_c_leaves_the_command_running_and_stop_ends_it(pod):
    process = running(pod, STAYS)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert said.splitlines()[-1] == (
        "tpu_pod: the command goes on running on pod; NAME=pod bash launch/tpu_pod.sh logs follows it, stop ends it"
    )

    refused = pod.pod("run", "--", "true")
    assert refused.returncode == 3 and refused.stderr.count("\n") == 1
    assert refused.stderr.startswith("tpu_pod: a command is running on pod already: bash -c")
    assert pod.pod("setup").returncode == 3
    assert re.search(r"^\[1\] running \S+ bash -c", pod.pod("status").stdout, re.M)

    assert "[0] stopping" in pod.pod("stop").stdout
    ended = pod.pod("logs")
    assert ended.returncode == 130
    # What was seen before is not seen again; the file has it once.
    assert sorted(ended.stdout.splitlines()) == ["[0] saved", "[1] saved"] and pod.log(0) == "up\nsaved\n"
    assert re.search(r"^\[0\] ended \S+ 130 bash", pod.pod("status").stdout, re.M)


def test_a_connection_that_is_lost_costs_no_line(pod):
    (pod.folder / "cut").touch()
    ended = pod.pod("run", "--", "bash", "-c", "for i in 1 2 3 4 5 6 7 8; do echo $i; sleep 0.2; done; exit 4")
    assert ended.returncode == 4 and "lost the connection; trying again" in ended.stderr
    assert pod.log(0) == pod.log(1) == "".join(f"{i}\n" for i in range(1, 9))
    assert len(pod.asked("follow")) == 2


PREEMPTED_ONCE = """
if [ ! -e $FAKE_CLOUD/was-$FAKE_HOST ]; then touch $FAKE_CLOUD/was-$FAKE_HOST $FAKE_CLOUD/preempted; kill -9 $PPID; fi
echo resumed; exit 0
"""


def test_run_says_that_the_slice_was_taken_away(pod):
    ended = pod.pod("run", "--", "bash", "-c", PREEMPTED_ONCE)
    assert ended.returncode == 75
    assert ended.stderr.splitlines()[-1].startswith("tpu_pod: pod is PREEMPTED, and the command with it; make it anew")


def test_keep_makes_the_slice_anew_after_a_preemption_and_runs_the_same_again(cloud):
    ended = cloud.pod("keep", "--", "bash", "-c", PREEMPTED_ONCE, SPOT="1")
    assert ended.returncode == 0, ended.stderr
    assert len(cloud.asked("queued-resources create")) == 2 and len(cloud.asked("queued-resources delete")) == 1
    assert "tpu_pod: pod was taken away" in ended.stderr and cloud.log(0).endswith("resumed\n")
    started = [call for call in cloud.asked("start") if "tpu_worker.sh start" in call]
    assert len({re.sub(r"start \S+", "", call) for call in started}) == 1


def test_keep_starts_again_what_lost_a_worker_but_not_without_end(pod):
    ended = pod.pod("keep", "--", "bash", "-c", "exit 75", RERUNS="1")
    assert ended.returncode == 75 and len(pod.asked("tpu_worker.sh start")) == 2
    assert not pod.asked("create")


def test_keep_ends_with_a_command_that_fails_by_itself(pod):
    ended = pod.pod("keep", "--", "bash", "-c", "echo bad input; exit 2")
    assert ended.returncode == 2 and len(pod.asked("tpu_worker.sh start")) == 1


def test_keep_follows_what_runs_already(pod):
    process = running(pod, "echo up; sleep 2; echo done; exit 5")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    ended = pod.pod("keep", "--", "true")
    assert ended.returncode == 5 and len(pod.asked("tpu_worker.sh start")) == 1 and pod.log(0) == "up\ndone\n"


def test_keep_waits_for_room(cloud):
    cloud.set(errors={"create": "ERROR: There is no more capacity in the zone"}, after=[["READY", ""]])
    ended = cloud.pod("keep", "--", "true", QUEUED="0")
    assert ended.returncode == 0 and len(cloud.asked("create")) == 2


# ---------------------------------------------------------------------------------------------------------------------
# What can't be used


@pytest.mark.parametrize(
    ("words", "variables", "said"),
    [
        (["fly"], {}, "fly: no such command"),
        (["run"], {}, "run: no command; such as: run -- selfreward run"),
        (["up", "more"], {}, "up takes nothing more: more"),
        (["up"], {"ACCELERATOR": "h100-8"}, "ACCELERATOR=h100-8: unknown; v4-N, v5litepod-N, v5p-N, v6e-N"),
        (["up"], {"ACCELERATOR": "v5e-16"}, "ACCELERATOR=v5e-16: gcloud calls it v5litepod-16"),
    ],
)
def test_what_is_not_understood_is_one_line(words, variables, said, cloud):
    ended = cloud.pod(*words, **variables)
    assert ended.returncode == 2 and ended.stdout == "" and not cloud.calls()
    assert ended.stderr.startswith(f"tpu_pod: {said}") and ended.stderr.count("\n") == 1


def test_nobody_logged_in_is_one_line(cloud):
    (cloud.folder / "account").unlink()
    ended = cloud.pod("up")
    assert (ended.returncode, ended.stderr) == (2, "tpu_pod: nobody is logged in to gcloud; run: gcloud auth login\n")


def test_no_gcloud_is_one_line(cloud, tmp_path):
    (tmp_path / "few").mkdir()
    for name in ("bash", "mktemp", "rm", "dirname", "sed", "grep"):
        (tmp_path / "few" / name).symlink_to(str(shutil.which(name)))
    ended = cloud.pod("up", PATH=str(tmp_path / "few"))
    assert ended.returncode == 2 and ended.stderr.startswith("tpu_pod: gcloud is not installed; see https://")


def test_a_dry_run_asks_nothing_and_prints_words_that_a_shell_reads_back(cloud):
    ended = cloud.pod("--dry-run", "keep", "--", "selfreward", "run", "--workdir=gs://b/r", *ODD)
    assert ended.returncode == 0 and not cloud.calls()
    commands = [shlex.split(line)[3:5] for line in ended.stdout.replace("\\\n", "").splitlines()]
    assert commands == [
        ["tpu-vm", "describe"], ["queued-resources", "describe"], ["queued-resources", "create"], ["tpu-vm", "ssh"],
        ["tpu-vm", "scp"], ["tpu-vm", "scp"], ["tpu-vm", "ssh"], ["tpu-vm", "ssh"], ["tpu-vm", "ssh"],
        ["tpu-vm", "ssh"], ["tpu-vm", "ssh"],
    ]  # fmt: skip


def test_a_workdir_that_only_one_worker_sees_is_pointed_out(pod):
    ended = pod.pod("run", "--", "true", "--workdir=runs/x")
    assert "the workdir is no gs:// path" in ended.stderr
    assert "no gs://" not in pod.pod("run", "--", "true", "--workdir=gs://b/x").stderr
