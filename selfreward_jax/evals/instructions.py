"""Whether a response does what it was told: a verifier for each of the 25 kinds of instructions of IFEval.

Zhou et al. 2023, "Instruction-Following Evaluation for Large Language Models" (arXiv 2311.07911). What counts as a
word, a bullet or a paragraph follows the behaviour of the authors' programme, so that accuracies can be compared;
sentences are told apart by NLTK's Punkt with a list of abbreviations instead of its trained model, which isn't a part
of the package and would have to be downloaded.

That programme, as `lm_eval.tasks.ifeval`, doesn't take the place of this one: it downloads that model when imported,
and where an argument is missing, 0 or empty it draws another at random. A test compares the verdicts of all 25 kinds.
"""

import functools
import importlib.util
import inspect
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nltk.tokenize import NLTKWordTokenizer
from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

from selfreward_jax.core.errors import UserError, did_you_mean

RELATIONS: dict[str, Callable[[int, int], bool]] = {
    "at least": lambda found, wanted: found >= wanted,
    "less than": lambda found, wanted: found < wanted,
}
ABBREVIATIONS = (
    "dr", "mr", "mrs", "ms", "prof", "sr", "jr", "st", "vs", "etc", "e.g", "i.e", "inc", "ltd", "co", "corp", "no",
    "vol", "fig", "gen", "gov", "sen", "rep", "u.s", "u.k", "a.m", "p.m", "ph.d", "d.c",
)  # fmt: skip
CHOICES = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


def _compare(found: int, relation: str, wanted: int) -> bool:
    return RELATIONS[relation](found, wanted)


# ---------------------------------------------------------------------------------------------------------------------
# Words


def _existence(text: str, keywords: Sequence[str]) -> bool:
    return all(word.strip().lower() in text.lower() for word in keywords)


def _forbidden_words(text: str, forbidden_words: Sequence[str]) -> bool:
    return not any(re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) for word in forbidden_words)


def _frequency(text: str, keyword: str, relation: str, frequency: int) -> bool:
    return _compare(text.lower().count(keyword.strip().lower()), relation, frequency)


def _letter_frequency(text: str, letter: str, let_relation: str, let_frequency: int) -> bool:
    return _compare(text.lower().count(letter.lower()), let_relation, let_frequency)


# ---------------------------------------------------------------------------------------------------------------------
# Language and case


def language_of(text: str) -> str | None:
    """ISO 639-1 code by langdetect, the same for the same text; None for a text without letters."""
    import langdetect  # pyright: ignore[reportMissingImports]

    langdetect.DetectorFactory.seed = 0  # it draws at random
    try:
        return langdetect.detect(text)
    except langdetect.LangDetectException:
        return None


def _response_language(text: str, language: str) -> bool:
    return language_of(text) in (language, None)


def _english_capital(text: str) -> bool:
    return text.isupper() and language_of(text) in ("en", None)


def _english_lowercase(text: str) -> bool:
    return text.islower() and language_of(text) in ("en", None)


def _capital_word_frequency(text: str, capital_relation: str, capital_frequency: int) -> bool:
    words = [word for sentence in _sentences().tokenize(text) for word in NLTKWordTokenizer().tokenize(sentence)]
    return _compare(sum(word.isupper() for word in words), capital_relation, capital_frequency)


# ---------------------------------------------------------------------------------------------------------------------
# Length


@functools.cache
def _sentences() -> PunktSentenceTokenizer:
    known = PunktParameters()
    known.abbrev_types = set(ABBREVIATIONS)
    return PunktSentenceTokenizer(known)


def _number_sentences(text: str, num_sentences: int, relation: str) -> bool:
    return _compare(len(_sentences().tokenize(text)), relation, num_sentences)


def _number_words(text: str, num_words: int, relation: str) -> bool:
    return _compare(len(re.findall(r"\w+", text)), relation, num_words)


def _number_paragraphs(text: str, num_paragraphs: int) -> bool:
    """Paragraphs between `***`; only before the first and after the last may there be nothing."""
    first, *between = (part.strip() for part in re.split(r"\s?\*{3}\s?", text))
    last = between.pop() if between else first
    if not all(between):
        return False
    ends = [first, last] if text.count("***") else [first]
    return len(between) + sum(map(bool, ends)) == num_paragraphs


def _nth_paragraph_first_word(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Paragraphs between blank lines: how many, and the word that one of them begins with."""
    parts = text.split("\n\n")
    if sum(bool(part.strip()) for part in parts) != num_paragraphs or nth_paragraph > num_paragraphs:
        return False
    words = parts[nth_paragraph - 1].split()
    if not words:
        return False
    return re.split(r"[.,?!'\"]", words[0].lstrip("'").lstrip('"'))[0].lower() == first_word.lower()


# ---------------------------------------------------------------------------------------------------------------------
# Content and format


def _number_placeholders(text: str, num_placeholders: int) -> bool:
    found = 0
    for line in text.split("\n"):  # as `\[.*?\]` finds them, in linear time
        start = line.find("[")
        while start >= 0 and (end := line.find("]", start)) >= 0:
            found, start = found + 1, line.find("[", end)
    return found >= num_placeholders


def _postscript(text: str, postscript_marker: str) -> bool:
    marker = postscript_marker.strip()
    known = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    return bool(re.search(known.get(marker, re.escape(marker.lower())), text.lower()))


def _number_bullet_lists(text: str, num_bullets: int) -> bool:
    stars = re.findall(r"^[^\S\n]*+\*[^*].*$", text, re.MULTILINE)
    return len(stars) + len(re.findall(r"^[^\S\n]*+-.*$", text, re.MULTILINE)) == num_bullets


def _constrained_response(text: str) -> bool:
    return any(choice in text for choice in CHOICES)


def _number_highlighted_sections(text: str, num_highlights: int) -> bool:
    """Text between single and between double asterisks; what stands between double ones counts twice if both match."""
    found = [*re.findall(r"\*([^\n*]*)\*", text), *re.findall(r"\*\*([^\n*]*)\*\*", text)]
    return sum(bool(section.strip()) for section in found) >= num_highlights


def _multiple_sections(text: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"{re.escape(section_spliter.strip())}\s?\d+", text)) >= num_sections


def _json_format(text: str) -> bool:
    inner = text.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        inner = inner.removeprefix(fence)
    try:
        json.loads(inner.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def _title(text: str) -> bool:
    for line in text.split("\n"):  # as `<<[^\n]+>>` finds them, in linear time
        start, end = line.find("<<"), line.rfind(">>")
        if 0 <= start < end - 2 and line[start : end + 2].lstrip("<").rstrip(">").strip():
            return True
    return False


# ---------------------------------------------------------------------------------------------------------------------
# Whole responses


def _two_responses(text: str) -> bool:
    """Two that differ, with `******` between them, and perhaps before and after them."""
    parts = [part.strip() for part in text.split("*" * 6)]
    if not all(parts[1:-1]):
        return False
    answers = [part for part in parts if part]
    return len(answers) == 2 and answers[0] != answers[1]


def _repeat_prompt(text: str, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def _end_checker(text: str, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def _quotation(text: str) -> bool:
    inner = text.strip()
    return len(inner) > 1 and inner[0] == inner[-1] == '"'


def _no_comma(text: str) -> bool:
    return "," not in text


VERIFIERS: dict[str, Callable[..., bool]] = {
    "keywords:existence": _existence,
    "keywords:forbidden_words": _forbidden_words,
    "keywords:frequency": _frequency,
    "keywords:letter_frequency": _letter_frequency,
    "language:response_language": _response_language,
    "change_case:capital_word_frequency": _capital_word_frequency,
    "change_case:english_capital": _english_capital,
    "change_case:english_lowercase": _english_lowercase,
    "length_constraints:number_sentences": _number_sentences,
    "length_constraints:number_words": _number_words,
    "length_constraints:number_paragraphs": _number_paragraphs,
    "length_constraints:nth_paragraph_first_word": _nth_paragraph_first_word,
    "detectable_content:number_placeholders": _number_placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _number_bullet_lists,
    "detectable_format:constrained_response": _constrained_response,
    "detectable_format:number_highlighted_sections": _number_highlighted_sections,
    "detectable_format:multiple_sections": _multiple_sections,
    "detectable_format:json_format": _json_format,
    "detectable_format:title": _title,
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": _repeat_prompt,
    "startend:end_checker": _end_checker,
    "startend:quotation": _quotation,
    "punctuation:no_comma": _no_comma,
}
NEED_LANGDETECT = {_response_language, _english_capital, _english_lowercase}


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_count(value: object) -> bool:
    """Also 300.0: pandas makes a column of whole numbers and nulls one of floats. True and false are no numbers."""
    return (type(value) is int or (type(value) is float and value.is_integer())) and value >= 0


TEXT = (_is_text, "text that is not empty")
COUNT = (_is_count, "a whole number, 0 or more, as a number and not as text")
WORDS = (lambda x: isinstance(x, list) and bool(x) and all(map(_is_text, x)), "a list of texts that are not empty")
RELATION = (lambda x: isinstance(x, str) and x in RELATIONS, " or ".join(map(repr, RELATIONS)))
# What each argument must be; else a response would be judged by something that nobody asked for.
ARGUMENTS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("keywords", "forbidden_words"), WORDS),
    **dict.fromkeys(("relation", "let_relation", "capital_relation"), RELATION),
    **dict.fromkeys(("keyword", "first_word", "postscript_marker", "section_spliter"), TEXT),
    **dict.fromkeys(("prompt_to_repeat", "end_phrase"), TEXT),
    **dict.fromkeys(("frequency", "let_frequency", "capital_frequency", "num_words", "num_sentences"), COUNT),
    **dict.fromkeys(("num_paragraphs", "num_placeholders", "num_bullets", "num_highlights", "num_sections"), COUNT),
    "nth_paragraph": (lambda x: _is_count(x) and x > 0, "a whole number from 1, as a number and not as text"),
    "letter": (lambda x: _is_text(x) and len(x) == 1, "one letter or sign"),
    "language": (lambda x: isinstance(x, str) and x in _languages(), "a language that langdetect knows, such as 'de'"),
}


@functools.cache
def _languages() -> frozenset[str]:
    from langdetect.detector_factory import PROFILES_DIRECTORY  # pyright: ignore[reportMissingImports]

    return frozenset(os.listdir(PROFILES_DIRECTORY))


def check_instruction(kind: str, arguments: Mapping[str, Any]) -> None:
    """Whether an instruction can be verified at all.

    Raises:
      ValueError: an unknown kind, or arguments that don't belong to it, are missing, or are of another type.
      UserError: langdetect is needed and not installed.
    """
    if not isinstance(kind, str) or kind not in VERIFIERS:
        raise ValueError(f"no kind of instruction {kind!r}.{did_you_mean(str(kind), VERIFIERS)}")
    try:
        inspect.signature(VERIFIERS[kind]).bind("", **arguments)
    except TypeError as error:
        raise ValueError(f"{kind}: {error}") from None
    if VERIFIERS[kind] in NEED_LANGDETECT and importlib.util.find_spec("langdetect") is None:
        raise UserError(f"{kind}: telling languages apart needs langdetect; pip install 'langdetect>=1.0.9'.")
    for name, value in arguments.items():
        fits, wanted = ARGUMENTS[name]
        if not fits(value):
            raise ValueError(f"{kind}: {name} must be {wanted}; it is {json.dumps(value)[:80]}")


def follows(kind: str, arguments: Mapping[str, Any], response: str) -> bool:
    """Whether a response follows an instruction; an empty one follows none."""
    whole = {name: int(value) if type(value) is float else value for name, value in arguments.items()}
    return bool(response.strip()) and VERIFIERS[kind](response, **whole)
