"""Where a sample ends: a function of its tokens alone, whatever runs beside it and however often one looks.

Token by token, a sample ends with the first that is an end id, that completes a stop string, or that is the last one
allowed. A stop string counts where its text stands behind at least `min_new_tokens` whole tokens, and is taken away
with the token in which it begins, so that what is kept is tokens as they were drawn, and the text is theirs:
`text == decode(token_ids)`. The characters that this last token has before the stop string are in neither.
"""

import dataclasses
from collections.abc import Sequence

from selfreward_jax.core.tokens import Chat
from selfreward_jax.engine.sampling import SamplingSettings

_BROKEN = "\ufffd"  # what bytes that make no character are decoded to


@dataclasses.dataclass(frozen=True)
class End:
    """How a sample ended.

    Attributes:
      reason: `eos`, `stop` or `length`.
      drawn: tokens up to the one that ended it.
      kept: tokens of the sample: all those, with the end id; for `stop`, those before the token in which the string
        begins.
      rest: what that token has before the string.
    """

    reason: str
    drawn: int
    kept: int
    rest: str = ""


def find_end(chat: Chat, ids: Sequence[int], settings: SamplingSettings, before: int = 0) -> End | None:
    """The end of a sample of which `ids` are the first tokens; None while it goes on.

    Args:
      before: how many of them were looked at before, without an end; changes nothing but the work.
    """
    most = min(len(ids), settings.max_new_tokens)
    drawn = next((n for n in range(before + 1, most + 1) if ids[n - 1] in chat.eos_ids), most)
    if settings.stop and (end := _find_stop(chat, ids[:drawn], settings, before)):
        return end
    if drawn and ids[drawn - 1] in chat.eos_ids:
        return End("eos", drawn, drawn)
    return End("length", drawn, drawn) if drawn == settings.max_new_tokens else None


def _find_stop(chat: Chat, ids: Sequence[int], settings: SamplingSettings, before: int) -> End | None:
    """Decodes whole texts only where their last tokens leave it open whether there is a stop string."""
    stop, least = settings.stop, settings.min_new_tokens
    before = max(before, least)
    if len(ids) <= before:
        return None
    start = _far_enough(chat, ids, before, max(map(len, stop)))
    tail = chat.decode(ids[start:])
    # Text only grows, except that bytes may break those before them while they are incomplete.
    cut = 3 if start else 0  # of the character that the tail may begin within
    if _BROKEN not in tail[cut:] + "".join(stop) and not any(text in tail for text in stop):
        return None
    for n in range(before + 1, len(ids) + 1):
        tail = chat.decode(ids[start:n])
        # Some decoders break a whole run of bytes that is cut within a character.
        doubt = any(text in tail for text in stop) or tail.startswith(4 * _BROKEN)
        if doubt and (end := _stop_at(chat, ids[:n], stop, least)):
            return end
    return None


def _far_enough(chat: Chat, ids: Sequence[int], before: int, longest: int) -> int:
    """Where to begin decoding, so that a stop string of `longest` characters that is completed after `before` is whole.

    Four more characters make up for one cut in two, and for a blank that decoders take from the beginning of a text.
    """
    start, step = before, longest + 4
    while start and len(chat.decode(ids[start:before])) < longest + 4:
        start, step = max(0, start - step), 2 * step
    return start


def _stop_at(chat: Chat, ids: Sequence[int], stop: Sequence[str], least: int) -> End | None:
    """The first stop string in the text of `ids` with at least `least` whole tokens before it."""
    text = chat.decode(ids)
    first = len(chat.decode(ids[:least]).rstrip(_BROKEN))  # no text of more tokens is shorter
    for at in (at for at in range(first, len(text)) if text.startswith(tuple(stop), at)):
        for kept in range(len(ids) - 1, least - 1, -1):
            own = chat.decode(ids[:kept])
            if len(own) <= at and text.startswith(own):
                return End("stop", len(ids), kept, text[len(own) : at])
    return None
