"""What a text would do to a reader's eye is shown by name."""

import pytest

from selfreward_jax.report.text import visible


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("a\u061cb", "a[U+061C]b"),
        ("a\x85b\x9bc", "a[U+0085]b[U+009B]c"),
        ("a\x00\x7f", "a\u2400\u2421"),
        ("a\r\nb\t", "a\nb\t"),
    ],
)
def test_controls_and_marks_of_direction_are_named(given, shown):
    assert visible(given) == shown
