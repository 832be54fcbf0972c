"""The scripts in launch/ that start processes: what they pass on, and how they end."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from selfreward_jax import cli
from selfreward_jax.core.config import load_config
from tests import tiny

POD = ["bash", str(tiny.ROOT / "launch" / "local_pod.sh")]


def pod(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*POD, *words], capture_output=True, text=True, timeout=60)


def test_each_process_knows_its_place_and_its_lines_bear_its_number():
    shown = "echo $JAX_PROCESS_ID of $JAX_NUM_PROCESSES $XLA_FLAGS; echo $JAX_COORDINATOR_ADDRESS >&2"
    ended = pod("3", "--devices", "4", "bash", "-c", shown)
    assert ended.returncode == 0
    lines = sorted(ended.stdout.splitlines())
    assert [line[:10] for line in lines] == [f"[{n}] {n} of 3" for n in range(3)]
    assert all(line.endswith("--xla_force_host_platform_device_count=4") for line in lines)
    addresses = {line.split("] ")[1] for line in ended.stderr.splitlines()}
    assert len(addresses) == 1 and addresses.pop().startswith("127.0.0.1:")


def test_the_status_is_that_of_the_first_to_fail():
    ended = pod(
        "3", "bash", "-c", "[ $JAX_PROCESS_ID = 0 ] || sleep 0.$((JAX_PROCESS_ID * 4)); exit $((JAX_PROCESS_ID * 3))"
    )
    assert ended.returncode == 3
    assert ended.stderr == "local_pod: process 1 ended first, with status 3\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_every_process_once(number):
    words = "trap 'n=$((n+1))' TERM INT; n=0; echo ready; sleep 1 & wait; wait; echo $n signals; exit 9"
    with subprocess.Popen([*POD, "2", "bash", "-c", words], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert sorted(process.stdout.readline() for _ in range(2)) == ["[0] ready\n", "[1] ready\n"]
        process.send_signal(number)
        assert sorted(process.stdout.read().splitlines()) == ["[0] 1 signals", "[1] 1 signals"]
    assert process.returncode == 9


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "how many processes?"),
        (["two", "true"], "two is no number of processes"),
        (["0", "true"], "0 is no number of processes"),
        (["2"], "no command"),
        (["2", "--devices"], "nothing is no number of devices"),
        (["2", "--devices", "x", "true"], "x is no number of devices"),
    ],
)
def test_what_is_not_understood_is_one_line(words, said):
    ended = pod(*words)
    assert ended.returncode == 2 and ended.stdout == ""
    assert ended.stderr == f"local_pod: {said}; usage: bash launch/local_pod.sh N [--devices M] COMMAND...\n"


# ---------------------------------------------------------------------------------------------------------------------
# The paper's recipe

RECIPE = tiny.ROOT / "launch" / "smollm2_paper.sh"


def recipe(folder: Path, *words: str, **variables: str) -> tuple[subprocess.CompletedProcess[str], list[list[str]]]:
    """Runs the script with a `selfreward` that only writes down what it is asked."""
    log = folder / "asked.jsonl"
    (folder / "bin").mkdir()
    fake = folder / "bin" / "selfreward"
    fake.write_text(
        f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]), file=open({str(log)!r}, 'a'))\n"
    )
    fake.chmod(0o755)
    files = {name: str(folder / name) for name in ("RANKED", "IFT", "HELD_OUT", "IFEVAL")}
    for path in files.values():
        Path(path).touch()
    path = f"{fake.parent}:{os.environ['PATH']}"
    env = {**os.environ, "SELFREWARD_INSTALLED": "1", "RUNS": str(folder / "runs"), **files, **variables, "PATH": path}
    ended = subprocess.run(["bash", str(RECIPE), *words], env=env, capture_output=True, text=True, timeout=60)
    return ended, [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def verb(words: list[str]) -> str:
    return " ".join(words[:2]) if words[0] in cli.GROUPS else words[0]


@pytest.mark.parametrize("rows", ["paper", "tiny"])
def test_the_recipe_asks_for_each_stage_in_words_that_are_understood(rows, tmp_path):
    ended, asked = recipe(tmp_path, "--config.seed=3", ROWS=rows)
    assert ended.returncode == 0, ended.stderr
    assert [verb(words) for words in asked] == [
        "seeds", "sft", "seeds", "run", "eval judge", "eval judge",
        *4 * ["eval winrate"], *4 * ["eval ifeval"], "report",
    ]  # fmt: skip
    for words in asked:
        options, rest = cli.parser().parse_known_args(words)
        assert all(word.startswith("--config.") for word in rest)
        if getattr(options, "config", ""):
            assert load_config(str(tiny.ROOT / options.config), rest).seed == 3


def test_the_recipe_trains_the_judge_without_judgements_and_the_run_with_them(tmp_path):
    _, asked = recipe(tmp_path)
    seeds, runs = tmp_path / "runs" / "seeds", tmp_path / "runs"
    assert "--config.seeds.eft=" in asked[1] and f"--model={runs / 'sft' / 'm1'}" in asked[2]
    assert f"--config.seeds.eft={seeds / 'eft.jsonl'}" in asked[3]
    for words in asked[4:6]:
        assert f"--data={seeds / 'ranked_validation.jsonl'}" in words


def test_the_recipe_measures_every_model_against_the_baseline(tmp_path):
    _, asked = recipe(tmp_path, "--config.loop.iterations=2", IFEVAL="")
    baseline, run = str(tmp_path / "runs" / "sft" / "m1"), tmp_path / "runs" / "run"
    assert f"--model={baseline}" in asked[4] and f"--workdir={run}" in asked[5]
    against = [words for words in asked if verb(words) == "eval winrate" and baseline in words]
    assert [words[2:4] for words in against] == [[str(run / f"m{t}"), baseline] for t in (1, 2)]
    assert all(f"--judge={run / 'm2'}" in words for words in against)
    assert len({word for words in against for word in words if word.startswith("--output=")}) == 2
    assert "eval ifeval" not in map(verb, asked)


def test_without_demonstrations_those_of_the_ranked_answers_are_taken(tmp_path):
    _, asked = recipe(tmp_path, IFT="")
    made = f"--config.seeds.ift={tmp_path / 'runs' / 'seeds' / 'ift.jsonl'}"
    assert "--ift" not in asked[0] and made in asked[1] and made in asked[3]


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"RANKED": ""}, "RANKED is not set; give RANKED=FILE"),
        ({"HELD_OUT": ""}, "HELD_OUT is not set; give HELD_OUT=FILE"),
        ({"RANKED": "/no/where"}, "/no/where: no such file"),
        ({"IFEVAL": "/no/where"}, "/no/where: no such file"),
        ({"ROWS": "few"}, "ROWS=few: paper or tiny"),
    ],
)
def test_a_wrong_variable_of_the_recipe_is_one_line(variables, said, tmp_path):
    ended, asked = recipe(tmp_path, **variables)
    assert ended.returncode == 2 and not asked
    assert ended.stderr.startswith(f"smollm2_paper: {said}") and ended.stderr.count("\n") == 1
