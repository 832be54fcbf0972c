"""The made world: tasks on short strings, answers with a true score from 0 to 5, and how people there write.

A task names a way to make five letters from a string: `reverse bdace` asks for `ecadb`. Each of the five places that
is right is a point. People there make mistakes, and some end their answers with flourishes (`ecadb!!`), which are
worth nothing. A judgement says for every place what
should stand there, what does, and whether that is right, and ends with the score: `ee+cc+aa+dd+bx-`, `Score: 4`.
"""

import dataclasses
import random
import re

LETTERS = "abcdefghij"
PLACES = 5
LENGTHS = (5, 6, 7)  # of the string
FLOURISH = "!"
MOST_FLOURISHES = 3


def _next(letter: str) -> str:
    return LETTERS[(LETTERS.index(letter) + 1) % len(LETTERS)]


# Kind of task: from a string of at least five letters to the five asked for.
KINDS = {
    "copy": lambda s: s[:PLACES],
    "reverse": lambda s: s[::-1][:PLACES],
    "rotate": lambda s: s[1:PLACES] + s[0],
    "swap": lambda s: s[1] + s[0] + s[3] + s[2] + s[4],
    "next": lambda s: "".join(map(_next, s[:PLACES])),
}
_TASK = re.compile(rf"({'|'.join(KINDS)}) ([{LETTERS}]{{{LENGTHS[0]},{LENGTHS[-1]}}})")


@dataclasses.dataclass(frozen=True)
class Task:
    """What is asked: a kind and a string."""

    kind: str
    string: str

    @property
    def text(self) -> str:
        return f"{self.kind} {self.string}"

    @property
    def answer(self) -> str:
        """The five letters that are right."""
        return KINDS[self.kind](self.string)


def read_task(text: str) -> Task | None:
    """The task that a text asks for, None where it asks for none of this world."""
    found = _TASK.fullmatch(text.strip())
    return Task(found[1], found[2]) if found else None


def marks(task: Task, response: str) -> tuple[bool, ...]:
    """Which of the five places are right. Flourishes, like all that stands after five letters, change nothing."""
    given = response.strip()[:PLACES].ljust(PLACES)
    return tuple(a == b for a, b in zip(given, task.answer, strict=True))


def true_score(task: Task, response: str) -> float:
    """Points from 0 to 5."""
    return float(sum(marks(task, response)))


def flourishes(response: str) -> int:
    """How many of them end an answer: what a judge may be misled by."""
    text = response.strip()
    return len(text) - len(text.rstrip(FLOURISH))


def score(prompt: tuple[dict[str, str], ...], response: str) -> float | None:
    """True score of an answer to a conversation, in the form of `judge.function`; None if it asks for no task."""
    task = read_task(prompt[-1]["content"])
    return None if task is None else true_score(task, response)


def score_of_a_person(
    prompt: tuple[dict[str, str], ...], response: str, *, noise: float, bias: float, seed: int
) -> float | None:
    """The score that a person gives, who sees the same answer to a task in the same way again; None for no task."""
    task = read_task(prompt[-1]["content"])
    if task is None:
        return None
    _, total = _seen(task, response, noise, bias, random.Random(f"{seed} {task.text} {response}"))
    return float(total)


def random_task(rng: random.Random) -> Task:
    string = "".join(rng.choices(LETTERS, k=rng.choice(LENGTHS)))
    return Task(rng.choice(list(KINDS)), string)


def human_answer(task: Task, error: float, rng: random.Random) -> str:
    """What a person answers.

    Args:
      error: probability that the hand slips at a place, which then gets the letter of the place after it.
    """
    right = task.answer
    letters = (
        slip if rng.random() < error else letter for letter, slip in zip(right, right[1:] + right[0], strict=True)
    )
    return "".join(letters) + FLOURISH * rng.choice((0, 0, *range(MOST_FLOURISHES + 1)))


def human_judgement(task: Task, response: str, noise: float, bias: float, rng: random.Random) -> str:
    """How a person judges an answer.

    Args:
      noise: probability that a mark is the wrong one.
      bias: points that a flourish adds to the score, which then is rounded.
    """
    seen, total = _seen(task, response, noise, bias, rng)
    places = zip(task.answer, response.strip()[:PLACES].ljust(PLACES, "?"), seen, strict=True)
    written = "".join(f"{right}{given}{'+' if ok else '-'}" for right, given, ok in places)
    return f"{written}\nScore: {total}"


def _seen(task: Task, response: str, noise: float, bias: float, rng: random.Random) -> tuple[list[bool], int]:
    """Marks and score as a person sees them; see `human_judgement`."""
    seen = [right != (rng.random() < noise) for right in marks(task, response)]
    return seen, min(5, max(0, round(sum(seen) + bias * flourishes(response))))
