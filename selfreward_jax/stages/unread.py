"""A judge of which nothing can be read is stopped before it has talked for hours, and its first outputs are shown."""

from collections.abc import Callable, Sequence

from selfreward_jax.core.errors import UserError, shorten
from selfreward_jax.core.rows import Row

GIVE_UP_AFTER = 100  # outputs of which none can be read: a judge that is read one time in twenty gets here in 1 of 170
SHOWN, SHOWN_CHARACTERS = 3, 160


class Watch:
    """Sees a judge's outputs as they come, and ends its work once the first `GIVE_UP_AFTER` of them say nothing."""

    def __init__(self, field: str, refuse: Callable[[Sequence[Row]], UserError]):
        """Args: field: of a row, None where nothing could be read. refuse: the error that tells of such rows."""
        self._field, self._refuse = field, refuse
        self._unread: list[Row] | None = []

    def __call__(self, row: Row) -> None:
        if self._unread is None or row[self._field] is not None:
            self._unread = None
            return
        self._unread.append(row)
        if len(self._unread) >= GIVE_UP_AFTER:
            raise self._refuse(self._unread)


def first_outputs(rows: Sequence[Row]) -> str:
    """Of such a judge, for a message; and how many were cut, which may be why."""
    cut = sum(row["stop_reason"] == "length" for row in rows)
    told = f" ({cut} were cut by config.judge.max_new_tokens)" if cut else ""
    return "; ".join(shorten(row["text"], SHOWN_CHARACTERS) for row in rows[:SHOWN]) + told
