"""The seed data that people wrote: answers to requests (IFT) and judgements of answers (EFT).

Both become demonstrations: a conversation, and the turn that the model should learn to add to it. Everything that
could be wrong with a row is found here, where its place is known.
"""

from collections.abc import Callable
from importlib import resources

from selfreward_jax.core.errors import UserError
from selfreward_jax.core.forms import Demonstration, columns, demonstration
from selfreward_jax.core.readers import read_rows
from selfreward_jax.core.rows import Messages, Row, present


def load_ift(spec: str, check: Callable[[Messages], None] = lambda messages: None) -> list[Demonstration]:
    """Instruction following demonstrations.

    Rows are of the forms of `core.forms.demonstration`. Further fields are ignored.

    Args:
      spec: "builtin", or whatever `core.readers` reads.
      check: raises `UserError` for a conversation that can't be rendered.

    Raises:
      UserError: data that can't be read, or a wrong row, with its place.
    """

    def parse(row: Row) -> Demonstration:
        made = demonstration(row)
        check(made.messages)
        return made

    return _load(spec, "ift.jsonl", parse)


def load_eft(
    spec: str,
    judge_prompt: Callable[[Messages, str], Messages],
    parse_score: Callable[[str], float | None],
    check: Callable[[Messages], None] = lambda messages: None,
) -> list[Demonstration]:
    """Evaluation following demonstrations: how a person would judge an answer.

    Rows have `prompt` (text or messages), `response` and `judgement`, or `messages` that end with the judgement and
    are taken as they are. Further fields are ignored.

    Args:
      spec: as for `load_ift`; "" for no demonstrations.
      judge_prompt: from a conversation and an answer to what the judge is asked.
      parse_score: reads the score of a judgement, None if it has none.
      check: as for `load_ift`.

    Raises:
      UserError: data that can't be read, or a wrong row, with its place; a judgement without a score is one.
    """
    if not spec:
        return []

    def parse(row: Row) -> Demonstration:
        made = _eft_row(row, judge_prompt, parse_score)
        check(made.messages)
        return made

    return _load(spec, "eft.jsonl", parse)


def _load(spec: str, builtin: str, parse: Callable[[Row], Demonstration]) -> list[Demonstration]:
    if spec == "builtin":
        with resources.as_file(resources.files("selfreward_jax") / "seeds" / builtin) as path:
            return read_rows(path, parse, "demonstrations")
    if not spec:
        raise UserError("seeds: no data is named; give builtin, a file of rows, hf:NAME or tfds:NAME/SPLIT.")
    return read_rows(spec, parse, "demonstrations")


# ---------------------------------------------------------------------------------------------------------------------
# Rows


def _eft_row(
    row: Row,
    judge_prompt: Callable[[Messages, str], Messages],
    parse_score: Callable[[str], float | None],
) -> Demonstration:
    row = present(row)
    made = demonstration(row) if "messages" in row or "prompt" in row else None
    if made is None:
        raise ValueError(f"needs prompt, response and judgement, or messages; found {columns(row)}")
    if "messages" not in row:
        judgement = row["judgement"]
        if not isinstance(judgement, str):
            raise ValueError("judgement must be text")
        made = Demonstration(judge_prompt(made.messages, made.response), judgement)
    if parse_score(made.response) is None:
        raise ValueError("the judgement has no score that can be read; let it end with a line such as `Score: 3`")
    return made
