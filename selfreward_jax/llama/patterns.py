"""Regular expressions of strangers, which can take longer than the universe has: refused before they meet a text.

How long a matcher tries is read off the pattern's form. A repeated group in which something varies takes exponentially
many steps; every open repetition in a row raises the power of the text's length by one; choices multiply. The patterns
by which models cut their texts, or by which adapters name matrices, have none of the first and few of the others.
"""

import functools
import math
import re

from selfreward_jax.core.errors import UserError, shorten

OPEN = 3  # open repetitions, one behind the other
WAYS = 10_000  # in which the choices can be made
LENGTH = 20_000  # characters; the longest known, which lists a script's letters, has some 3,000

_QUANTIFIER = re.compile(r"([*+?])[?+]?|\{(\d*)(,?)(\d*)\}\??")  # Oniguruma reads `{1,3}+` as `(?:{1,3})+`
_ESCAPE = re.compile(r"\\(?:[pPx]\{[^}]*\}|.)", re.DOTALL)
_GROUP = re.compile(r"\((?:\?(?:#[^)]*|<?[=!]|P?<[^>]*>|>|[imsaun-]*:|[imsaun-]+(?=\))))?")
_STRANGE = re.compile(r"\\[1-9kKgGQcCM]|\(\?[a-wyz-]*x[a-z-]*[:)]|\(\?[#~(|@&PR+\d]")


def check_pattern(pattern: str, where: str, most: int = OPEN) -> None:
    """Raises `UserError` for a pattern that may take very long on some text, or that refers to what it has matched.

    Args:
      where: the file, for the message.
      most: how many open repetitions it may have in a row.
    """
    strange = len(pattern) > LENGTH or _STRANGE.search(pattern) is not None
    # Whether a class can hold others depends on the library.
    if strange or any(opened > most or ways > WAYS for opened, ways in (_cost(pattern, True), _cost(pattern, False))):
        raise UserError(f"{where}: the pattern {shorten(pattern)} could take very long on some text; it is not used.")


_Cost = tuple[float, float]  # the power of the text's length by which a match may take longer; and the factor
_ONE: _Cost = (0, 1)


def _cost(pattern: str, nested: bool) -> _Cost:
    # Of each open group: its branches before this one; of this branch all but its last atom; that.
    stack: list[tuple[_Cost, _Cost, _Cost]] = [((0, 0), _ONE, _ONE)]
    place = 0
    while place < len(pattern):
        branches, before, atom = stack.pop()
        found = _QUANTIFIER.match(pattern, place)
        if found and (found[1] or found[2] or found[4]):
            stack.append((branches, before, _repeated(atom, *_times(found))))
            place = found.end()
            continue
        sign = pattern[place]
        if sign == ")" and stack:
            outer, earlier, _ = stack.pop()
            stack.append((outer, earlier, _either(branches, _both(before, atom))))
        elif sign == "|":
            stack.append((_either(branches, _both(before, atom)), _ONE, _ONE))
        else:
            stack.append((branches, _both(before, atom), _ONE))
        if sign == "(":
            stack.append(((0, 0), _ONE, _ONE))
        place = _atom_end(pattern, place, nested)
    costs = [_either(branches, _both(before, atom)) for branches, before, atom in stack]
    return functools.reduce(_both, costs)


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
