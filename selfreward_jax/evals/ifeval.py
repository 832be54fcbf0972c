"""IFEval: the share of prompts, and of instructions, that responses follow, strictly and loosely.

Zhou et al. 2023 (arXiv 2311.07911). Loosely: a response follows an instruction if it does with its first line, its
last line or all asterisks left out, or any of these together, so that an opening phrase or Markdown does no harm.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from selfreward_jax.core.errors import UserError
from selfreward_jax.core.rows import Row
from selfreward_jax.evals.instructions import check_instruction, follows
from selfreward_jax.evals.statistics import Interval, bootstrap

MODES = ("strict", "loose")


@dataclasses.dataclass(frozen=True)
class Task:
    """A prompt with the instructions in it: kind, and arguments of its verifier."""

    prompt: str
    instructions: tuple[tuple[str, Mapping[str, Any]], ...]


def parse_task(row: Row) -> Task:
    """From a row `prompt`, `instruction_id_list`, `kwargs` of IFEval's data.

    Raises:
      KeyError, TypeError, ValueError: something else.
    """
    kinds, arguments = row["instruction_id_list"], row["kwargs"]
    if not isinstance(row["prompt"], str) or not row["prompt"].strip():
        raise ValueError("prompt must be text that is not empty")
    if not isinstance(kinds, list) or not isinstance(arguments, list) or len(kinds) != len(arguments) or not kinds:
        raise ValueError("instruction_id_list and kwargs must be lists of the same length, not empty")
    if not all(isinstance(some, dict) for some in arguments):
        raise ValueError("every item of kwargs must be an object")
    # Some copies of the data name every argument of every kind, with null for those that don't belong.
    given = [{name: value for name, value in some.items() if value is not None} for some in arguments]
    for kind, some in zip(kinds, given, strict=True):
        check_instruction(kind, some)
    return Task(row["prompt"], tuple(zip(kinds, given, strict=True)))


def variants(response: str) -> list[str]:
    """What a loose verdict reads: with or without the first line, the last line, and asterisks."""
    lines = response.split("\n")
    cut = [response, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return [text for part in cut for text in (part, part.replace("*", ""))]


def verdicts(task: Task, response: str, mode: str) -> list[bool]:
    """Whether a response follows each instruction of a prompt, `strict` or `loose`."""
    texts = [response] if mode == "strict" else variants(response)
    return [any(follows(kind, arguments, text) for text in texts) for kind, arguments in task.instructions]


def verdict_row(task: Task, response: str, followed: Sequence[bool]) -> Row:
    """As in the authors' `eval_results_strict.jsonl` and `eval_results_loose.jsonl`."""
    return {
        "follow_all_instructions": all(followed),
        "follow_instruction_list": list(followed),
        "instruction_id_list": [kind for kind, _ in task.instructions],
        "prompt": task.prompt,
        "response": response,
    }


def accuracies(rows: Mapping[str, Sequence[Row]]) -> dict[str, Interval]:
    """The four accuracies under lm-eval's names, with intervals from a bootstrap over prompts.

    Args:
      rows: of `verdict_row`, by mode.
    """
    found = {}
    for mode in MODES:
        lists = [row["follow_instruction_list"] for row in rows[mode]]
        right, total = np.array([sum(x) for x in lists]), np.array([len(x) for x in lists])
        whole = right == total
        found[f"prompt_level_{mode}_acc"] = bootstrap(len(lists), lambda n, whole=whole: whole[n].mean())
        found[f"inst_level_{mode}_acc"] = bootstrap(
            len(lists), lambda n, right=right, total=total: right[n].sum() / total[n].sum()
        )
    return found


def by_kind(rows: Mapping[str, Sequence[Row]]) -> dict[str, dict[str, float]]:
    """For each kind of instruction: how many there are, and the shares that are followed."""
    pairs = {
        mode: [
            pair
            for row in rows[mode]
            for pair in zip(row["instruction_id_list"], row["follow_instruction_list"], strict=True)
        ]
        for mode in MODES
    }
    made = {}
    for kind in sorted({kind for kind, _ in pairs["strict"]}):
        followed = {mode: [right for name, right in pairs[mode] if name == kind] for mode in MODES}
        shares = {mode: round(sum(x) / len(x), 6) for mode, x in followed.items()}
        made[kind] = {"n": len(followed["strict"]), **shares}
    return made


def match_responses(tasks: Sequence[Task], rows: Sequence[Row]) -> list[str]:
    """The response to each prompt, found by the prompt's text.

    Raises:
      ValueError: prompts without a response, or with two that differ.
    """
    given: dict[str, str] = {}
    for row in rows:
        if given.setdefault(row["prompt"], row["response"]) != row["response"]:
            raise ValueError(f"two responses to the prompt {row['prompt'][:60]!r}")
    missing = [task.prompt for task in tasks if task.prompt not in given]
    if missing:
        raise ValueError(f"{len(missing)} of {len(tasks)} prompts have no response, first {missing[0][:60]!r}")
    return [given[task.prompt] for task in tasks]


def check_responses(rows: Sequence[Row], tasks: Sequence[Task]) -> None:
    """Raises `UserError` for what the authors' script, which finds responses by the prompt's text, would mix up."""
    if [row["prompt"] for row in rows] != [task.prompt for task in tasks]:
        raise UserError("responses.jsonl: its prompts are not those of the data, in their order.")
    given: dict[str, str] = {}
    for n, row in enumerate(rows, 1):
        if not isinstance(row["response"], str):
            raise UserError(f"responses.jsonl: the response in row {n} is no text.")
        if given.setdefault(row["prompt"], row["response"]) != row["response"]:
            raise UserError(f"responses.jsonl: row {n} answers a prompt once more, and differently.")
