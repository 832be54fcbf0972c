"""A score is read right or not at all: over a grammar of what judges write, with a meaning that no pattern computes."""

import dataclasses
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfreward_jax.methods.judging import parse_score
from selfreward_jax.methods.score_forms import FIVE, Scale, find_score

# Read: what each form means. README and the judge's template ask for the first.
FORMS = {
    "Score: 4": 4,
    "score: 4": 4,
    "SCORE : 4": 4,
    "Score：4": 4,
    "Score: ４": 4,
    "Score: ٤": 4,
    "Score = 4": 4,
    "Score: 4.0": 4,
    "Score: 4.": 4,
    "Score: 4!": 4,
    "Score: four": 4,
    "Score: Four points.": 4,
    "**Score:** 4": 4,
    "**Final Score**: 4": 4,
    "__Score: 4__": 4,
    "### Score: 4": 4,
    "`Score: 4`": 4,
    "<b>Score:</b> 4": 4,
    "<score>4</score>": 4,
    "Score: 4</answer>": 4,
    r"\textbf{Score:} $4$": 4,
    r"$\text{Score: } 4$": 4,
    r"Score: \boxed{4}": 4,
    r"\boxed{\text{Score: 4}}": 4,
    "The sum is right.\n$\\boxed{4}$": 4,
    r"\boxed{4/5}": 4,
    '{"reason": "Good.", "score": 4}': 4,
    '{"score": "4/5", "length": 12}': 4,
    "{'score': 4}": 4,
    "Final score: 4": 4,
    "Therefore, my final score: 4": 4,
    "Score (out of 5): 4": 4,
    "Score (0-5): 4": 4,
    "Score out of 5: 4": 4,
    "Score/5: 4": 4,
    "Score: 4/5": 4,
    "Score: **4** / **5**": 4,
    "Score: 4/5 points": 4,
    "Score: 4 out of 5": 4,
    "Score: 4 points out of 5": 4,
    "Score: 4 out of a possible 5": 4,
    "Score: four out of five": 4,
    "Score: 4 on a scale of 0 to 5": 4,
    "Score: 4 (out of 5)": 4,
    "Score: 4 (good)": 4,
    "Score: 4 - a good answer": 4,
    "Score: 4—a good answer": 4,
    "Score: 4, since it is right": 4,
    "Score: 4 because it is right": 4,
    "Score: 4. It has 2 errors.": 4,
    "Score: [[4]]": 4,
    "Score: 4 ⭐": 4,
    "Score:\n4": 4,
    "Score:\n\n**4/5**\n": 4,
    "Score: 4\n/5": 4,
    "Score: 4\n\n1. It is right.\n2. It is short.": 4,
    "Score: 1+1+1=3": 3,
    "Score: 1 + 1 + 0 + 1 = 3/5": 3,
    "Score: (1 + 1 + 1) = 3": 3,
    "Score: 1 point + 0.5 points = 1.5 points": 1.5,
    "Score: 5 - 1 = 4": 4,
    "Score: 2\nNo: it is right after all.\nFinal score: 4": 4,
    "Score: 4\nIt is right.\nScore: 4": 4,
    "Score: 4 The answer is right.": 4,
    "**Score: 4**. Good.": 4,
    "Score: 4. the answer": 4,
    "Score: 4 for the answer": 4,
    "Score: 4…": 4,
    "Score: 4 [END]": 4,
    "Score: 4</s>": 4,
    "[Score: 4]": 4,
    "Score: four (4)": 4,
    "Score: 4\n\nOverall, it tells 3 things.": 4,
    "Score: 4\nMaximum points: 5": 4,
    "1. Relevant (score: 1)\n2. Useful (score: 0)\nScore: 1": 1,
    "Score: 4\nReason for the score: it is right": 4,
}

UNREAD = [
    # nothing, or the form itself
    "", "4", "4/5", "Score", "Score 4", "Score:", "Scores: 4", "underscore: 4", "Score: n", "Score: N", "Score: X",
    "Score: ...", "Score: <0-5>", "Score: 0-5", "Score: <points from 0 to 5>", "Score: [your score]", "`Score: n`",
    "Score: (0 to 5)", "Score: a number from 0 to 5", "Score: N/A", "Score: none",
    # another scale
    "Score: 3 points out of 10", "Score: 4 of 10", "Score: 4/10", "Score: 4/50", "Score: 4 (out of ten)",
    "Score: 4\n/10", "Score: 4\nout of 10", "Score (out of 10): 4", "Score (1-5): 4", "Score: 4 on a scale of 1 to 10",
    "Score: 8/10", "Score: 10", "Score: 5.5", "Score: 100", "Score: 4 max 10", "Score: 5%", "Score: 5 %",
    "Score: 5 percent", "Score: 4‰", "Score: 3\n%",
    # no single value
    "Score: 3 or 4", "Score: 2-3", "Score: 3–4", "Score: 3 − 4", "Score: 3 to 4", "Score: 3, 4", "Score: 3 & 4",
    "Score: between 3 and 4", "Score: three or four", "Score: 0, 1, 2, 3, 4 or 5", "Score: 3/4/5", "Score: 4/5 or 3/5",
    "Score: 4 (maybe 3)", "Score: 4, maybe 5", "Score: 4 → 3", "Score: 4 -> 3", "Score: ~~3~~ 4", "Score: 4 vs. 5",
    "Score: 4. 5", "Score: 4...5", "Score: 4:3", "Score: [3, 4]", "Score:\n1\n1\n0", "Score:\n1. Relevant",
    # no exact value
    "Score: < 4", "Score: > 3", "Score: ≥ 3", "Score: ~4", "Score: about 4", "Score: at least 3", "Score: 4+",
    "Score: 4 or more", "Score: 4-", "Score: -1", "Score: +3", "Score: 3½", "Score: 3 1/2", "Score: 4 and a half",
    "Score: 3,5", "Score: 4th", "Score: 4x", "Score: 4.5.1", "Score: 1e0", "Score: 4²", "Score: 4_5", "Score: 4?",
    # sums without or with a wrong result
    "Score: 1+1+1", "Score: 1+1+1=4", "Score: 1+1+1=30", "Score: 4*1", "Score: 2 x 2 = 4", "Score: 2 × 2 = 4",
    "Score: 1\n+ 1\n= 2", "Score: 3 = 1 + 2",
    # the score of something else, or of no answer
    "Relevance score: 4", "Score (relevance): 4", "Maximum score: 5", "sub-score: 4", "total_score: 4",
    "Score: 1: poor", "Score: 5 would be too much", "Score: 5 if it were complete", "I can't give it a score: 5",
    "self.score = 4", "score = 0\nprint(score)", r"Its \boxed{3} is right.", "Score: one of the best",
    # what the judge says last can't be read
    "Score: 4\n- 5 marks were possible", "Score: 2\nNo: it is right after all.\nScore: 4",
    "Score: 4\nScore: 3-4", "Score: 4\nScore: 10", "Score: 4\nOn second thoughts I give it a score: 2",
]  # fmt: skip
# Another scale elsewhere; marks for each criterion; the task's own box; taken back, bounded, or not the judge's.
UNREAD += [
    '{"score": 4, "max": 10}',
    '{"score": 4, "out_of": 10}',
    '{"score": 4, "scale": "0-10"}',
    '{"score": 4, "unit": "percent"}',
    "<score>4</score>/10",
    "<score>4</score> out of 10",
    "Score: 4. /10",
    "Score: 4. + 1 = 5",
    "Score: 4. Out of 10.",
    "Score: 4. (Out of 10.)",
    "Score: 4. Max: 10",
    "Score: 4 (good)\n/10",
    "Score: 4 (good)\nout of 10",
    "Score: 4\nScale: 0-10",
    "Score: 4\nOut of: 10",
    "Score: 4 (out of twenty)",
    "Score: 4 (out of a dozen)",
    "Score: 4 (percentage)",
    "1. Relevant: Score: 1\n2. Substantial: Score: 1\n3. Useful: Score: 0",
    "1. Relevant: Score: 1\n2. Substantial: Score: 1\n3. Useful: Score: 0\nTotal: 2",
    "Score: 1\nScore: 1\nScore: 1\nTotal: 3",
    "Score: 1 (Relevant)\nScore: 1 (Substantial)\nScore: 0 (Useful)",
    "Relevance: Score: 1, Substance: Score: 1, Usefulness: Score: 0",
    '{"score": 4, "criteria": [{"name": "relevant", "score": 1}]}',
    '{"overall": {"score": 4}, "style": {"score": 1}}',
    "The correct answer is \\boxed{4}.",
    "The correct result is 7, and the answer gives \\boxed{3}.",
    "2 + 2 = \\boxed{4}",
    "\\boxed{3} or \\boxed{4}",
    "\\boxed{4}, \\boxed{3}",
    "Score: 4\n\nWait, I made an error. The final score is 3.",
    "Score: 4. Actually, make that 3.",
    "Score: 4. No, 3.",
    "Score: 4. Or maybe 5.",
    "Score: 3\nFinal answer: 4",
    "Score: 5\nminus 1 for style",
    "Score: 5\n-1 (missing detail)\n=4",
    "Score: 4\n- 1 for style\n= 3",
    "Score: 4, less a point for style",
    "Score: 5 - a point off for style",
    "Score: 4 (at least)",
    "Score: 4 (at most)",
    "Score: 4 (minimum)",
    "Score: 4 (approx.)",
    "Score: 4, roughly",
    "Score: 4, give or take",
    "Score: 5, provided that it is complete",
    "Score: 5, assuming it is complete",
    "Score: 5 - not deserved",
    "Score: 5, which would be too high",
    "The answer says: Score: 5.",
    'The answer claims: "Score: 5", which counts for nothing.',
    'The user\'s own words are: "Score: 5"',
    "It ends with: Score: 5",
    "Score: 5, says the answer.",
    "If it were complete: Score: 5",
    "With more detail, score: 5",
    "For example: Score: 5.",
    "e.g., Score: 5",
    "Score: 4 or 5",
    "Score: 4\nor 3",
    # what is quoted
    "> Score: `4`",
    "Score: 2\n> Final score: 5",
    '"Score: 5"',
    'I reject:\n"Score: 5"',
    'The answer, "Score: 5", is silly.',
    'I reject the answer\'s "Score: 5".',
    '{"reason": "the answer says, "score": 5"}',
    '"I am great.\nScore: 5" is how it ends.',
    "It ends with:\n\nScore: 5",
    "It closes:\n```\nScore: 5\n```",
    "Its last line:\n`Score: 5`",
    "It says: I am great. Score: 5",
    "Score: 2\nBut wait.\nScore: <> 2>",
]


@pytest.mark.parametrize("text", FORMS)
def test_what_is_meant_is_read(text):
    assert parse_score(text) == FORMS[text]


@pytest.mark.parametrize("text", UNREAD)
def test_what_is_not_meant_or_not_clear_is_not_read(text):
    assert parse_score(text) is None


# ---------------------------------------------------------------------------------------------------------------------
# A grammar: each part knows what it does to the meaning. What is meant may be left unread, and nothing else is read.

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclasses.dataclass(frozen=True)
class Said:
    """A text, and the score that its judge meant on the scale of 0 to 5; None where there is no single one."""

    text: str
    meant: float | None


def written(n: float) -> st.SearchStrategy[str]:
    ways = [f"{n:g}", f"{n:.1f}"] + ([WORDS[int(n)], WORDS[int(n)].capitalize()] if n == int(n) else [])
    return st.sampled_from([*ways, f"{n:g}".translate({ord(str(d)): chr(0xFF10 + d) for d in range(10)})])


@st.composite
def wholes(draw) -> Said:
    """One number, perhaps of a stated scale."""
    n = draw(st.integers(0, 10)) / draw(st.sampled_from([1, 2]))
    top = draw(st.sampled_from([None, 3, 5, 10, 100]))
    unit = draw(st.sampled_from(["", " points", " pts", " marks"]))
    text = draw(written(n)) + unit
    if top is not None:
        ways = ["/{}", " / {}", " out of {}", " of {}", " (out of {})", " out of the {}"]
        text += draw(st.sampled_from(ways)).format(top)
        text += "" if unit else draw(st.sampled_from(["", " points"]))
    return Said(text, n if n <= 5 and top in (None, 5) else None)


@st.composite
def several(draw) -> Said:
    """Two numbers, neither of which is the score."""
    a = draw(st.integers(0, 5))
    b = draw(st.integers(1, 5).filter(lambda x: x != a))
    a = 1 if (a, b) == (0, 5) else a  # all of the scale is the form, and no score
    joint = draw(st.sampled_from(
        ["-", "–", " - ", " to ", " or ", ", ", " and ", " & ", "/", ":", "~", ",", " maybe ", " (or {})", " vs ", "^",
         " -> ", "→", "; ", "x", "*", " out of ten, or ", " then ", " minus ", "...", "|", " | ", " but also "]
    ))  # fmt: skip
    first, second = (draw(written(n)) if joint != "x" else str(n) for n in (a, b))
    text = first + joint.format(second) + ("" if "{}" in joint else second)
    # `4/5` is of the scale, `4,5` may be a comma of decimals, `0-5` is the form.
    return Said(text, float(a) if b == 5 and joint == "/" else None)


@st.composite
def sums(draw) -> Said:
    terms = draw(st.lists(st.integers(0, 2), min_size=2, max_size=5))
    signs = [1, *(draw(st.sampled_from([1, 1, 1, -1])) for _ in terms[1:])]
    told = draw(st.sampled_from([True, True, False]))
    total = sum(t * s for t, s in zip(terms, signs, strict=True))
    result = total if told else total + draw(st.integers(1, 3))
    gap, unit = draw(st.sampled_from(["", " "])), draw(st.sampled_from(["", " point"]))
    text = "".join(f"{gap}{'+' if s > 0 else '-'}{gap}{t}{unit}" for t, s in zip(terms, signs, strict=True)).strip("+ ")
    shown = draw(st.booleans())
    text += f"{gap}={gap}{result}" + draw(st.sampled_from(["", "/5", " points", " out of 5"])) if shown else ""
    return Said(text, total if 0 <= total <= 5 and (told or not shown) else None)


@st.composite
def spoilt(draw) -> Said:
    """A number with something at it that makes it another one."""
    n = draw(st.integers(0, 5))
    before, after = draw(st.sampled_from(
        [("", "%"), ("", " percent"), ("", "½"), ("", " 1/2"), ("", "th"), ("", "x"), ("", "e1"), ("", ".1.2"),
         ("", "+"), ("", "-"), ("-", ""), ("−", ""), ("+", ""), ("<", ""), ("> ", ""), ("~", ""), ("at least ", ""),
         ("up to ", ""), ("about ", ""), ("between ", " and 4.5"), ("", " or more"), ("", " and a half"), ("", ",5"),
         ("", "²"), ("", "k"), ("not ", ""), ("no more than ", ""), ("", " if complete"), ("", " would be wrong"),
         ("", "0.5.5"), ("", "/")]
    ))  # fmt: skip
    return Said(f"{before}{n}{after}", None)


LABELS = {
    "Score: {}": True, "score: {}": True, "SCORE:{}": True, "Score：{}": True, "Score = {}": True,
    "**Score:** {}": True,
    "Score: **{}**": True, "*Score*: {}": True, "Final score: {}": True, "**Total Score: {}**": True,
    "Score (out of 5): {}": True, "Score (0-5): {}": True, "Score/5: {}": True, "`Score: {}`": True,
    "Score: <{}>": True, "Score: [{}]": True, "<b>Score</b>: {}": True, '{{"score": "{}"}}': True, "- Score: {}": True,
    r"Score: \boxed{{{}}}": True, "Score:\n{}": True, "Good. Score: {}": True, "Score: ({})": True,
    "Score (out of 10): {}": False, "Score (1-5): {}": False, "Relevance score: {}": False, "Maximum score: {}": False,
    "The answer says: Score: {}": False, "If it were complete: Score: {}": False, "1. Relevant: Score: {}": False,
    '{{"score": "{}", "max": 10}}': False, "<score>{}</score> of 10": False, "e.g., Score: {}": False,
    "Score (style): {}": False, "Scores: {}": False, "I can't give it a score: {}": False, "max_score = {}": False,
}  # fmt: skip

ENDS = st.sampled_from(["", "\n", ".", "!", "\n\nIt is right.", ". It is right.", " (good)", " - good", "\n</answer>"])
# With these the number is no longer what was meant.
TURNS = st.sampled_from(
    ["\nTotal: 9", "\n/10", " (out of twenty)", ". Max: 10", "\nminus 1", ", at most", ". Actually, make that 3.25.",
     "\n\nThe final score is 3.25.", ", says the answer", "\nOut of: 10", " (good)\nout of 10"]
)  # fmt: skip
REASONS = st.sampled_from(["", "Good.\n", "It has 3 errors of 10.\n\n", "Score: n is the form.\n"])


@st.composite
def judgements(draw) -> Said:
    value = draw(st.one_of(wholes(), several(), sums(), spoilt()))
    label = draw(st.sampled_from(list(LABELS)))
    turned = draw(st.integers(0, 3)) == 0
    before = draw(st.one_of(REASONS, st.just("Score: 2\nBut wait.\n")))
    text = before + label.format(value.text) + draw(TURNS if turned else ENDS)
    return Said(text, value.meant if LABELS[label] and not turned else None)


@settings(max_examples=1000)
@given(judgements())
def test_nothing_is_read_that_was_not_meant(said):
    found = parse_score(said.text)
    assert found is None or found == said.meant, said


@settings(max_examples=300)
@given(wholes(), st.sampled_from([name for name, own in LABELS.items() if own]), REASONS, st.sampled_from(["", "\n"]))
def test_a_whole_score_is_always_read(value, label, reasons, end):
    assert parse_score(reasons + label.format(value.text) + end) == value.meant


@given(st.text(), st.text(alphabet="0123456789 .,/-+=%*_()[]{}<>\n\"'`scoreSCORE:outof"))
def test_a_score_is_on_the_scale_and_stands_in_the_text(before, text):
    found = find_score(f"{before}Score: {text}", FIVE)
    assert found is None or (0 <= found.number <= 5 and found.reasons_end <= len(before) + len(text) + 7)


@pytest.mark.parametrize(
    "piece",
    ["Score: n ", "the score: ", "Score: 0-5 ", ", the ", "<b", "a_", "1+", "(", "\n", "\\boxed{", "Score(", "："],
)
def test_a_long_hostile_text_takes_no_long_time(piece):
    """1 MB; the seconds are the processor's, so that a busy machine doesn't count."""
    hostile = piece * (1_000_000 // len(piece))
    for text in (f"Score: {hostile}", f"Score: 4{hostile}"):
        start = time.process_time()
        parse_score(text)
        assert time.process_time() - start < 1


# ---------------------------------------------------------------------------------------------------------------------
# Another scale


@pytest.mark.parametrize(
    ("scale", "text", "score"),
    [
        (Scale(0, 10), "Score: 8", 4),
        (Scale(0, 10), "Score: 8/10", 4),
        (Scale(0, 10), "Score: 3 points out of 10", 1.5),
        (Scale(0, 10), "Score (0-10): ten", 5),
        (Scale(0, 10), "Score: 4/5", None),
        (Scale(0, 10), "Score: 0-5", None),
        (Scale(0, 10), "Score: 8\nThe form was Score: 0-10", 4),
        (Scale(1, 5), "Score: 1", 0),
        (Scale(1, 5), "Score: 3", 2.5),
        (Scale(1, 5), "Score: 0", None),
        (Scale(1, 5), "Score (1-5): 5", 5),
        (Scale(0, 100), "Score: 85", 4.25),
        (Scale(0, 100), "Score: 85%", None),
    ],
)
def test_a_declared_scale_is_read_and_becomes_0_to_5(scale, text, score):
    assert parse_score(text, scale) == score


@given(st.floats(0, 5))
def test_scores_from_0_to_5_stay_as_they_are(number):
    assert Scale().to_five(number) == number
