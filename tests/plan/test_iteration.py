"""An iteration's hours are the calls that a run makes of each program, and what can't be called has none."""

import math

import jax
import pytest

from selfreward_jax.core.config import load_config
from selfreward_jax.plan import table
from selfreward_jax.plan.compiled import Result, as_json
from selfreward_jax.plan.iteration import Means, Part, iteration, total
from selfreward_jax.plan.machines import parse
from selfreward_jax.plan.shapes import Planned
from tests import tiny

MACHINE, MEANS, LAYERS = parse("v5e:2x2"), Means(100, 300, 150, 0.8), 22
SECONDS = {"matrix": 1.0, "hbm": 2.0, "ici": 0.5}


def result(name, tokens=0, texts=0, too_big=""):
    mesh = jax.make_mesh((1,), ("fsdp",))
    planned = Planned(name, None, (), {}, {"parameters": 2.0**30}, tokens, 0, mesh, texts=texts)
    seconds = {} if too_big else SECONDS
    return Result(planned, planned.kinds, 0, 0, {}, {}, seconds, too_big, [], [], 0)


def results(**more):
    made = [
        result("reshard, a layer"), result("reshard, embeddings"), result("prefill, answers", 1000),
        result("decode, answers", 100), result("prefill, judgements", 1000), result("decode, judgements", 100),
        result("reference scores", 0, 32), result("dpo gradients", 3000, 6), result("dpo sum"), result("dpo update"),
    ]  # fmt: skip
    return [more.get(r.planned.name.replace(" ", "_"), r) for r in made]


def parts_of(found, machine=MACHINE, **changes):
    changes = {"prompts.count": 100, "respond.n": 4, "judge.samples": 3, "dpo.batch_size": 16, **changes}
    config = load_config(tiny.BASE, [f"--config.{name}={value}" for name, value in changes.items()])
    return {p.stage: p for p in iteration(config, LAYERS, found, MEANS, machine)}


def test_calls_are_those_of_the_run():
    parts = parts_of(results())
    # 80 pairs in 5 steps of 16, each of six calls of 3 pairs: rows are not packed.
    assert parts["dpo"].calls == {"dpo gradients": 30, "dpo sum": 25, "dpo update": 5}
    assert parts["reference"].calls == {"reference scores": 5}
    assert parts["reshard"].seconds == pytest.approx(23 * 2 / 0.8)
    assert parts["respond"].calls == {"prefill, answers": 10, "decode, answers": 1200}
    assert parts["judge"].calls == {"prefill, judgements": 160, "decode, judgements": 1800}
    assert parts["respond"].seconds == pytest.approx(1210 * 2 / 0.6)
    assert parts["dpo"].seconds == pytest.approx(60 * 2 / 0.8)
    assert parts_of(results(), parse("v6e:2x2"))["dpo"].seconds == pytest.approx(60 * 2 / 0.5)
    packed = parts_of(results(dpo_gradients=result("dpo gradients", 8000)))
    assert packed["dpo"].calls["dpo gradients"] == 2 * 80 * 400 / 8000


def test_the_rows_of_kto_are_answers_and_positives_have_none_of_a_reference():
    kto = parts_of(results(), **{"dpo.loss_type": "kto"})
    assert kto["dpo"].calls["dpo update"] == 10 and kto["reference"].calls == {"reference scores": 10}
    positives = parts_of(results(), **{"dpo.data": "positives", "sft.batch_size": 20, "sft.epochs": 3})
    assert "reference" not in positives and positives["dpo"].calls["dpo update"] == 12


def test_a_judge_that_samples_nothing_decodes_nothing():
    read = parts_of(results(), **{"judge.method": "expected", "judge.rationale": False})["judge"]
    assert set(read.calls) == {"prefill, judgements"} and read.work == "400 scores read"
    assert "judge" not in parts_of(results(), **{"judge.method": "function", "judge.function": "m:f"})


def test_what_is_refused_or_left_out_is_told():
    found = results(decode__answers=None, **{"decode,_judgements": result("decode, judgements", 0, 0, "too much")})
    parts = parts_of([r for r in found if r.planned.name not in ("reshard, embeddings", "reference scores")])
    assert parts["judge"].seconds is None and parts["judge"].missing == "does not fit"
    assert parts["reference"].missing == parts["reshard"].missing == "not compiled"
    everything = total(list(parts.values()))
    assert everything.stage == "all but reshard, judge, reference"
    assert everything.seconds == parts["respond"].seconds + parts["dpo"].seconds


def test_a_refused_program_is_shown_and_written(capsys):
    found = [result("decode, answers", 100, 0, "needs much"), result("dpo gradients", 3000, 6)]
    table.show(found, [Part("judge", "", {}, None, "does not fit")], MACHINE, 1.0)
    shown = capsys.readouterr().out
    assert "TOO BIG" in shown and "does not fit: needs much" in shown and "all but judge" in shown
    refused, done = (as_json(r, MACHINE) for r in found)
    assert found[0].roofline == math.inf and refused["roofline"] is None and refused["mfu"] is None
    assert done["roofline"] == 2.0 and done["tokens_per_second_per_chip"] == 3000 / 2 / 4
    assert [table.told(r) for r in found] == [
        "decode, answers: TOO BIG, needs much", "dpo gradients: 1.00 GiB, 2e+03 ms, bound by hbm",
    ]  # fmt: skip
