"""A command that ends with status 2 and one line."""

from selfreward_jax import cli


def assert_refused(capsys, words: list[str], *expected: str) -> None:
    """The command ends with status 2 and one line that holds all that is expected."""
    assert cli.main(words) == 2
    # Errors that show only when tokens are counted come after lines of progress.
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("selfreward: ")]
    assert len(lines) == 1
    for text in expected:
        assert text in lines[0]


def assert_refused_at_once(capsys, words: list[str], *expected: str) -> None:
    """The same, and the line is all that is said."""
    assert cli.main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("selfreward: ")
    assert captured.err.endswith("\n")
    assert captured.err.count("\n") == 1
    for text in expected:
        assert text in captured.err
