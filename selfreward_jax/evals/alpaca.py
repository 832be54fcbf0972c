"""AlpacaEval: answers as its `model_outputs.json`, checked before they are written.

The annotator of AlpacaEval pairs answers with its baseline's by the text of the instruction, so what isn't the same
there is lost without a word; better it is said here.
"""

import collections
from collections.abc import Sequence

from selfreward_jax.core.errors import UserError
from selfreward_jax.core.readers import read_rows
from selfreward_jax.core.rows import Prompt, Row, as_messages, content_id, present


def parse_instruction(row: Row) -> tuple[Prompt, str]:
    """A request and the part of the evaluation set it belongs to ("" for none).

    From AlpacaEval's own rows (`instruction`, `dataset`), or from rows with `prompt`.

    Raises:
      KeyError, ValueError: no text to ask.
    """
    row = present(row)
    text = row["instruction"] if "instruction" in row else row["prompt"]
    if not isinstance(text, str):
        raise ValueError("an instruction must be text; AlpacaEval has no conversations")
    messages = as_messages(text)
    return Prompt(content_id(messages), messages, "alpaca_eval"), str(row.get("dataset", ""))


def read_instructions(path: str) -> list[tuple[Prompt, str]]:
    """Requests of `alpaca_eval.json` or of any rows that `core.readers` reads.

    Raises:
      UserError: a bad file or row, or an instruction that comes twice.
    """
    made = read_rows(path, parse_instruction, "rows with instruction or prompt")
    twice = [text for text, n in collections.Counter(p.messages[0]["content"] for p, _ in made).items() if n > 1]
    if twice:
        raise UserError(f"{path}: the instruction {twice[0][:60]!r} comes twice; AlpacaEval finds answers by it.")
    return made


def model_outputs(asked: Sequence[tuple[Prompt, str]], answers: Sequence[str], generator: str) -> list[Row]:
    """Rows of `model_outputs.json`, in the order of the requests."""
    return [
        ({"dataset": dataset} if dataset else {})
        | {"instruction": prompt.messages[0]["content"], "output": answer, "generator": generator}
        for (prompt, dataset), answer in zip(asked, answers, strict=True)
    ]


def check_outputs(rows: Sequence[Row], asked: Sequence[tuple[Prompt, str]]) -> None:
    """Raises `UserError` for what AlpacaEval would take without a word and count wrongly, or not take."""
    wanted = [prompt.messages[0]["content"] for prompt, _ in asked]
    if [row["instruction"] for row in rows] != wanted:
        raise UserError("model_outputs.json: its instructions are not those that were asked, in their order.")
    if len(names := {row["generator"] for row in rows}) != 1 or "" in names:
        raise UserError(f"model_outputs.json: one generator must be named, not {sorted(names)}.")
    empty = [n for n, row in enumerate(rows, 1) if not row["output"].strip()]
    if empty:
        raise UserError(
            f"model_outputs.json: {len(empty)} of {len(rows)} outputs are empty (first in row {empty[0]}), which"
            " annotators can't compare; ask again with --config.respond.min_new_tokens=8."
        )
