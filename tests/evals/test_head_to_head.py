"""`eval winrate` from the command line, on tiny models: what it writes, what it goes on with, what it refuses."""

import json
from pathlib import Path

import pytest

from selfreward_jax import cli
from selfreward_jax.core.interrupt import Interrupt, Interrupted
from selfreward_jax.engine.generate import Completion, Request
from selfreward_jax.stages import verdicts
from selfreward_jax.verbs.winrate import _names, winrate
from tests import tiny

READ = {"judge.method": "expected", "judge.rationale": "False"}  # a tiny judge ends no text in a verdict
COMPLETED = {"judge.method": "completion"}


@pytest.fixture
def files(tmp_path) -> dict[str, str]:
    """Prompts and two files of answers, of which the second is the longer one throughout and once the same."""
    rows = [{"prompt": f"{q} {n}", "category": "[/odd]" if n % 2 else "even"} for n, q in enumerate(tiny.QUESTIONS)]
    tiny.write_jsonl(tmp_path / "prompts.jsonl", rows)
    for name, tail in (("a", ""), ("b", ", and more")):
        answers = [{"prompt": r["prompt"], "response": tiny.ANSWERS[n]} for n, r in enumerate(rows)]
        for answer in answers[1:]:
            answer["response"] += tail
        tiny.write_jsonl(tmp_path / f"{name}.jsonl", answers)
    return {name: str(tmp_path / f"{name}.jsonl") for name in ("a", "b", "prompts")}


def words(data: Path, *given: str, changes: dict | None = None) -> list[str]:
    return ["eval", "winrate", *given, *tiny.overrides(data, changes)]


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def test_two_files_are_compared_and_swapped_they_give_the_opposite(data, finished, files, tmp_path, capsys):
    common = [f"--prompts={files['prompts']}", f"--judge={finished / 'm3'}"]
    for output, sides in (("ab", ("a", "b")), ("ba", ("b", "a"))):
        place = f"--output={tmp_path / output}"
        assert cli.main(words(data, *(files[s] for s in sides), *common, place, changes=READ)) == 0
    shown = capsys.readouterr().out
    assert (
        "A: a.jsonl" in shown
        and "win rate of A" in shown
        and "by category" in shown
        and "[/odd]" in shown
        and "comparisons.jsonl" in shown
    )
    ab, ba = result(tmp_path / "ab"), result(tmp_path / "ba")
    assert ab["n"] == ba["n"] == 6 and set(ab["by_category"]) == {"even", "[/odd]"}
    assert ab["win"] == ba["lose"] and ab["lose"] == ba["win"] and ab["sign_test_p"] == ba["sign_test_p"]
    assert ab["preference"]["value"] == pytest.approx(1 - ba["preference"]["value"], abs=1e-5)
    assert ab["lc_win_rate"]["value"] == pytest.approx(1 - ba["lc_win_rate"]["value"], abs=1e-5)
    assert ab["a"]["hash"] == ba["b"]["hash"] and ab["length_b"] > ab["length_a"]

    rows = tiny.read_jsonl(tmp_path / "ab" / "comparisons.jsonl")
    assert rows[0]["outcome"] == "tie" and rows[0]["verdicts"] == []  # the same answer: no one was asked
    assert [v["first"] for v in rows[1]["verdicts"]] == ["a", "b"]
    assert rows[1]["a"] == "no" and rows[1]["b"] == "no, and more"
    opposite = tiny.read_jsonl(tmp_path / "ba" / "comparisons.jsonl")
    for one, other in zip(rows, opposite, strict=True):
        own = {v["first"]: v["prefers_a"] for v in one["verdicts"]}
        theirs = {v["first"]: v["prefers_a"] for v in other["verdicts"]}
        assert own == {{"a": "b", "b": "a"}[first]: pytest.approx(1 - p, abs=2e-6) for first, p in theirs.items()}


@pytest.mark.parametrize(
    ("sides", "names"),
    [
        (("runs/q/m2", "runs/q/m1"), ["m2", "m1"]),
        (("runs/q/run/m3", "runs/q/sft/m1/"), ["run-m3", "sft-m1"]),
        (("a.jsonl", "b.jsonl"), ["a.jsonl", "b.jsonl"]),
        (("x/a/m1", "y/a/m1"), ["x/a/m1", "y/a/m1"]),
    ],
)
def test_sides_are_called_by_what_tells_them_apart(sides, names):
    assert _names(sides) == names


class StopAt(Interrupt):
    """Asks for a stop at the n-th look."""

    def __init__(self, n: int):
        super().__init__()
        self.left = n

    def agreed(self) -> bool:
        self.left -= 1
        return self.left < 0


def test_two_models_stopped_again_and_again_give_the_bytes_of_one_go(data, finished, files, tmp_path):
    def compare(output: str, interrupt: Interrupt) -> None:
        sides = [str(finished / "m2"), str(finished / "m3")]
        given = [f"--prompts={files['prompts']}", f"--judge={finished / 'm1'}", f"--output={tmp_path / output}"]
        options, rest = cli.parser().parse_known_args(words(data, *sides, *given, changes=COMPLETED))
        winrate(options, rest, interrupt)

    compare("whole", Interrupt())
    stops = 0
    while True:
        try:
            compare("parts", StopAt(4))  # six answers each, up to 12 verdicts
            break
        except Interrupted:
            stops += 1
    assert stops >= 3
    assert tiny.snapshot(tmp_path / "parts") == tiny.snapshot(tmp_path / "whole")
    made = result(tmp_path / "whole")
    assert made["parse_rate"] == 1.0 and made["a"]["name"] == "m2"


def test_a_runs_models_are_compared_among_themselves_by_their_scores(data, finished, files, tmp_path, capsys):
    place = tmp_path / "out"
    given = [f"--workdir={finished}", f"--prompts={files['prompts']}", f"--output={place}", "--score=absolute"]
    assert cli.main(["eval", "winrate", *given]) == 0
    captured = capsys.readouterr()
    assert "m3 judges its own answers" in captured.err.lower()
    for name in ("m2_m1", "m3_m2", "m3_m1"):
        made = result(place / name)
        assert made["kind"] == "winrate" and made["judge"] == "M3" and made["prompts"] == 6
        assert made["agreement"] is None and made["samples"] == 3
        for row in tiny.read_jsonl(place / name / "comparisons.jsonl"):
            a, b = row["scores"]["a"], row["scores"]["b"]
            if row["a"] != row["b"] and row["outcome"]:
                assert row["outcome"] == ("tie" if a == b else "win" if a > b else "lose")
    assert (place / "m1" / "responses.jsonl").exists()  # each model answered once, for all its comparisons
    before = tiny.snapshot(place)
    assert cli.main(["eval", "winrate", *given]) == 0
    assert tiny.snapshot(place) == before
    assert cli.main(["eval", "winrate", *given, "--max_prompts=3"]) == 2  # nothing is overwritten
    assert "holds the result of another evaluation" in capsys.readouterr().err
    assert tiny.snapshot(place) == before


def test_a_judge_that_gives_no_verdict_is_stopped_with_its_first_outputs(data, finished, files, tmp_path, capsys):
    common = [f"--prompts={files['prompts']}", f"--judge={finished / 'm3'}", f"--output={tmp_path / 'o'}"]
    assert cli.main(words(data, files["a"], files["b"], *common)) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("selfreward: ")]
    first = tiny.read_jsonl(tmp_path / "o" / "verdicts.jsonl")[0]["text"]
    assert "none of its 10 verdicts can be read" in line and " ".join(first.split())[:40] in line
    assert "judge.method=completion" in line and "--score=absolute" in line
    assert cli.main(words(data, files["a"], files["b"], *common)) == 2  # and no other end the second time
    assert not (tmp_path / "o" / "result.json").exists()
    # The same folder, told how, goes on.
    assert cli.main(words(data, files["a"], files["b"], *common, changes=READ)) == 0


@pytest.mark.parametrize(
    ("first", "text", "verdict", "prefers_a"),
    [
        ("a", "So.\n[[A]]", "A", 1.0),
        ("b", "So.\n[[A]]", "A", 0.0),
        ("b", "[[B]]", "B", 1.0),
        ("b", "[[tie]]", "tie", 0.5),
        ("a", "Well.", None, None),
    ],
)
def test_a_sampled_verdict_is_for_whoever_stood_there(first, text, verdict, prefers_a):
    made = verdicts._sampled_row(
        "sampled", {"q": ("p", first)}, Completion(Request("q", (1,)), 0, (2,), text, "eos", 0.0, 1)
    )
    assert (made.verdict, made.prefers_a) == (verdict, prefers_a)


def test_a_verdict_from_the_distribution_is_the_likelier_or_its_probability():
    about = "q", 0, "p", "b", "Because.", "eos", (-1.0, -2.0)
    completed, expected = verdicts._read_row("completion", *about), verdicts._read_row("expected", *about)
    assert completed.verdict == expected.verdict == "A" and completed.text == "Because.\nVerdict: [[A]]"
    assert completed.prefers_a == 0.0
    assert expected.prefers_a == pytest.approx(1 - 1 / (1 + 2.718281828**-1), abs=1e-5)


REFUSED = [
    (["{a}"], "give two sides, A and B, or --workdir=RUN"),
    (["{a}", "{b}", "--workdir=w"], "give two sides, A and B, or --workdir=RUN"),
    (["{a}", "{b}", "--output=o"], "give --judge=MODEL and --output=DIR"),
    (["{model}", "{model}", "--judge={model}", "--output=o"], "give --prompts=FILE"),
    (["nowhere.jsonl", "{b}", "--judge={model}", "--output=o"], "nowhere.jsonl: no such file"),
    (["{a}", "nowhere", "--judge={model}", "--output=o", "--prompts={prompts}"], "/nowhere: no such file or folder"),
    (["{a}", "{b}", "--judge=nowhere", "--output=o"], "/nowhere: no such file or folder"),
    (["{a}", "{b}", "--judge={tmp}", "--output=o"], "eval winrate: --judge: "),
    (["{a}", "{few}", "--judge={model}", "--output=o"], "answer different prompts: 6 and 1, 0 in both"),
    (["{a}", "{few}", "--judge={model}", "--output=o", "--prompts={prompts}"], "no answer to 6 of 6 prompts"),
    (["{a}", "{b}", "--judge={model}", "--output=o", "--template=t.txt"], "/t.txt: no such file"),
    (["{a}", "{b}", "--judge={model}", "--output=o", "--samples=0"], "--samples"),
    (["--workdir=nowhere", "--prompts={prompts}"], "nowhere: no run there"),
]


@pytest.mark.parametrize(("given", "expected"), REFUSED, ids=lambda x: " ".join(x) if isinstance(x, list) else None)
def test_what_cannot_be_compared_is_one_line_and_makes_nothing(
    given, expected, data, files, tmp_path, capsys, monkeypatch
):
    few = tiny.write_jsonl(tmp_path / "few.jsonl", [{"prompt": "Else?", "response": "So."}])
    known = files | {"few": few, "model": data / "model", "tmp": tmp_path}
    monkeypatch.chdir(tmp_path)
    assert cli.main(["eval", "winrate", *(word.format(**known) for word in given)]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and expected in captured.err
    assert not (tmp_path / "o").exists()


def test_answers_that_do_not_fit_the_judge_are_one_line(data, finished, files, tmp_path, capsys):
    common = [f"--prompts={files['prompts']}", f"--judge={finished / 'm3'}", f"--output={tmp_path / 'o'}"]
    assert cli.main(words(data, files["a"], files["b"], *common, changes={"judge.max_new_tokens": 2000})) == 2
    assert "no two answers fit into its context of 2048 tokens" in capsys.readouterr().err


def test_real_prompts_and_answers_are_read():
    """Prompts and answers in two files go together by their ids."""
    import gzip

    from selfreward_jax.evals.answer_files import load_questions

    folder = tiny.REAL_DATA
    if not folder.exists():
        pytest.skip("SELFREWARD_TEST_DATA names no folder")
    questions = {q.key: q for q in load_questions(str(folder / "prompts_heldout.jsonl"))}
    with gzip.open(folder / "heldout_baselines.jsonl.gz", "rt") as lines:
        assert {json.loads(line)["id"] for line in lines} <= set(questions)
