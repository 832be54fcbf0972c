"""The marker `torch`: tests of what `SELFREWARD_TEST_TORCH=1 bash launch/test.sh` installs beside the rest.

`@pytest.mark.torch("trl", "peft")` names the packages that a test imports; without names it is torch alone. Where
one is missing, the test is skipped. With SELFREWARD_TEST_TORCH=1 nothing marked may be skipped, whatever the reason: a
claim that nobody checks is a failure.
"""

import importlib.util
import os

import pytest

REQUIRED = bool(os.environ.get("SELFREWARD_TEST_TORCH"))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "torch(*packages): needs what SELFREWARD_TEST_TORCH=1 installs (tests/extras.py)"
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    names = {name for mark in item.iter_markers("torch") for name in mark.args or ("torch",)}
    if not REQUIRED and (missing := sorted(name for name in names if importlib.util.find_spec(name) is None)):
        pytest.skip(f"not installed: {', '.join(missing)} (SELFREWARD_TEST_TORCH=1 bash launch/test.sh)")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    report = yield
    return refused(report) if REQUIRED and item.get_closest_marker("torch") else report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report():
    """Modules whose imports are missing: of them no test is known, so none is deselected either."""
    report = yield
    return refused(report) if REQUIRED else report


def refused(report):
    """A skip as the failure that it is."""
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome, report.longrepr = "failed", f"what SELFREWARD_TEST_TORCH=1 must check was left out: {reason}"
    return report
