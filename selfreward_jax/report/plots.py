"""From a drawing with matplotlib to an SVG that stands inside a page.

Colours in it are the page's own (CSS variables), so that it follows a light or dark theme; text stays text. A panel is
small, so that several stand side by side on a wide screen and one below the other on a phone.
"""

import io
import re
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# Stand-ins, replaced by what the page calls them.
INK, MUTED, GRID, SURFACE = "#010203", "#010204", "#010205", "#010206"
WIN, TIE, LOSE = "#010207", "#010208", "#010209"
SERIES = tuple(f"#0203{n:02x}" for n in range(8))
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", SURFACE: "surface", WIN: "win", TIE: "tie", LOSE: "lose"}
_VARIABLES |= {stand_in: f"s{n}" for n, stand_in in enumerate(SERIES)}

WIDTH, HEIGHT = 3.6, 2.5  # inches

_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a dollar sign is a dollar sign
    "font.family": "DejaVu Sans",  # comes with matplotlib; the page puts its own in its place
    "font.size": 9,
    "text.color": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 2,
    "ytick.major.size": 0,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 1.4,
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-4, 5),
}


def color(name: str) -> str:
    """The colour of a model, the same in every figure: M0 the first, M1 the second, ..."""
    number = name.removeprefix("M")
    return SERIES[int(number) % len(SERIES)] if number.isdigit() else MUTED


def legend(ax: Axes, handles: Sequence[Artist] | None = None) -> None:
    """The key of a figure, below it, where it hides nothing."""
    figure = ax.figure
    shown = handles if handles is not None else ax.get_legend_handles_labels()[0]
    if shown:
        figure.legend(handles=shown, loc="outside lower center", ncols=6, columnspacing=1.2, borderpad=0)


def panel(name: str, draw: Callable[[Axes], None], *, width: float = WIDTH, height: float = HEIGHT) -> Markup:
    """One figure.

    Args:
      name: what it shows, for those who can't see it; also makes the ids inside it its own.
    """
    style: dict[Any, Any] = {**_STYLE, "svg.hashsalt": name}
    with matplotlib.rc_context(style):
        figure = Figure((width, height), layout="constrained", facecolor="none")
        FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return Markup(_inline(buffer.getvalue(), name))


def _inline(svg: str, name: str) -> str:
    """The drawing without what belongs to a file of its own."""
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    box = re.search(r'viewBox="([^"]*)"', svg)
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = (
        re.sub(r'<g id="(?!keep-)[^"]*"', "<g", body)
        .replace("xlink:href", "href")
        .replace("'DejaVu Sans'", "var(--font)")
    )
    body = re.sub(r"#[0-9a-f]{6}\b", lambda found: _variable(found[0]), body)
    body = re.sub(r"\n\s*", "\n", body)
    return f'<svg viewBox="{box[1] if box else ""}" role="img" aria-label="{escape(name)}">{body.strip()}'


def _variable(hex: str) -> str:
    return f"var(--{_VARIABLES[hex]})" if hex in _VARIABLES else hex


def with_titles(svg: Markup, group: str, titles: Sequence[str]) -> Markup:
    """Gives each mark of a group (its `gid`, which begins with `keep-`) a text that shows under the pointer."""
    start = svg.index(f'<g id="{group}"')
    end = svg.index("</g>\n</g>", start) if "</g>\n</g>" in svg[start:] else len(svg)
    left = iter(titles)
    marks = re.sub(
        r"(<use [^>]*?)/>", lambda m: f"{m[1]}><title>{escape(next(left))}</title></use>", str(svg[start:end])
    )
    assert next(left, None) is None, "a title for every mark"
    return svg[:start] + Markup(marks) + svg[end:]
