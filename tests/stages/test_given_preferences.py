"""`selfreward dpo` and `selfreward run` on preferences of a file, which take the place of a model's own."""

import math
import shutil

import pytest

from selfreward_jax import cli
from tests import tiny
from tests.refused import assert_refused, assert_refused_at_once

CHANGES = {"loop.iterations": 2, "sft.epochs": 1}


def pairs() -> list[dict]:
    """As HH-RLHF, UltraFeedback and TRL have them; one is equal on both sides."""
    asked = [{"role": "user", "content": "What is it?"}]
    say = lambda text: [{"role": "assistant", "content": text}]  # noqa: E731
    return [
        {"chosen": "\n\nHuman: Is it so?\n\nAssistant: yes", "rejected": "\n\nHuman: Is it so?\n\nAssistant: no"},
        {"prompt": "What is it?", "chosen": asked + say("bread"), "rejected": asked + say("no"), "messages": None},
        {"prompt": "Where is it?", "chosen": "the north", "rejected": "the north"},
        {"prompt": asked, "chosen": say("a note"), "rejected": say("no"), "score_chosen": 4, "score_rejected": 1},
    ]


def test_a_run_learns_from_a_file_of_preferences_and_asks_no_model(data, tmp_path, capsys):
    file = tiny.write_jsonl(tmp_path / "pairs.jsonl", pairs())
    words = tiny.arguments("run", tmp_path / "run", data, CHANGES | {"dpo.data": file, "prompts.source": "/none"})
    assert cli.main(words) == 0
    run = tmp_path / "run"
    told = capsys.readouterr()
    assert "M2 DPO: 1 with the same answer on both sides of 4 left out" in told.err
    table = {line.split("│")[1].strip(): line.split("│")[2:-1] for line in told.out.splitlines() if line[:1] == "│"}
    assert [cell.strip() for cell in table["pairs learnt from"]] == ["-", "3"]
    assert [cell.strip() for cell in table["pairs left out: equal"]] == ["-", "1"]
    assert not any({cell.strip() for cell in cells} == {"-"} for cells in table.values())
    assert "its answers" not in table and "rows       " not in told.out and "throughput.jsonl" in told.out
    log = tiny.read_jsonl(run / "m2" / "metrics.jsonl")
    assert len(log) == 3 and log[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    entry = next(e for e in tiny.read_jsonl(run / "manifest.jsonl") if e["artefact"] == "m2/model.json")
    assert entry["data"] == {"pairs": 3, "dropped_too_long": 0, "dropped_equal": 1}
    assert not (run / "m2" / "prompts.jsonl").exists()
    assert (run / "report.html").exists()
    # The same again is done already; other labels are another training.
    before = (run / "manifest.jsonl").read_bytes()
    assert cli.main([*words, "--resume=force"]) == 0
    assert (run / "manifest.jsonl").read_bytes() == before
    rows = [{"prompt": f"{n}?", "completion": "yes", "label": n > 0} for n in range(3)]
    hashes = []
    for labels in (rows, [row | {"label": not row["label"]} for row in rows]):
        tiny.write_jsonl(file, labels)
        fields = CHANGES | {"dpo.data": file, "prompts.source": "/none", "dpo.loss_type": "kto", "dpo.batch_size": 4}
        assert cli.main([*tiny.arguments("dpo", run, data, fields), "--resume=force"]) == 0
        made = {row["artefact"]: row for row in tiny.read_jsonl(run / "manifest.jsonl")}
        hashes.append(made["m2/model.json"]["hash"])
    assert hashes[0] != hashes[1]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([pairs()[0], {"prompt": "a", "chosen": "b"}], ":2: the field 'rejected' is missing"),
        ([pairs()[0], {"chosen": "Yes.", "rejected": "No."}], ":2: chosen and rejected begin differently"),
        (
            [pairs()[0] | {"chosen": [{"role": "wizard", "content": "a"}]}],
            ":1: chosen: message 1 has the role 'wizard'",
        ),
    ],
)
def test_a_wrong_row_is_named_before_any_training(rows, expected, data, tmp_path, capsys):
    file = tiny.write_jsonl(tmp_path / "pairs.jsonl", rows)
    words = tiny.arguments("run", tmp_path / "run", data, CHANGES | {"dpo.data": file})
    assert_refused_at_once(capsys, words, f"{file}{expected}")


ANSWERS = [{"prompt": f"{n}?", "completion": "yes", "label": n > 0} for n in range(3)]


@pytest.mark.parametrize(
    ("rows", "changes", "expected"),
    [
        (ANSWERS, {}, "single answers with a label, and sigmoid learns from pairs"),
        ([*ANSWERS, *pairs()], {"dpo.loss_type": "kto"}, "row 1 and row 4 are a pair and a single answer"),
        (ANSWERS[:1], {"dpo.loss_type": "kto"}, "kto needs answers to two prompts or more"),
        (pairs()[:1], {"dpo.margin_scale": 1.0}, "margin_scale needs score_chosen and score_rejected"),
        (pairs()[2:3], {}, "no pairs to learn from; there are 1 with the same answer on both sides."),
    ],
)
def test_what_the_loss_can_not_learn_from_is_named_before_any_training(rows, changes, expected, data, tmp_path, capsys):
    file = tiny.write_jsonl(tmp_path / "pairs.jsonl", rows)
    words = tiny.arguments("run", tmp_path / "run", data, CHANGES | {"dpo.data": file} | changes)
    assert_refused_at_once(capsys, words, f"{file}: {expected}")
    assert not (tmp_path / "run" / "m1").exists()


def test_nothing_but_equal_pairs_is_one_line(data, finished, tmp_path, capsys):
    file = tiny.write_jsonl(tmp_path / "pairs.jsonl", pairs()[2:3])
    run = shutil.copytree(finished, tmp_path / "run")
    words = tiny.arguments("dpo", run, data, {"dpo.data": file})
    assert_refused(capsys, [*words, "--resume=force"], f"{file}: no pairs to learn from; there are 1 with the same")
