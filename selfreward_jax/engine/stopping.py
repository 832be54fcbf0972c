"""Stop strings: where the text of a sample first contains one of them."""

from collections.abc import Sequence

from selfreward_jax.core.tokens import Chat


def has_stop(chat: Chat, ids: Sequence[int], before: int, stop: Sequence[str]) -> bool:
    """Whether a stop string may have been completed by the tokens from `before` on; looks at the end alone."""
    reach = max(map(len, stop)) + 4  # a character takes up to four tokens, a stop string no more tokens than bytes
    tail = chat.decode(ids[max(0, before - 4 * reach) :])
    return any(text in tail for text in stop)


def cut_at_stop(chat: Chat, ids: Sequence[int], least: int, stop: Sequence[str]) -> tuple[int, str] | None:
    """The fewest tokens, at least `least`, whose text contains a stop string, and the text up to where it begins."""
    for count in range(least, len(ids) + 1):
        text = chat.decode(ids[:count])
        found = [at for at in (text.find(s) for s in stop) if at >= 0]
        if found:
            return count, text[: min(found)]
    return None
