"""AlpacaEval: its columns, and nothing written that its annotators would lose or count wrongly."""

import json

import pytest

from selfreward_jax.core.errors import UserError
from selfreward_jax.evals.alpaca import check_outputs, model_outputs, read_instructions
from tests import tiny

ROWS = [{"instruction": "Say hello.", "dataset": "helpful_base"}, {"instruction": "Say bye."}]


@pytest.fixture
def asked(tmp_path):
    (tmp_path / "alpaca_eval.json").write_text(json.dumps(ROWS))
    return read_instructions(str(tmp_path / "alpaca_eval.json"))


def test_outputs_have_alpaca_evals_columns(asked):
    assert model_outputs(asked, ["Hello.", "Bye."], "m") == [
        {"dataset": "helpful_base", "instruction": "Say hello.", "output": "Hello.", "generator": "m"},
        {"instruction": "Say bye.", "output": "Bye.", "generator": "m"},
    ]


def test_rows_with_prompts_are_read_too(asked, tmp_path):
    path = tiny.write_jsonl(tmp_path / "p.jsonl", [{"prompt": row["instruction"]} for row in ROWS])
    assert [prompt for prompt, _ in read_instructions(str(path))] == [prompt for prompt, _ in asked]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{}", "missing"), ("[]", "the file is empty"),
        ("[", "not valid JSON"), ('[{"output": "x"}]', "item 1.*missing"),
        ('[{"instruction": []}]', "item 1: an instruction must be text"),
        ('[{"instruction": "a"}, {"instruction": "a"}]', "'a' comes twice"),
    ],
)  # fmt: skip
def test_a_file_of_something_else_is_refused(text, expected, tmp_path):
    (tmp_path / "e.json").write_text(text)
    with pytest.raises(UserError, match=expected):
        read_instructions(str(tmp_path / "e.json"))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda rows: rows[::-1], "instructions are not those"),
        (lambda rows: rows[:1], "instructions are not those"),
        (lambda rows: [rows[0] | {"generator": "n"}, rows[1]], "one generator"),
        (lambda rows: [rows[0], rows[1] | {"output": " \n"}], "1 of 2 outputs are empty \\(first in row 2\\)"),
    ],
)
def test_what_annotators_would_count_wrongly_is_not_written(change, expected, asked):
    rows = model_outputs(asked, ["Hello.", "Bye."], "m")
    check_outputs(rows, asked)
    with pytest.raises(UserError, match=expected):
        check_outputs(change(rows), asked)
