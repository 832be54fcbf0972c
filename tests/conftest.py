"""Eight simulated CPU devices for every test, and programs that compile in half the time; set before jax starts.

What one test or process has compiled, no other compiles again: all share a cache that is made and removed with the
run. Tests that need PyTorch, TRL, PEFT, lm-eval, langdetect or libtpu carry
`@pytest.mark.torch("PACKAGE", ...)`, and import them as they are: tests/extras.py says what follows.
"""

import atexit
import collections
import os
import shutil
import tempfile

import jaxlib.version

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"  # a test that means the hub serves one itself
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
        # The older emitters compile the tests' small programs sooner; a jaxlib without the flag would end the process.
        "--xla_cpu_use_fusion_emitters=false" if jaxlib.version.__version_info__ < (0, 11) else "",
    ]
)
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # in a worker it is: that of the process that started all
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="selfreward-tests-xla-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

from pathlib import Path

import pytest

from tests.extras import (  # noqa: F401
    pytest_configure,
    pytest_make_collect_report,
    pytest_runtest_makereport,
    pytest_runtest_setup,
)


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """A tiny model and data for it, made once for all workers. Only to be read."""
    from tests import tiny

    return tiny.shared_data(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A whole run of it. Only to be read."""
    from tests import tiny

    return tiny.shared_run(tmp_path_factory.getbasetemp())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules with the most slow tests first, so that no worker ends long after the others."""
    slow = collections.Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(scope="module", autouse=True)
def let_go_of_compiled_programs():
    """Each holds memory maps, and a process may have only so many: with those of all modules it would die."""
    yield
    import jax

    jax.clear_caches()
