"""A judge chooses among a training's checkpoints: by which rule, from what, and that the model is the one chosen."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from selfreward_jax import cli
from selfreward_jax.core.checkpoints import Checkpoints
from selfreward_jax.core.errors import UserError
from selfreward_jax.core.interrupt import Interrupt, Interrupted
from selfreward_jax.core.mesh import make_mesh
from selfreward_jax.llama.load import abstract_params, load_model
from selfreward_jax.llama.lora import LoraSettings, lora_specs, merge
from selfreward_jax.stages import choice
from selfreward_jax.stages.run import Run
from selfreward_jax.stages.sft import seed_rows, supervised_fine_tune
from selfreward_jax.training.batches import Example, TrainRow
from tests import tiny

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def changes(data, finished) -> dict:
    """Checkpoints after 3, 6 and 8 steps, and a judge that reads its verdicts from its distribution."""
    return {
        "sft.epochs": 2,
        "checkpoint.every_steps": 3,
        "checkpoint.choose": "win_rate",
        "checkpoint.prompts": str(data / "prompts.jsonl"),
        "checkpoint.prompts_max": 5,
        "checkpoint.judge": str(finished / "m1"),
        "judge.method": "expected",
        "judge.rationale": "False",
        "log.tensorboard": False,
    }


@pytest.fixture(scope="module")
def chosen(data, changes, tmp_path_factory) -> Path:
    """A run with its M1. Only to be read."""
    run = tmp_path_factory.mktemp("chosen") / "run"
    assert cli.main(tiny.arguments("sft", run, data, changes)) == 0
    return run


@pytest.mark.parametrize(
    ("outcomes", "best", "against"),
    [
        ({}, 1, []),  # one checkpoint alone
        ({(2, 1): (3, 0, 2), (3, 2): (2, 0, 3)}, 2, [1, 2]),
        ({(2, 1): (2, 0, 3), (3, 1): (1, 4, 0)}, 3, [1, 1]),  # the loser is not compared with any more
        ({(2, 1): (2, 1, 2), (3, 1): (0, 5, 0)}, 1, [1, 1]),  # as many wins as losses change nothing
        ({(2, 1): (0, 5, 0), (3, 1): (0, 2, 0)}, 3, [1, 1]),  # nothing was said, so it is the last
    ],
)
def test_a_later_checkpoint_takes_the_place_if_it_wins_more_than_it_loses(outcomes, best, against):
    def compare(step: int, other: int) -> dict[str, int]:
        return dict(zip(("win", "tie", "lose"), outcomes[step, other], strict=True))

    steps = list(range(1, len(outcomes) + 2))
    found, comparisons = choice.walk(steps, compare)
    assert (found, [c["against"] for c in comparisons]) == (best, against)
    assert [(c["step"], c["win"]) for c in comparisons] == [(step, x[0]) for (step, _), x in outcomes.items()]


def test_the_choice_follows_from_the_verdicts_and_is_on_record(chosen, finished):
    folder = chosen / "m1"
    model = json.loads((folder / "model.json").read_text())
    answers = {}
    for step in (3, 6, 8):
        rows = tiny.read_jsonl(folder / "choice" / str(step) / "responses.jsonl")
        answers[step] = {row["prompt_id"]: row["text"] for row in rows}
        assert len(rows) == 5
    best, told = 3, []
    for step in (6, 8):
        said: dict[str, dict[str, float]] = {}
        for row in tiny.read_jsonl(folder / "choice" / str(step) / "verdicts.jsonl"):
            mine = row["prefers_first"] if row["first"] == "a" else 1 - row["prefers_first"]
            said.setdefault(row["prompt_id"], {})[row["first"]] = mine
        differ = {id for id in answers[step] if answers[step][id] != answers[best][id]}
        assert said.keys() == differ
        won = sum(min(x.values()) > 0.5 for x in said.values())
        lost = sum(max(x.values()) < 0.5 for x in said.values())
        told.append({"step": step, "against": best, "win": won, "tie": 5 - won - lost, "lose": lost, "missing": 0})
        best = step if won > lost else best
    best = best if any(c["win"] or c["lose"] for c in told) else 8
    judge = json.loads((finished / "m1" / "model.json").read_text())["hash"]
    record = {"judge": str(finished / "m1"), "judge_hash": judge, "prompts": 5, "comparisons": told}
    assert model["best"] == {"checkpoint": best, "by": "win_rate", **record}
    assert model["checkpoint"] == best
    (entry,) = (row for row in tiny.read_jsonl(chosen / "manifest.jsonl") if row["artefact"] == "m1/model.json")
    assert entry["best"] == model["best"]
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {str(best), "8"}
    assert not list(folder.glob("checkpoints/*/opt_state"))


def restored(folder: Path, step: int, item: str, specs=None):
    config = load_model(str(folder)).config
    with Checkpoints(epath.Path(folder) / "checkpoints") as checkpoints:
        target = abstract_params(config, make_mesh(), jnp.dtype("float32"), specs=specs and specs(config))
        return checkpoints.restore(step, {item: target})[item]


def assert_same(one, other) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), one, other)


@pytest.mark.parametrize("lora", [False, True], ids=["all weights", "an adapter"])
def test_the_model_is_the_checkpoint_that_was_chosen(lora, data, changes, tmp_path, monkeypatch):
    """The first, so that it is not what the training ended with."""
    monkeypatch.setattr(choice, "walk", lambda steps, compare: (steps[0], [dict(compare(steps[1], steps[0]))]))
    more = {"lora.rank": 2, "lora.targets": "('q', 'down')", "sft.epochs": 1} if lora else {"sft.epochs": 1}
    run = tmp_path / "run"
    assert cli.main(tiny.arguments("sft", run, data, changes | more)) == 0
    assert json.loads((run / "m1" / "model.json").read_text())["checkpoint"] == 3
    model = load_model(str(run / "m1"))
    assert json.loads((run / "m1" / "model.json").read_text())["hash"] == model.hash
    if lora:
        settings = LoraSettings(2, 16.0, ("q", "down"))
        learnt = restored(run / "m1", 3, "adapter", lambda config: lora_specs(config, settings))
        assert_same(model.params, merge(settings, load_model(str(data / "model")).params, learnt))
        base = load_model(str(data / "model"), adapter=str(run / "m1" / "adapter"))
        assert base.hash == model.hash
    else:
        assert_same(model.params, restored(run / "m1", 3, "params"))
    last = "adapter" if lora else "params"
    assert (run / "m1" / "checkpoints" / "4" / last).exists()


class StopAt(Interrupt):
    """Asks for a stop at the n-th look."""

    def __init__(self, n: int):
        super().__init__()
        self.left = n

    def agreed(self) -> bool:
        self.left -= 1
        return self.left < 0


def files(folder: Path) -> dict[str, bytes]:
    found = tiny.snapshot(folder)
    return {n: x for n, x in found.items() if not n.startswith("checkpoints/") and n != "throughput.jsonl"}


def test_a_choice_stopped_again_and_again_ends_as_in_one_go(data, changes, chosen, tmp_path):
    stops = []
    while True:
        run = Run(str(tmp_path / "run"), tiny.make_config(data, changes), interrupt=StopAt(11))
        try:
            run.base()
            supervised_fine_tune(run)
            break
        except Interrupted:
            stops.append(len(list((tmp_path / "run").glob("m1/choice/*/*.partial"))))
    assert len(stops) >= 2 and sum(stops) >= 1  # in the midst of answers or verdicts
    assert files(tmp_path / "run" / "m1") == files(chosen / "m1")
    assert_same(load_model(str(tmp_path / "run" / "m1")).params, load_model(str(chosen / "m1")).params)


def test_a_judge_that_says_nothing_leaves_it_at_the_last_step(data, changes, tmp_path, capsys):
    more = {"checkpoint.judge": "m1", "judge.method": "sampled", "sft.epochs": 1}  # for M1 itself that is M0
    run = tmp_path / "run"
    assert cli.main(tiny.arguments("sft", run, data, changes | more)) == 0
    said = capsys.readouterr().err
    assert "M1 SFT: M0 prefers no checkpoint's answer on any prompt" in said and "so the last step is taken" in said
    assert "M1 SFT: the model is step 4 of 4, chosen by win_rate\n" in said
    best = json.loads((run / "m1" / "model.json").read_text())["best"]
    (found,) = best["comparisons"]
    assert (best["checkpoint"], best["judge"], found["win"], found["lose"]) == (4, "m0", 0, 0)
    assert found["missing"] + found["tie"] == 5 and found["missing"] > 0


def test_dpo_asks_for_the_prompts_of_held_out_pairs(data, changes, finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    more = {"checkpoint.prompts": "", "checkpoint.held_out": 1, "checkpoint.every_steps": 1, "dpo.epochs": 2}
    words = tiny.arguments("dpo", run, data, changes | more | {"checkpoint.judge": "m1"})
    assert cli.main([*words, "--resume=force"]) == 0
    best = json.loads((run / "m2" / "model.json").read_text())["best"]
    asked = {row["prompt_id"] for row in tiny.read_jsonl(run / "m2" / "choice" / "1" / "responses.jsonl")}
    assert len(asked) == best["prompts"] == best["held_out"] == 1 and best["comparisons"]
    assert asked < {row["prompt_id"] for row in tiny.read_jsonl(run / "m2" / "pairs.jsonl")}
    assert best["judge_hash"] == json.loads((run / "m1" / "model.json").read_text())["hash"]
    assert "eval/rewards/accuracies" in best


def test_prompts_are_those_of_held_out_rows_that_ask_for_an_answer(data, tmp_path):
    """Not those that ask for a judgement, nor one that leaves no room for an answer, and none twice."""
    given = {"checkpoint.choose": "win_rate", "checkpoint.held_out": 8, "checkpoint.prompts_max": 3}
    run = Run(str(tmp_path / "run"), tiny.make_config(data, given))
    rows, asked, _ = seed_rows(run)
    prompts = choice.validation_prompts(run, "M1 SFT", rows, asked)
    assert len(prompts) == 3 and {p.messages[-1]["content"] for p in prompts} <= set(tiny.QUESTIONS)
    long = TrainRow((Example((1,) * 9, (2,)),))
    run.config.checkpoint.prompts_max = 253
    asked[long.examples[0].prompt_ids] = ({"role": "user", "content": "So " * 1000},)
    assert len(choice.validation_prompts(run, "M1 SFT", [*rows, long], asked)) == len(tiny.QUESTIONS)
    with pytest.raises(UserError, match=r"M1 SFT: the held-out rows: no prompt fits into 2048 tokens"):
        choice.validation_prompts(run, "M1 SFT", [long], asked)
    judged = [row for row in rows if row.examples[0].prompt_ids not in asked]
    with pytest.raises(UserError, match="no prompt that checkpoints could answer; hold out more rows"):
        choice.validation_prompts(run, "M1 SFT", judged, asked)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"checkpoint.prompts": "nowhere.jsonl"}, "/nowhere.jsonl: no such file"),
        ({"checkpoint.judge": "nowhere"}, "/nowhere: no such file or folder"),
    ],
)
def test_what_is_not_there_is_one_line_before_any_training(wrong, reason, data, changes, tmp_path, capsys):
    assert cli.main(tiny.arguments("sft", tmp_path / "run", data, changes | wrong)) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("selfreward: ")]
    assert reason in line
    assert not (tmp_path / "run" / "m1").exists()
