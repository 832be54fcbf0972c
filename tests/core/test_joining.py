"""How a process learns that it is one of several."""

import pytest

from selfreward_jax import cli
from selfreward_jax.core import hosts
from tests import tiny


@pytest.fixture
def machine(monkeypatch):
    """What kind of machine this is, and the calls to JAX: `machine(on_tpu_vm, endpoints)`."""
    calls: list[tuple] = []

    def be(on_tpu_vm: bool = False, workers: str = "", error: Exception | None = None) -> list[tuple]:
        def initialize(*words):
            calls.append(words)
            if error:
                raise error

        for name in ("JAX_PLATFORMS", "TPU_SKIP_MDS_QUERY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(hosts, "_on_tpu_vm", lambda: on_tpu_vm)
        monkeypatch.setattr(hosts, "_tpu_vm_workers", lambda: workers)
        monkeypatch.setattr(hosts.jax.distributed, "initialize", initialize)
        monkeypatch.setattr(hosts.watchdog, "start", lambda: None)
        return calls

    return be


@pytest.mark.parametrize(
    ("env", "found"),
    [
        ({}, False),
        ({"SLURM_STEP_NUM_TASKS": "8"}, True),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "8"}, False),  # a batch script, which calls srun itself
        ({"TPU_WORKER_HOSTNAMES": "a-0.b,a-1.b", "TPU_WORKER_ID": "1"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a-0.b,a-1.b", "JAX_PLATFORMS": "cpu"}, False),
    ],
)
def test_a_cluster_shows_in_the_environment(env, found, machine):
    machine()
    assert bool(hosts.found(env)) is found


@pytest.mark.parametrize(("workers", "joins"), [("10.0.0.1,10.0.0.2", True), ("10.0.0.1", False), ("", False)])
def test_on_a_tpu_vm_the_machine_says_how_many_workers_there_are(workers, joins, machine):
    calls = machine(on_tpu_vm=True, workers=workers)
    hosts.join()
    assert calls == ([()] if joins else [])


def test_alone_is_alone_and_auto_is_left_to_jax(machine, monkeypatch):
    calls = machine(on_tpu_vm=True, workers="a,b")
    monkeypatch.setenv("SELFREWARD_HOSTS", "one")
    hosts.join()
    assert calls == []
    monkeypatch.setenv("SELFREWARD_HOSTS", "auto")
    machine()
    hosts.join()
    assert calls == [()]


@pytest.mark.parametrize(
    ("env", "said"),
    [
        (
            {"SLURM_STEP_NUM_TASKS": "2"},
            "SLURM_STEP_NUM_TASKS=2: can't join the other processes (no answer); start the same command on every host,"
            " or set SELFREWARD_HOSTS=one for this process alone.",
        ),
        ({"SELFREWARD_HOSTS": "auto"}, "SELFREWARD_HOSTS=auto: can't join the other processes (no answer); start"),
        ({"SELFREWARD_HOSTS": "yes"}, "SELFREWARD_HOSTS=yes: must be auto, one, or not set."),
    ],
)
def test_a_failure_is_one_line(env, said, machine, monkeypatch, capsys):
    machine(error=RuntimeError("no answer\nand a trace"))
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["report", f"--workdir={tiny.ROOT}/none"]) == 2
    said_ = capsys.readouterr().err
    assert said_.startswith(f"selfreward: {said}") and said_.count("\n") == 1


def test_who_can_not_ask_the_machine_is_alone(monkeypatch):
    monkeypatch.setattr(hosts, "_TPU_VM_WORKERS", "http://127.0.0.1:9/")
    assert hosts._tpu_vm_workers() == ""
