"""TRL, where it is installed (launch/test.sh, SELFREWARD_TEST_TORCH=1): whoever compares with it asks here."""

from typing import Any

import pytest


def trl() -> Any:
    """The package; the test is skipped where there is none."""
    return pytest.importorskip("trl")
