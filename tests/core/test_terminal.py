"""What a model, a row or a path holds is shown by a terminal and never obeyed, wherever it is printed."""

import io
import os
import pty
import subprocess
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.progress import Progress
from rich.table import Table

from selfreward_jax import cli
from selfreward_jax.core import progress
from selfreward_jax.core.console import Terminal
from selfreward_jax.core.errors import one_line
from selfreward_jax.core.terminal import tell, visible

HOSTILE = (
    "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x1b]52;c;aGFja2Vk\x1b\\ \x1b[2J\x1b[H \x9b31m \x9d0;t\x9c \x1bPq\x1b\\"
    " over\rwritten er\x08\x7fased \x00\x0b\x0c \u202egpj.exe\u202c \u2066a\u2069 \u200e\u200f\u061c \ud800"
)


def is_harmless(text: str) -> bool:
    """Independent of the table that `visible` uses: by Unicode's categories."""
    bidi = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    return all(
        c in "\n\t" or (unicodedata.category(c) not in ("Cc", "Cs") and unicodedata.bidirectional(c) not in bidi)
        for c in text
    )


@given(st.text(st.characters(), max_size=200))
def test_no_control_character_is_left(text):
    assert is_harmless(visible(text)) and is_harmless(one_line(text)) and "\n" not in one_line(text)
    assert visible(visible(text)) == visible(text)


@given(st.text(st.characters(exclude_categories=["C"])))
def test_all_else_stays(text):
    assert visible(f"{text}\n\t") == f"{text}\n\t"


@pytest.mark.parametrize("cut", range(1, len(HOSTILE), 7))
def test_a_sequence_in_two_pieces_is_none_either(cut):
    assert is_harmless(visible(HOSTILE[:cut]) + visible(HOSTILE[cut:]))


def test_printed_text_is_shown():
    file = io.StringIO()
    tell(HOSTILE, file)
    assert is_harmless(file.getvalue()) and "red" in file.getvalue() and "\u241b[31m" in file.getvalue()


def test_lines_of_progress_are_shown(capsys):
    progress.say(HOSTILE)
    with progress.meter(HOSTILE, 2, unit=HOSTILE) as meter:
        meter.advance(2, 5, note=HOSTILE)
    assert is_harmless(capsys.readouterr().err)


def test_a_table_is_shown():
    file = io.StringIO()
    console = Terminal(file=file, width=2000)
    table = Table()
    table.add_column(HOSTILE)
    table.add_row(HOSTILE)
    console.print(table)
    console.print(HOSTILE, markup=False)
    said = file.getvalue()
    assert is_harmless(said) and said.count("\u241b[31mred") == 3


OWN = "\x1b["  # of a terminal's own styles and cursor, which a bar needs


def test_a_bar_on_a_terminal_obeys_its_own_sequences_only():
    file = io.StringIO()
    console = Terminal(file=file, force_terminal=True, width=200, color_system="truecolor")
    with Progress(console=console) as bar:
        bar.add_task("\x1b]0;title\x07\x9b31m\u202e", total=1)
    said = file.getvalue()
    assert OWN in said and not any(c in said for c in ("\x1b]", "\x07", "\x9b", "\u202e"))


@pytest.mark.parametrize(
    "words",
    [
        ["\x1b[31mverb\r"],
        ["report", "--workdir=no\x1b]0;t\x07\u202e\r\x08where"],
        ["score", "--model=m", "--input=no\x9b31m\x1b[2J", "--output=x.jsonl"],
        ["run", "--config=configs/quickstart.py", "--config.dpo.beta=\x1b[31m\x08"],
        ["chat", "--model=x", "--bad\x1b[31m=1"],
    ],
)
def test_an_error_is_one_line_that_is_shown(words, capsys):
    assert cli.main(words) == 2
    said = capsys.readouterr()
    assert is_harmless(said.err + said.out) and said.err.count("\n") == 1, said.err


def test_on_a_real_terminal_nothing_is_obeyed():
    """Standard output and standard error of another process are a pseudo-terminal."""
    code = (
        "from selfreward_jax.core.progress import say, meter\n"
        "from selfreward_jax.core.terminal import tell\n"
        f"h = {HOSTILE!r}\n"
        "say(h); tell(h)\n"
        "with meter(h, 1) as m: m.advance(1, 1, h)\n"
    )
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "300", "PYTHONIOENCODING": "utf-8", "JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    said = b""
    try:
        while part := os.read(ours, 65536):
            said += part
    except OSError:  # its end on Linux
        pass
    assert process.wait(60) == 0, said
    text = said.decode()
    assert "red" in text and "\u241b]0;title\u2407" in text  # shown
    obeyed = ("\x1b]", "\x1b[31mred", "\x1b[H", "\x07", "\x08", "\x9b", "\u202e", "\u2066", "\x7f")
    assert not any(c in text for c in obeyed)
