"""Tables, bars and lines by rich, of which text of models, rows and paths can make no more than text."""

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from selfreward_jax.core.terminal import visible


class Terminal(Console):
    """A console that shows all it is given, tables too, and obeys nothing but its own styles."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)
