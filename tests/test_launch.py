"""The scripts in launch/ that start processes: what they pass on, and how they end."""

import signal
import subprocess

import pytest

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
