"""What a user gives to a script arrives as it is, or is refused in one line, and nothing of it is ever run.

Every variable and argument of every script gets each of these. They run in an empty folder; a file there, or anywhere
below, would have been made by one of them.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests import tiny
from tests.launch.test_clusters import asked, jobset, slurm  # noqa: F401
from tests.launch.test_tpu_pod import Cloud, cloud, pod  # noqa: F401

LAUNCH = tiny.ROOT / "launch"
HOSTILE = [
    "a b", "a  b ", "it's", 'a"b', "$(touch hacked)", "`touch hacked`", "a;touch hacked", "a&touch hacked",
    "a|touch hacked", "a\ntouch hacked\nb", "*", "?", "-x", "--upload-pack=touch hacked", "x[$(touch${IFS}hacked)]",
    "1+x[$(touch hacked)]", "a\\b", "{a,b}", "~", "$HOME", "$$", "$(HOME)", "$$(HOME)", "#a", "a: b", "- a", "!a", "%s",
    "<(touch hacked)", ">hacked", "",
]  # fmt: skip
SHOW = f"{sys.executable} -ISc 'import json,sys; print(json.dumps(sys.argv[1:]))'"


@pytest.fixture
def empty(tmp_path: Path, monkeypatch) -> Path:
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def nothing_ran(*folders: Path) -> bool:
    return not any(list(folder.rglob("*hacked*")) for folder in folders)


def is_refused(ended: subprocess.CompletedProcess[str]) -> bool:
    return ended.returncode == 2 and not ended.stdout and ended.stderr.count("\n") == 1


def expanded(text: str) -> str:
    """As Kubernetes does with commands and values, where none of the names is a variable's."""
    return re.sub(r"\$(\$|\([^)]*\)|.|$)", lambda m: "$" if m[1] == "$" else m[0], text, flags=re.DOTALL)


def container(made: subprocess.CompletedProcess[str]) -> dict:
    whole = yaml.safe_load(made.stdout)
    [found] = whole["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
    return found


def test_the_words_of_a_job_set_arrive(empty):
    made = jobset("selfreward", *HOSTILE)
    assert [expanded(word) for word in container(made)["command"]] == ["selfreward", *HOSTILE] and nothing_ran(empty)
    assert is_refused(jobset("selfreward", "a\x1bb"))


@pytest.mark.parametrize(
    "name", ["IMAGE", "ACCELERATOR", "TOPOLOGY", "NAME", "SPOT", "RESTARTS", "SERVICE_ACCOUNT", "SECRET", "CACHE"]
)
def test_a_variable_of_a_job_set_arrives_or_is_refused(name, empty):
    plain = jobset("x", **({"IMAGE": "i"} | {"CACHE": "c"} | {name: ""} if name != "IMAGE" else {})).stdout
    for value in filter(None, HOSTILE):
        made = jobset("x", **{name: value})
        assert nothing_ran(empty), value
        if name == "CACHE":
            assert expanded(container(made)["env"][-1]["value"]) == value
        elif name == "SPOT":
            assert container(made)["command"] == ["x"]
        else:
            assert is_refused(made), (value, made.stderr, plain)


@pytest.mark.parametrize("value", HOSTILE)
def test_a_pod_on_one_machine_refuses_what_is_no_number(value, empty):
    script = ["bash", str(LAUNCH / "local_pod.sh")]
    for words in ([value, "true"], ["1", "--devices", value, "true"]):
        ended = subprocess.run([*script, *words], capture_output=True, text=True, timeout=30)
        assert is_refused(ended) and nothing_ran(empty), ended.stderr


def test_the_words_of_a_pod_on_one_machine_arrive(empty):
    words = ["bash", str(LAUNCH / "local_pod.sh"), "1", "bash", "-c", f'{SHOW} "$@"', "show", *HOSTILE]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert json.loads(ended.stdout.removeprefix("[0] ")) == HOSTILE and nothing_ran(empty)


def test_the_words_of_a_batch_job_arrive(slurm, empty):  # noqa: F811
    script = ["bash", str(LAUNCH / "slurm.sbatch")]
    words = [*script, "bash", "-c", f'{SHOW} "$@"', "show", *HOSTILE]
    for value in HOSTILE:
        env = slurm | {"VENV": value, "SLURM_RESTART_COUNT": value}
        ended = subprocess.run(words, env=env, capture_output=True, text=True, timeout=30)
        assert json.loads(ended.stdout) == HOSTILE and nothing_ran(empty, Path(slurm["JOB"]))
    refused = subprocess.run([*script, "--x", "y"], env=slurm, capture_output=True, text=True, timeout=30)
    assert is_refused(refused)


# ---------------------------------------------------------------------------------------------------------------------
# The recipes: a `selfreward` that writes down its words stands in the place of the environment's


@pytest.fixture
def recorder(tmp_path: Path) -> dict[str, str]:
    """An environment whose `selfreward` writes down its words, and whose `pip` does nothing."""
    venv = tmp_path / "a venv; touch hacked"
    (venv / "bin").mkdir(parents=True)
    for name, text in {"selfreward": 'printf "%s\\0" "$@" "END" >>"$CALLS"', "python": "exit 0"}.items():
        (venv / "bin" / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (venv / "bin" / name).chmod(0o755)
    return {**os.environ, "VENV": str(venv), "CALLS": str(tmp_path / "calls"), "PYTHON": "$(touch hacked)"}


def calls(env: dict[str, str]) -> list[list[str]]:
    path = Path(env["CALLS"])
    found = path.read_text().split("END\0")[:-1] if path.exists() else []
    path.unlink(missing_ok=True)
    return [call.split("\0")[:-1] for call in found]


def test_the_words_of_the_quickstart_arrive(recorder, empty):
    script = ["bash", str(LAUNCH / "quickstart.sh")]
    made = {"JAX_PLATFORMS": "$(touch hacked)"}
    for workdir in HOSTILE:
        subprocess.run([*script, workdir, *HOSTILE], env=recorder | made, capture_output=True, timeout=30)
        found = calls(recorder)
        given = workdir if workdir[:2] != "--" else "runs/quickstart"
        rest = HOSTILE if workdir[:2] != "--" else [workdir, *HOSTILE]
        assert found == [["run", "--config=configs/quickstart.py", f"--workdir={given}", *rest]]
    assert nothing_ran(empty) and not (tiny.ROOT / "hacked").exists()


@pytest.mark.parametrize("value", [value for value in HOSTILE if value])
def test_the_variables_of_the_recipe_arrive(value, recorder, empty):
    files = {}
    for name in ("RANKED", "HELD_OUT", "IFT", "IFEVAL"):
        files[name] = str(empty / name / value)
        Path(files[name]).parent.mkdir()
        Path(files[name]).touch()
    given = files | {"RUNS": value, "JUDGE": value, "EFT_SAMPLES": value, "EXTRA": ""}
    script = ["bash", str(LAUNCH / "smollm2_paper.sh"), "--config.loop.iterations=1", f"--config.run.name={value}"]
    ended = subprocess.run(script, env=recorder | given, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    runs = f"./{value}" if value[0] == "-" else value
    found = {word for words in calls(recorder) for word in words}
    assert {
        f"--data={files['RANKED']}", f"--exclude={files['HELD_OUT']}", f"--ift={files['IFT']}", f"--judge={value}",
        f"--data={files['IFEVAL']}", f"--output={runs}/seeds", f"{runs}/run/m1", f"--config.judge.samples={value}",
        f"--config.seeds.ift={files['IFT']}", f"--config.run.name={value}",
    } <= found  # fmt: skip
    made = [path for path in empty.rglob("*") if path.is_file() and str(path) not in files.values()]
    assert not made and not (tiny.ROOT / "hacked").exists()


@pytest.mark.parametrize("name", ["EXTRA", "ROWS", "iterations", "RANKED", "IFEVAL"])
def test_a_variable_of_the_recipe_that_can_not_be_is_refused(name, recorder, empty):
    for value in filter(None, HOSTILE):
        given = {"RANKED": str(empty), "HELD_OUT": str(empty), "EXTRA": "", name: f"{value}/" if "A" in name else value}
        words = [f"--config.loop.iterations={value}"] if name == "iterations" else []
        script = ["bash", str(LAUNCH / "smollm2_paper.sh"), *words]
        ended = subprocess.run(script, env=recorder | given, capture_output=True, text=True, timeout=60)
        assert is_refused(ended) and not calls(recorder), ended.stderr
    assert nothing_ran(empty) and not (tiny.ROOT / "hacked").exists()


# ---------------------------------------------------------------------------------------------------------------------
# Cloud TPU, on the made cloud


def test_words_and_values_arrive_on_every_worker_of_a_slice(pod, empty):  # noqa: F811
    ended = pod.pod("run", "--", "bash", "-c", f'{SHOW} "$@"', "show", *HOSTILE)
    assert ended.returncode == 0, ended.stderr
    for number in range(2):
        assert json.loads(pod.log(number)) == HOSTILE
    assert nothing_ran(empty, pod.folder)


@pytest.mark.parametrize(
    "name", ["NAME", "SPOT", "QUEUED", "RERUNS", "POLL", "ENV", "ACCELERATOR", "VERSION", "ZONE", "PROJECT", "CREATE"]
)
def test_a_variable_of_a_slice_arrives_or_is_refused(name, cloud, empty):  # noqa: F811
    refused = name in ("NAME", "SPOT", "QUEUED", "RERUNS", "POLL", "ENV", "ACCELERATOR")
    for value in filter(None, HOSTILE):
        ended = cloud.pod("--dry-run", "up", **{name: value})
        assert nothing_ran(empty, cloud.folder), value
        if refused and not (name == "ENV" and all(word.isidentifier() for word in value.split())):
            assert is_refused(ended), (value, ended.stderr)
    if name in ("VERSION", "ZONE", "PROJECT", "CREATE"):
        value = " ".join(HOSTILE)
        cloud.set(now=["", ""])
        ended = cloud.pod("up", **{name: value})
        assert ended.returncode == 0, ended.stderr
        created = next(call for call in cloud.calls() if "create" in call)
        expected = value.split() if name == "CREATE" else [value]
        said = [word for word in created if word in expected or word.partition("=")[2] in expected]
        assert said == expected if name == "CREATE" else len(said) == 1
        assert nothing_ran(empty, cloud.folder)


@pytest.mark.parametrize("name", ["SOURCE", "CACHE", "LOGS", "TOKEN"])
def test_what_a_slice_is_set_up_with_arrives_or_is_refused(name, pod, empty):  # noqa: F811
    values = [value for value in HOSTILE if value and "/" not in value]
    for value in values if name == "SOURCE" else [" ".join(values), "-x"]:
        variables = {name: value} | ({"ENV": "TOKEN"} if name == "TOKEN" else {})
        if name == "SOURCE":
            ended = pod.pod("--dry-run", "setup", SOURCE=f"{value}@{value}")
            assert nothing_ran(empty, pod.folder) and (value[0] != "-" or is_refused(ended)), value
            continue
        if name == "LOGS":
            value = value[:100]
            ended = pod.pod("run", "--", "true", LOGS=value)
            assert is_refused(ended) if "\n" in value else list(Path(f"./{value}").rglob("worker-0.log")), ended
            continue
        ended = pod.pod("setup", **variables)
        assert ended.returncode == 0, ended.stderr
        for number in range(2):
            home = pod.folder / f"worker-{number}"
            told = f'. ./.selfreward-env; printf %s "${"JAX_COMPILATION_CACHE_DIR" if name == "CACHE" else name}"'
            read = subprocess.run(["bash", "-c", told], cwd=home, capture_output=True, text=True, timeout=30)
            assert read.stdout == value
    assert nothing_ran(pod.folder / "worker-0", pod.folder / "worker-1")
    assert not (empty / "hacked").exists()


def test_numbers_of_lines_are_numbers(pod, empty):  # noqa: F811
    worker = LAUNCH / "tpu_worker.sh"
    env = pod.env() | {"HOME": str(pod.folder / "worker-0"), "FAKE_HOST": "t1v-n-0123-w-0"}
    env["PATH"] = f"{pod.folder / 'worker_bin'}:{env['PATH']}"
    words = ["bash", str(worker), "follow", "x", "x[$(touch hacked)]"]
    ended = subprocess.run(words, env=env, capture_output=True, text=True, timeout=30)
    assert ended.returncode == 2 and nothing_ran(empty, pod.folder)
