"""What reads text of models and strangers takes time in proportion to it: no expression goes over it again and again.

Each function gets hostile texts of 50,000 characters, on which a quadratic one takes up to 2.5 * 10^9 steps.
"""

import contextlib
import functools
import time

import pytest

from selfreward_jax.core import forms, readers, texts
from selfreward_jax.core.errors import UserError
from selfreward_jax.core.tokens import neutralise
from selfreward_jax.evals import mt_bench
from selfreward_jax.evals.ifeval import variants
from selfreward_jax.evals.instructions import NEED_LANGDETECT, VERIFIERS
from selfreward_jax.methods import judging, pairwise, quotes, score_forms, self_instruct, template_files
from selfreward_jax.report import card
from selfreward_jax.report import text as shown
from selfreward_jax.verbs import evals
from tests.evals.test_ifeval import CASES

LONG, SECONDS = 50_000, 1.5
PIECES = [
    " ", "\n", "\t", "\r", "5", "5 ", "a", "a ", "A. ", ".", '"', "'", "' ", "`", "*", "* ", "**", "*\n", " *a",
    "_", "-", "\n-", "[", "[[", "[ ", "]", "[[A]]", "[[5", "[5", "{", "{{", "{{ ", "{{prompt", "(", "<", "</",
    "< ", "<<", "<<a", "<answer", ">>", "\\", "\\a", "\\boxed{", "\\boxed{5}", "score", "score ", "Score: 5\n",
    "Score: ", "Score(", "the score: ", "Score: 5. ", "Score: 0-5 ", ". The ", "1+", "1. ", "5/",
    "Verdict: A\n", "Verdict: ", "verdict ", "it says: ", "it ", "says the ", "is ", "not ", '"a": ', "“", "＜",
    "：", "٥",
    "\u200b", "\u2028", "Task ", " Task 1", "\n\n", "Human:", "\n\nHuman:", "\n<extra_id_1>User\n", "P. ", "p.",
    "Section ", "Section 1", "models--", "a--", "a/", "-1", "1e", "www.", "\r\n", "***", "******", "```",
    "```json",
]  # fmt: skip

# NLTK's splitting is linear, with a large constant: 2 s for 100,000 characters.
OF_NLTK = ("change_case:capital_word_frequency", "length_constraints:number_sentences")

ASKED = [{"role": "user", "content": "What is bread?"}]
QUESTION = mt_bench.Question(1, "writing", ("What is bread?", "And?"))


def in_quotation_everywhere(text: str) -> None:
    quotes.in_quotation(text, len(text))
    quotes.unclosed(text)
    quotes.says(text)


READERS = {
    "score": judging.parse_score,
    "score, after its label": lambda text: judging.parse_score(f"Score: 4{text}"),
    "score, before its value": lambda text: judging.parse_score(f"Score:{text}5"),
    "score, behind a text": lambda text: judging.parse_score(f"{text}\nScore: 5"),
    "judge's question": lambda text: judging.JudgeTemplate().messages(ASKED, text),
    "judge's scale": lambda text: judging._declared(f"{{{{scale{text}x}}}}", "t"),
    "score's form": lambda text: score_forms._shows_form(text, 0, score_forms.FIVE),
    "verdict": pairwise.parse_verdict,
    "verdict, last": lambda text: pairwise.parse_verdict(f"{text}\nVerdict: [[A]]{text}"),
    "pairwise question": lambda text: pairwise.PairwiseTemplate().messages(ASKED, text, text),
    "mark": mt_bench.parse_mark,
    "grading question": lambda text: mt_bench.grading_prompt(QUESTION, [text], 1),
    "quotation": in_quotation_everywhere,
    "template": lambda text: template_files.tags_of(text) and template_files.fill(text, {"prompt": "x"}),
    "control tokens": lambda text: neutralise(text, ["<|im_end|>", "</s>", "[INST]"]),
    "new prompt": self_instruct.first_item,
    "prompt's words": lambda text: self_instruct._folded(text) + " ".join(self_instruct._rouge_words(text)),
    "loose texts": variants,
    "conversation": lambda text: forms._written_turns(text, prompt=False),
    "prompt as a conversation": lambda text: forms._written_turns(text, prompt=True),
    "conversation, begun": lambda text: forms._written_turns(f"Human: {text}\n\nAssistant:", prompt=True),
    "cell of a table": readers._kind,
    "file's name": texts.form_of,
    "report's text": lambda text: shown.shorten(shown.visible(text), 200),
    "card's text": card.markdown,
    "folder's name": evals.safe_name,
} | {
    f"{kind} {n}": functools.partial(VERIFIERS[kind], **arguments)
    for n, (kind, arguments, *_) in enumerate(CASES)
    if VERIFIERS[kind] not in NEED_LANGDETECT
}  # fmt: skip


@pytest.mark.parametrize("name", READERS)
def test_time_grows_as_the_text(name):
    """The seconds are the processor's, so that a busy machine doesn't count."""
    long = LONG // 10 if name.partition(" ")[0] in OF_NLTK else LONG
    for n, piece in enumerate(PIECES):
        hostile = piece * (long // len(piece)) + "x" * (n % 2)
        start = time.process_time()
        with contextlib.suppress(ValueError, UserError):  # refused, which is well
            READERS[name](hostile)
        taken = time.process_time() - start
        assert taken < SECONDS, f"{taken:.1f} s for {long} characters of {piece!r}"
