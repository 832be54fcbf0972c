"""Compiling ahead, with a line that says what and how long; and a cache of compiled programs between processes."""

import contextlib
import hashlib
import os
import platform
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

from selfreward_jax.core.progress import say

SECONDS_BEFORE_A_WORD = 2.0


def compile_ahead(what: str, function, *args, **static) -> None:
    """Compiles a jitted function for these arguments, unless that was done before; `jax.jit` then finds it."""
    started = time.perf_counter()
    waiting = threading.Timer(SECONDS_BEFORE_A_WORD, say, [f"compiling {what} ..."])
    waiting.daemon = True
    waiting.start()
    try:
        function.lower(*args, **static).compile()
    finally:
        waiting.cancel()
    seconds = time.perf_counter() - started
    if seconds >= 0.5:
        say(f"compiled {what} in {seconds:.1f} s")


def cache_folder() -> Path:
    """In the user's cache, one folder for each kind of processor: what was compiled for one may not run on another."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    try:
        described = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    except (OSError, StopIteration):
        described = platform.processor()
    kind = hashlib.sha256(f"{platform.machine()} {described}".encode()).hexdigest()[:8]
    return root / "selfreward_jax" / f"xla-{kind}"


def keep_compiled_programs() -> None:
    """Turns JAX's cache between processes on, unless the user has chosen a folder for it or none at all."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or getattr(jax.config, "jax_compilation_cache_dir", None):
        return
    jax.config.update("jax_compilation_cache_dir", str(cache_folder()))


@contextlib.contextmanager
def compiled_anew() -> Iterator[None]:
    """Within it nothing is read from the cache nor kept: a program out of it has the names that it had when it was
    compiled, and one for a machine that isn't here can't be read back."""
    was = getattr(jax.config, "jax_enable_compilation_cache", True)
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # else whether it is used stays what it was found to be first
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", was)
        compilation_cache.reset_cache()
