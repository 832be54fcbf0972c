"""`selfreward seeds` from the command line: the sets it makes, that it goes on where it was, and what it refuses."""

import json
import re
import shutil
from pathlib import Path

import pytest

from selfreward_jax import cli
from selfreward_jax.core.ranked import load_ranked, prompt_key
from selfreward_jax.core.rows import as_messages
from selfreward_jax.core.seeds import load_eft, load_ift
from selfreward_jax.methods.judging import JudgeTemplate, parse_score
from selfreward_jax.stages import unread
from tests import tiny

REAL = tiny.REAL_DATA


def ranked_rows(n: int, ranks=(0, 1, 2), **fields) -> list[dict]:
    return [
        {
            "prompt": f"{tiny.QUESTIONS[i % 6]} {i}",
            "responses": [{"text": f"{tiny.ANSWERS[(i + r) % 8]} {r}", "rank": r} for r in ranks],
            **fields,
        }
        for i in range(n)
    ]


def words(data: Path | str, output: Path, *more: str) -> list[str]:
    return ["seeds", f"--data={data}", f"--output={output}", *more]


def keys(path: Path) -> set[str]:
    return {prompt_key(as_messages(row["prompt"])) for row in tiny.read_jsonl(path)}


def refusal(capsys, arguments: list[str]) -> str:
    assert cli.main(arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("selfreward: ")]
    assert len(lines) == 1
    return lines[0].removeprefix("selfreward: ")


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    return tiny.shared_data(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> Path:
    """Its M1 judges with one line, `Score: n`."""
    return tiny.shared_run(tmp_path_factory.getbasetemp())


# ---------------------------------------------------------------------------------------------------------------------
# Without a judge


def test_without_a_judge_the_sets_are_made_and_the_next_command_is_told(capsys, tmp_path):
    rows = [*ranked_rows(12), *(row | {"prompt": f"Alone, {row['prompt']}"} for row in ranked_rows(4, ranks=(0,)))]
    file = tiny.write_jsonl(tmp_path / "ranked.jsonl", rows)
    assert cli.main(words(file, tmp_path / "out", "--ift_rows=6", "--eft_rows=12", "--eft_validation_rows=12")) == 0
    out = tmp_path / "out"
    assert {p.name for p in out.iterdir()} == {
        "ift.jsonl", "ranked_train.jsonl", "ranked_validation.jsonl", "counts.json", "request.json", "manifest.jsonl",
    }  # fmt: skip
    assert [len(tiny.read_jsonl(out / f"{n}.jsonl")) for n in ("ift", "ranked_train", "ranked_validation")] == [6, 5, 5]
    assert all(d.response.endswith(" 0") for d in load_ift(str(out / "ift.jsonl")))
    shown = capsys.readouterr().out
    assert "selfreward sft" in shown and f"--config.seeds.ift={out / 'ift.jsonl'} --config.seeds.eft=" in shown
    counts = json.loads((out / "counts.json").read_text())
    assert counts["sets"]["eft"] == {"prompts": 5, "answers": 15}


def test_open_assistants_messages_make_the_same_sets_as_rows_of_their_answers(tmp_path):
    rows = ranked_rows(12)
    messages = []
    for n, row in enumerate(rows):
        ask = {"message_id": f"{n}", "parent_id": None, "role": "prompter", "lang": "en", "rank": None}
        messages.append(ask | {"text": row["prompt"]})
        for r in row["responses"]:
            reply = {"message_id": f"{n}/{r['rank']}", "parent_id": f"{n}", "role": "assistant"}
            messages.append(ask | reply | r)
    more = ("--ift_rows=4", "--eft_rows=6", "--eft_validation_rows=6")
    for name, content in (("rows", rows), ("messages", messages)):
        assert cli.main(words(tiny.write_jsonl(tmp_path / f"{name}.jsonl", content), tmp_path / name, *more)) == 0
    for name in ("ift", "ranked_train", "ranked_validation"):
        one, other = ((tmp_path / made / f"{name}.jsonl").read_bytes() for made in ("rows", "messages"))
        assert one == other and one


def test_what_is_held_out_can_be_read_as_ranked_answers(tmp_path):
    file = tiny.write_jsonl(tmp_path / "ranked.jsonl", ranked_rows(8))
    assert cli.main(words(file, tmp_path / "out", "--ift_rows=2")) == 0
    held_out, _ = load_ranked([str(tmp_path / "out" / "ranked_validation.jsonl")], "en")
    assert held_out and all(r.held_out and [a.rank for a in r.answers] == [0, 1, 2] for r in held_out)


def test_no_set_has_a_prompt_of_another_or_of_files_given(tmp_path):
    rows = ranked_rows(20)
    file = tiny.write_jsonl(tmp_path / "ranked.jsonl", rows)
    ift = tiny.write_jsonl(tmp_path / "mine.jsonl", [{"prompt": rows[3]["prompt"].upper(), "response": "x"}])
    other = tiny.write_jsonl(tmp_path / "test.jsonl", [{"prompt": rows[4]["prompt"]}])
    out = tmp_path / "out"
    assert cli.main(words(file, out, f"--ift={ift}", f"--exclude={other}")) == 0
    train, held_out = keys(out / "ranked_train.jsonl"), keys(out / "ranked_validation.jsonl")
    assert not (out / "ift.jsonl").exists()
    assert not train & held_out
    assert len(train | held_out) == 18 and not (train | held_out) & (keys(ift) | keys(other))


@pytest.mark.skipif(not REAL.exists(), reason=f"there are no real data in {REAL}")
def test_the_sets_of_real_data_are_disjoint(tmp_path):
    out = tmp_path / "out"
    exclude = REAL / "prompts_heldout.jsonl"
    assert cli.main(words(REAL / "ranked.jsonl", out, f"--exclude={exclude}", "--ift_rows=300")) == 0
    sets = [keys(out / f"{name}.jsonl") for name in ("ift", "ranked_train", "ranked_validation")]
    assert [len(s) for s in sets] == [300, 801, 531]
    assert len(set.union(*sets, keys(exclude))) == 300 + 801 + 531 + len(keys(exclude))


# ---------------------------------------------------------------------------------------------------------------------
# With a judge


def judged(data: Path, run: Path, file: Path, output: Path, *more: str) -> list[str]:
    changes = {"judge.samples": 4, "judge.min_parsed": 1}
    sizes = ["--ift_rows=0", "--eft_rows=12", "--eft_validation_rows=6", "--min_words=0", "--max_share=0.4"]
    return words(
        file, output, f"--model={run / 'm1'}", f"--config={tiny.BASE}", *sizes, *tiny.overrides(data, changes), *more
    )


@pytest.fixture(scope="module")
def ranked_file(tmp_path_factory) -> Path:
    return tiny.write_jsonl(tmp_path_factory.mktemp("ranked") / "ranked.jsonl", ranked_rows(18, ranks=(0, 1)))


@pytest.fixture(scope="module")
def made(data, run, ranked_file, tmp_path_factory) -> Path:
    """Only to be read."""
    out = tmp_path_factory.mktemp("seeds") / "out"
    assert cli.main(judged(data, run, ranked_file, out)) == 0
    return out


@pytest.mark.slow
def test_the_rows_kept_are_judgements_in_the_order_of_the_ranks(made, data):
    rows = tiny.read_jsonl(made / "eft.jsonl")
    template = JudgeTemplate(str(data / "judge.txt"))
    assert [d.response for d in load_eft(str(made / "eft.jsonl"), template.messages, parse_score)] == [
        row["judgement"] for row in rows
    ]
    assert rows and all(parse_score(row["judgement"]) == row["score"] for row in rows)
    by_prompt: dict[str, dict[float, float]] = {}
    for row in rows:
        by_prompt.setdefault(row["prompt"], {})[row["rank"]] = row["score"]
    both = [scores for scores in by_prompt.values() if len(scores) == 2]
    assert both and all(scores[0] > scores[1] for scores in both)
    scores = [round(row["score"]) for row in rows]
    assert max(map(scores.count, scores)) <= max(0.4, 1 / len(set(scores))) * len(scores) + 1


@pytest.mark.slow
def test_every_answer_to_be_judged_is_kept_or_counted(made):
    counts = json.loads((made / "counts.json").read_text())
    for name, stem in (("train", "eft"), ("validation", "eft_validation")):
        steps = {step["what"]: step for step in counts["eft"][name]["steps"]}
        kept, dropped = (tiny.read_jsonl(made / f"{stem}{end}.jsonl") for end in ("", "_dropped"))
        prompts = len(tiny.read_jsonl(made / f"ranked_{name}.jsonl"))
        agreeing = {row["prompt_id"] for row in [*kept, *dropped] if "judgement" in row}
        assert len(agreeing) == steps["scores not in the people's order"]["left"]
        assert len(agreeing) + sum("judged" in row for row in dropped) == prompts
        assert len(kept) == steps["more than wanted"]["left"] == sum(counts["eft"][name]["score_hist"])
        judgements = tiny.read_jsonl(made / f"judged_{name}" / "judgements.jsonl")
        assert steps["without a score"]["left_out"] == sum(j["score"] is None for j in judgements)


@pytest.mark.slow
def test_training_and_validation_have_no_prompt_in_common(made):
    assert not keys(made / "eft.jsonl") & keys(made / "ranked_validation.jsonl")
    assert keys(made / "eft_validation.jsonl") <= keys(made / "ranked_validation.jsonl")


@pytest.mark.slow
def test_the_same_command_again_changes_nothing(made, data, run, ranked_file, capsys):
    before = tiny.snapshot(made)
    assert cli.main(judged(data, run, ranked_file, made)) == 0
    assert "done already" in capsys.readouterr().err
    assert tiny.snapshot(made) == before


@pytest.mark.slow
def test_another_filter_chooses_among_the_same_judgements(made, data, run, ranked_file, tmp_path):
    copy = shutil.copytree(made, tmp_path / "out")
    assert cli.main(judged(data, run, ranked_file, copy, "--min_gap=5")) == 0
    rows = tiny.read_jsonl(copy / "eft.jsonl") if (copy / "eft.jsonl").read_text() else []
    assert {row["score"] for row in rows} <= {0.0, 5.0}
    scores = [j["score"] for j in tiny.read_jsonl(copy / "judged_train" / "judgements.jsonl")]
    prompts = [(scores[n : n + 4], scores[n + 4 : n + 8]) for n in range(0, len(scores), 8)]  # of the better, the worse
    steps = {step["what"]: step for step in json.loads((copy / "counts.json").read_text())["eft"]["train"]["steps"]}
    agreeing = sum(5 in better and 0 in worse for better, worse in prompts)
    assert len(prompts) == 12 and steps["scores not in the people's order"]["left"] == agreeing
    judged_before, judged_after = (
        {n: b for n, b in tiny.snapshot(folder).items() if n.startswith("judged_")} for folder in (made, copy)
    )
    assert judged_before == judged_after


@pytest.mark.slow
def test_a_stopped_judge_goes_on_and_ends_with_the_same_rows(made, data, run, ranked_file, tmp_path, monkeypatch):
    """It is stopped when the seventh judgement comes, as by Ctrl-C."""
    from selfreward_jax.stages.folder import Growing

    add, seen = Growing.add, []

    def stop(self, *row):
        add(self, *row)
        seen.append(row)
        if len(seen) == 7:
            raise KeyboardInterrupt

    monkeypatch.setattr(Growing, "add", stop)
    assert cli.main(judged(data, run, ranked_file, tmp_path / "out")) == 130
    monkeypatch.setattr(Growing, "add", lambda self, *row: (seen.append(row), add(self, *row))[1])
    assert cli.main(judged(data, run, ranked_file, tmp_path / "out")) == 0
    assert tiny.snapshot(tmp_path / "out") == tiny.snapshot(made)
    total = sum(len(tiny.read_jsonl(made / f"judged_{n}" / "judgements.jsonl")) for n in ("train", "validation"))
    assert len(seen) == total, "a judgement was made twice"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("--eft_rows=13", "sets of another request (another eft_rows)"),
        ("--config.judge.samples=5", "judgements of another judge (another judge)"),
        ("--config.model.dtype=bfloat16", "judgements of another judge (another dtype)"),
    ],
)
def test_another_request_does_not_take_the_place_of_what_is_there(change, what, made, data, run, ranked_file, capsys):
    before = tiny.snapshot(made)
    assert what in refusal(capsys, judged(data, run, ranked_file, made, change))
    assert tiny.snapshot(made) == before


@pytest.mark.slow
@pytest.mark.parametrize(("first", "judgements"), [(100, 96), (16, 16)])
def test_a_judge_that_never_gives_a_score_stops_with_its_first_outputs(
    first, judgements, data, ranked_file, tmp_path, capsys, monkeypatch
):
    """Where many answers are to be judged, it stops after the first of them."""
    monkeypatch.setattr(unread, "GIVE_UP_AFTER", first)
    words = judged(data, Path("none"), ranked_file, tmp_path / "out")
    words[3] = f"--model={data / 'model'}"  # random
    assert cli.main(words) == 2
    lines = capsys.readouterr().err.splitlines()
    said = rf"selfreward: model: none of its {judgements} judgements has a score to read; they begin '.*\d+ were cut"
    assert re.match(said, lines[-1])
    assert not (tmp_path / "out" / "eft.jsonl").exists()


# ---------------------------------------------------------------------------------------------------------------------
# What is refused


@pytest.mark.parametrize(
    ("rows", "more", "expected"),
    [
        (ranked_rows(4, ranks=(0,)), [], "no prompt has answers of different rank (4 prompts, all ranks equal or only"),
        (ranked_rows(4, ranks=(0, 0)), ["--ift_rows=0"], "no prompt has answers of different rank (4 prompts"),
        (ranked_rows(4, ranks=(1, 2)), [], "no prompt for training has one best answer (rank 0), so there is none"),
        (ranked_rows(4, split="test"), ["--ift_rows=0"], "all 4 prompts with ranked answers belong to a split for"),
        (ranked_rows(1), ["--ift_rows=0", "--eft_rows=1", "--eft_validation_rows=9"], "are needed for the other sets"),
        (ranked_rows(4), ["--exclude=FILE"], "all 4 prompts are in --ift or --exclude too; nothing is left"),
        (ranked_rows(4, lang="es"), [], "--lang=en: FILE has no prompt in it; there are es (4)."),
        (ranked_rows(4), ["--ift=FILE", "--ift_rows=3"], "--ift_rows: with --ift the demonstrations are given"),
        (ranked_rows(4), ["--ift=FILE"], "FILE:1: the field 'response' is missing"),
        (ranked_rows(4), ["--exclude=nowhere.jsonl"], "nowhere.jsonl: no such file; it should hold rows with prompt"),
        (ranked_rows(4), ["--config.judge.method=expected"], "config.judge.method: expected gives means and no scores"),
        (ranked_rows(4), ["--config.judge.template=nowhere"], "/nowhere: no such file"),
        (ranked_rows(4), ["--model=nowhere"], "nowhere"),
        (ranked_rows(4), ["--max_share=0"], "--max_share: 0 must be between 0.01 and 1"),
        (ranked_rows(4), ["--eft_rows=-1"], "--eft_rows: -1 must be at least 0"),
    ],
)
def test_what_can_not_be_used_is_one_line_and_makes_no_set(rows, more, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tiny.write_jsonl(tmp_path / "ranked.jsonl", rows)
    arguments = words(file, tmp_path / "out", *(word.replace("FILE", str(file)) for word in more))
    assert expected.replace("FILE", str(file)) in refusal(capsys, arguments)
    assert not (tmp_path / "out" / "ift.jsonl").exists()


def test_a_folder_of_other_things_is_refused(capsys, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter.txt").write_text("Dear")
    file = tiny.write_jsonl(tmp_path / "ranked.jsonl", ranked_rows(8))
    assert "not empty and not an evaluation" in refusal(capsys, words(file, tmp_path / "out"))
