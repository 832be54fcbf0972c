"""Regular expressions of strangers, which can take longer than the universe has: refused before they meet a text.

How long a matcher tries is read off the pattern's form. A repeated group in which something varies takes exponentially
many steps, unless there is one way only to cut a text into its rounds, or nothing stands behind it that could fail;
every open repetition in a row raises the power of the text's length by one; choices multiply. The patterns by which
models cut their texts, or by which adapters name matrices, have none of the first and few of the others.
"""

import functools
import math
import re

from selfreward_jax.core.errors import UserError, shorten

OPEN = 2  # open repetitions, one behind the other; three take a second on 200 blanks
WAYS = 10_000  # in which the choices can be made
LENGTH = 20_000  # characters; the longest known, which lists a script's letters, has some 3,000

_QUANTIFIER = re.compile(r"([*+?])[?+]?|\{(\d*)(,?)(\d*)\}\??")  # Oniguruma reads `{1,3}+` as `(?:{1,3})+`
_ESCAPE = re.compile(r"\\(?:[pPx]\{[^}]*\}|.)", re.DOTALL)
_GROUP = re.compile(r"\((?:\?(?:#[^)]*|<?[=!]|P?<[^>]*>|>|[imsaun-]*:|[imsaun-]+(?=\))))?")
_STRANGE = re.compile(r"\\[1-9kKgGQcCM]|\(\?[a-wyz-]*x[a-z-]*[:)]|\(\?(?:[#~(|@&R+\d]|P(?!<))")
# A round of one class, and a sign that isn't in it: `(?:\w+\.)`, `(?:\r?\n)`, `(,\d+)`. (A sign that has no cases, in a
# class that means the same to every library.)
_SIGN = r"(?:\\[nrt._\-/,:;]|[ ,:;_/\-\n\r\t])"
_MANY = rf"(\\[wdsWDS]|{_SIGN}|\[\^?(?:\\[wdsnrt.]|[\w .,:;/-])+\])(?:[*+?][+?]?|\{{[\d,]+\}})"
_ROUND = re.compile(rf"\((?:\?:)?(?:{_MANY}({_SIGN})|({_SIGN}){_MANY})\)")


def check_pattern(pattern: str, where: str, most: int = OPEN, whole: bool = False) -> float:
    """Raises `UserError` for a pattern that may take very long on some text, or that refers to what it has matched.

    Args:
      where: the file, for the message.
      most: how many open repetitions it may have in a row.
      whole: something has to follow what it matches, as the end of a text; else it is only searched for.

    Returns:
      How long it may take on the path of a matrix, beside a pattern that leaves nothing open.
    """
    strange = len(pattern) > LENGTH or _STRANGE.search(pattern) is not None
    # Whether a class can hold others depends on the library.
    costs = [] if strange else [_cost(pattern, nested, whole) for nested in (True, False)]
    if strange or any(opened > most or ways > WAYS for opened, ways in costs):
        raise UserError(f"{where}: the pattern {shorten(pattern)} could take very long on some text; it is not used.")
    return max(4**opened * (1 + ways / 20) for opened, ways in costs)


_Cost = tuple[float, float]  # the power of the text's length by which a match may take longer; and the factor
_ONE: _Cost = (0, 1)


def _cost(pattern: str, nested: bool, whole: bool) -> _Cost:
    # Of each open group: its branches before this one; of this branch all but its last atom; that.
    stack: list[tuple[_Cost, _Cost, _Cost]] = [((0, 0), _ONE, _ONE)]
    place, begin = 0, [0]  # begin: where the last atom of each open group does
    while place < len(pattern):
        branches, before, atom = stack.pop()
        found = _QUANTIFIER.match(pattern, place)
        if found and (found[1] or found[2] or found[4]):
            low, high = _times(found)
            repeated = _repeated(atom, low, high)
            place, last = found.end(), not stack and pattern[found.end() : found.end() + 1] in ("", "|")
            if repeated[0] == math.inf:
                text = pattern[begin[-1] : found.start()]
                if _one_way(text):
                    repeated = (1, 1)
                elif last and low <= 1 and not whole:  # all that may fail is the first round
                    rounds = text.count("(") > 1 or "|" in text
                    repeated = (atom[0] + 1 if rounds else max(atom[0], 1), atom[1])
            stack.append((branches, before, repeated))
            continue
        sign = pattern[place]
        if sign == ")" and stack:
            begin.pop()
            outer, earlier, _ = stack.pop()
            stack.append((outer, earlier, _either(branches, _both(before, atom))))
        elif sign == "|":
            stack.append((_either(branches, _both(before, atom)), _ONE, _ONE))
        else:
            begin[-1] = place
            stack.append((branches, _both(before, atom), _ONE))
        if sign == "(":
            begin.append(place)
            stack.append(((0, 0), _ONE, _ONE))
        place = _atom_end(pattern, place, nested)
    costs = [_either(branches, _both(before, atom)) for branches, before, atom in stack]
    return functools.reduce(_both, costs)


def _one_way(group: str) -> bool:
    """Whether rounds of a group end where its sign stands and nowhere else."""
    if not (found := _ROUND.fullmatch(group)):
        return False
    kind, sign = found[1] or found[4], found[2] or found[3]
    sign = {r"\n": "\n", r"\r": "\r", r"\t": "\t"}.get(sign, sign[-1])
    try:
        return re.fullmatch(kind, sign) is None
    except re.error:
        return False


def _both(one: _Cost, other: _Cost) -> _Cost:
    return one[0] + other[0], min(one[1] * other[1], 1e30)


def _either(one: _Cost, other: _Cost) -> _Cost:
    return max(one[0], other[0]), min(one[1] + other[1], 1e30)


def _atom_end(pattern: str, place: int, nested: bool) -> int:
    if pattern[place] == "[":
        return _class_end(pattern, place, nested)
    form = {"\\": _ESCAPE, "(": _GROUP}.get(pattern[place])
    found = form.match(pattern, place) if form else None
    return found.end() if found else place + 1


def _times(found: re.Match) -> tuple[float, float]:
    if found[1]:
        return {"*": (0, math.inf), "+": (1, math.inf), "?": (0, 1)}[found[1]]
    low = min(int(found[2][:9] or 0), 10**9)
    return low, (min(int(found[4][:9]), 10**9) if found[4] else math.inf if found[3] else low)


def _repeated(atom: _Cost, low: float, high: float) -> _Cost:
    if high > 16:  # as good as open
        varies = atom != _ONE
        return (math.inf, 1) if varies else (1, 1) if high > low else _ONE
    ways = min(atom[1], 1e15)  # whose 16th power is a number still
    return atom[0] * high if high else 0, min(sum(ways**n for n in range(int(low), int(high) + 1)), 1e30)


def _class_end(pattern: str, place: int, nested: bool) -> int:
    """Behind the `]` of a class, which may hold others; a `]` at its beginning is a sign like any other."""
    depth, at = 0, place
    while at < len(pattern):
        sign = pattern[at]
        if sign == "\\":
            at += 2
            continue
        if sign == "[" and (nested or not depth):
            depth += 1
            at += 1 + (pattern[at + 1 : at + 2] == "^")
            at += pattern[at : at + 1] == "]"
            continue
        at += 1
        if sign == "]":
            depth -= 1
            if depth == 0:
                return at
    return at
