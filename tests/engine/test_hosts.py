"""Two processes, each with a device of its own, generate together what one process generates alone."""

import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from selfreward_jax import cli
from selfreward_jax.core import hosts
from selfreward_jax.core.errors import UserError
from selfreward_jax.core.interrupt import ASKED
from selfreward_jax.engine.generate import Engine, EngineSettings
from selfreward_jax.engine.sampling import SamplingSettings
from selfreward_jax.engine.schedule import Request
from tests import tiny
from tests.engine.small_llama import small_model
from tests.processes import together

pytestmark = pytest.mark.slow

RNG = np.random.default_rng(2)
REQUESTS = [Request(f"r{n}", tuple(RNG.integers(0, 70, length).tolist())) for n, length in enumerate((4, 11, 30, 2, 9))]
SETTINGS = {"temperature": 0.9, "top_p": 0.95, "max_new_tokens": 9}
SAMPLES = 3


@pytest.mark.parametrize("mesh", [{"data": 2}, {"tensor": 2}], ids=["a replica each", "half of the heads each"])
def test_two_processes_sample_what_one_samples(mesh):
    given = {"requests": [[r.id, r.prompt_ids] for r in REQUESTS], "mesh": mesh, "samples": SAMPLES}
    ended = together([sys.executable, "-m", "tests.engine.on_two_hosts"], json.dumps(given | {"settings": SETTINGS}))
    first, second = (json.loads(p.stdout.splitlines()[-1]) for p in ended)
    assert first == second
    engine = Engine(small_model(), EngineSettings(slots=4, length_bucket=16))
    alone = {(c.request.id, c.index): c for c in engine.run(REQUESTS, SAMPLES, SamplingSettings(**SETTINGS), seed=0)}
    assert {(id, n): tuple(ids) for id, n, ids, _ in first["made"]} == {k: c.token_ids for k, c in alone.items()}
    for id, n, _, logp in first["made"]:
        assert logp == pytest.approx(alone[id, n].logp, abs=1e-4)
    read = {r.id: logps for r, logps in engine.read(REQUESTS, (3, 20))}
    for id, logps in first["read"]:
        np.testing.assert_allclose(logps, read[id], atol=1e-4)


def test_two_processes_of_which_one_is_stopped_write_once_the_answers_and_judgements_of_one(tmp_path_factory, tmp_path):
    base = tmp_path_factory.getbasetemp()
    data, finished = tiny.shared_data(base), tiny.shared_run(base)
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    expected = {name: tiny.read_jsonl(run / "m2" / f"{name}.jsonl") for name in ("responses", "judgements")}
    changes = {"mesh.fsdp": 2, "generation.slots": 12}
    for name in expected:
        (run / "m2" / f"{name}.jsonl").unlink()
    made = tiny.read_jsonl(run / "manifest.jsonl")
    tiny.write_manifest(run, made[: [row["artefact"] for row in made].index("m2/responses.jsonl")])
    begun = run / "m2" / "responses.jsonl.partial"

    def ask_one_to_stop(started: list[subprocess.Popen]) -> None:
        until = time.monotonic() + 120
        while not begun.exists():
            assert time.monotonic() < until and started[1].poll() is None
            time.sleep(0.01)
        started[1].send_signal(signal.SIGTERM)

    for verb in ("respond", "judge"):
        words = tiny.command(*tiny.arguments(verb, run, data, changes), "--iteration=2", "--resume=force")
        if verb == "respond":
            ended = together(words, meanwhile=ask_one_to_stop, status=130)
            assert [p.stderr.count(ASKED) for p in ended] == [0, 1]
            assert all("selfreward: stopped" in p.stderr for p in ended)
            kept = [row for part in begun.glob("0*.jsonl") for row in tiny.read_jsonl(part)]
            assert 0 < len(kept) < len(expected["responses"])
        ended = together(words)
        assert "lie in" in ended[0].stderr and ended[1].stderr.count("lie in") == 0
    for name, rows in expected.items():
        found = tiny.read_jsonl(run / "m2" / f"{name}.jsonl")
        assert [without(row, "logp") for row in found] == [without(row, "logp") for row in rows]
        np.testing.assert_allclose([r.get("logp", 0) for r in found], [r.get("logp", 0) for r in rows], atol=1e-3)


def without(row: dict, name: str) -> dict:
    return {key: value for key, value in row.items() if key != name}


@pytest.mark.parametrize("given", [{"JAX_NUM_PROCESSES": "2"}, {"JAX_COORDINATOR_ADDRESS": "a:1"}])
def test_half_of_what_several_processes_need_is_one_line(given, monkeypatch, capsys):
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="several processes need all three"):
        hosts.join()
    assert cli.main(["chat", "--model=x"]) == 2
    assert "not set" in capsys.readouterr().err
