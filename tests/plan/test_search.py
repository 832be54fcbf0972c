"""`plan --search`: the formulas follow the configuration, and what is compiled decides."""

import json
import math

import pytest

from selfreward_jax import cli
from selfreward_jax.core.config import load_config
from selfreward_jax.core.errors import UserError
from selfreward_jax.llama.known import shape_of
from selfreward_jax.plan.machines import parse
from selfreward_jax.plan.search import Candidate, sampling, training, try_out
from selfreward_jax.plan.shapes import Lengths
from tests import tiny
from tests.plan.test_iteration import result

LLAMA, LENGTHS = shape_of("models/Llama-3.1-8B"), Lengths(512, 512)


def config(**changes):
    return load_config(f"{tiny.ROOT}/configs/llama3_8b.py", [f"--config.{n}={v}" for n, v in changes.items()])


def test_what_is_trained_and_kept_decides_what_fits():
    def smallest(where="v5e:4x4", lengths=LENGTHS, **changes):
        return min((c.bytes for c in training(config(**changes), LLAMA, parse(where), lengths)), default=math.inf)

    int8 = smallest(**{"training.moments_dtype": "int8"})
    half = smallest(**{"training.moments_dtype": "int8", "model.param_dtype": "bfloat16"})
    adapter = smallest(**{"lora.rank": 16})
    assert adapter < half < int8 < smallest() < math.inf
    assert smallest(lengths=Lengths(64, 512)) < smallest()
    assert smallest("v5e:2x4") == math.inf > smallest("v5e:2x4", **{"lora.rank": 16})


def test_the_cache_and_the_weights_beside_it_are_those_of_the_configuration():
    pod = parse("v5e:4x4")

    def rows(lengths=LENGTHS, **changes):
        mesh = {"mesh.data": 1, "mesh.fsdp": 16, "mesh.tensor": 1}
        found = sampling(config(**(mesh | changes)), LLAMA, pod, lengths)
        return max(c.changes["generation.slots"] for c in found), min(c.bytes for c in found)

    usual, short = rows(), rows(Lengths(64, 512))
    wide = rows(**{"generation.cache_dtype": "float32"})
    assert short[1] < usual[1] < wide[1] and wide[0] <= usual[0]
    # Parameters are whole in every replica along `data`.
    twice = rows(**{"mesh.data": 2, "mesh.fsdp": 8})
    assert twice[1] - usual[1] == pytest.approx(4 * 8.03e9 / 16, rel=0.01)


def test_more_devices_than_kv_heads_share_the_weights_and_each_has_the_cache_of_a_head():
    mesh = {"mesh.data": 1, "mesh.fsdp": 16, "mesh.tensor": 1}
    found = sampling(config(**mesh), LLAMA, parse("v5e:4x4"), LENGTHS)

    def sizes(tensor):  # by rows of a replica
        return {
            c.changes["generation.slots"] * tensor / 16: c.bytes
            for c in found
            if c.changes["generation.tensor"] == tensor
        }

    eight, sixteen = sizes(8), sizes(16)
    for rows in eight.keys() & sixteen.keys():
        assert eight[rows] - sixteen[rows] == pytest.approx(2 * 8e9 * (1 / 8 - 1 / 16), rel=0.1)
    assert eight.keys() & sixteen.keys()


CANDIDATES = [Candidate({"mesh.fsdp": n % 3, "rows": n}, float(n), 100.0 - 5 * n) for n in range(12)]


@pytest.mark.parametrize(
    ("fits", "rows"),
    [
        (lambda n: True, [1, 2]),  # the first that differ in the field that counts
        (lambda n: n > 5, [6]),  # smaller and smaller ones
        (lambda n: False, []),
    ],
)
def test_when_nothing_fits_smaller_ones_are_tried(fits, rows):
    def compiled(changes):
        if changes["rows"] == 0:
            raise UserError("can't be laid out")
        return result("x", 10, 0, "" if fits(changes["rows"]) else "much")

    tried = try_out(CANDIDATES, 3, ["mesh.fsdp"], compiled)
    assert [t.candidate.changes["rows"] for t in tried if t.seconds < math.inf] == rows
    sizes = [t.candidate.bytes for t in tried]
    assert len(sizes) == len(set(sizes)) and ("can't be laid out" in {t.why for t in tried})


def test_a_search_compiles_and_tells_what_it_tried(tmp_path, capsys):
    model, out = tiny.make_model(tmp_path / "model"), tmp_path / "plan.json"
    words = [
        "plan", f"--config={tiny.BASE}", f"--config.model.path={model}", "--topology=cpu:8", "--search=1",
        "--stages=reshard", f"--output={out}", "--config.respond.max_new_tokens=32", "--config.dpo.max_length=64",
        "--prompt_tokens=32",
    ]  # fmt: skip
    assert cli.main(words) == 0
    shown = capsys.readouterr()
    assert "Layouts tried for a DPO step" in shown.out and "the fastest that fit: --config.mesh.data=" in shown.err
    tried = json.loads(out.read_text())["tried"]
    assert [t["for"] for t in tried] == ["DPO step", "decode step"]
    assert all(t["result"]["roofline"] > 0 and t["estimated_bytes"] > 0 for t in tried)


def test_what_no_layout_fits_is_told_as_what_it_is(capsys):
    words = ["plan", f"--config={tiny.ROOT}/configs/llama3_8b.py", "--topology=gpu:1xh100", "--search"]
    assert cli.main([*words, "--config.model.path=models/Llama-3.1-8B"]) == 2
    assert "no layout of a DPO step fits, by the formulas" in capsys.readouterr().err
