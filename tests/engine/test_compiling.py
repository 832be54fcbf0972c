"""Programs are compiled once, with a word on what and how long, and kept for the next process."""

import contextlib

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from selfreward_jax.engine import compiling
from tests import tiny


@pytest.fixture
def slow(monkeypatch):
    """A clock by which every compilation takes three seconds."""
    ticks = iter(range(0, 10_000, 3))
    monkeypatch.setattr(compiling.time, "perf_counter", lambda: float(next(ticks)))


def test_what_was_compiled_ahead_is_not_compiled_again(slow, capfd, monkeypatch):
    traced = []

    @jax.jit
    def function(x):
        traced.append(x)
        return x + 1

    compiling.compile_ahead("a program", function, jnp.zeros(3))
    assert capfd.readouterr().err == "compiled a program in 3.0 s\n"
    assert len(traced) == 1
    assert function(jnp.zeros(3)).tolist() == [1, 1, 1]
    assert len(traced) == 1


def test_a_long_compilation_is_announced_before_it_ends(capfd, monkeypatch):
    class Slow:
        def lower(self):
            return self

        def compile(self):
            import time

            time.sleep(0.6)

    monkeypatch.setattr(compiling, "SECONDS_BEFORE_A_WORD", 0.1)
    compiling.compile_ahead("a program", Slow())
    first, second = capfd.readouterr().err.splitlines()
    assert first == "compiling a program ..." and second.startswith("compiled a program in 0.")


def test_the_cache_lies_in_the_users_cache_by_kind_of_processor(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = compiling.cache_folder()
    assert folder.parent == tmp_path / "selfreward_jax" and folder.name.startswith("xla-")
    assert folder == compiling.cache_folder()


@pytest.mark.slow
@pytest.mark.parametrize("own", [False, True], ids=["by default", "where the user wants it"])
def test_a_command_leaves_its_compiled_programs_for_the_next(own, tmp_path_factory, tmp_path, monkeypatch):
    data = tiny.shared_data(tmp_path_factory.getbasetemp())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    if own:
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "own"))
    tiny.write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "a", "response": "b"}])
    words = ["score", f"--model={data / 'model'}", f"--input={tmp_path / 'rows.jsonl'}", f"--output={tmp_path / 'out'}"]
    assert tiny.run_command(*words).returncode == 0
    assert any((tmp_path / "cache").rglob("*-cache")) != own
    assert any((tmp_path / "own").rglob("*-cache")) == own


def test_what_is_compiled_anew_is_not_kept(tmp_path):
    was = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    compilation_cache.reset_cache()
    try:
        for kept, how in ((False, compiling.compiled_anew()), (True, contextlib.nullcontext())):
            with how:
                jax.jit(lambda x: jnp.tanh(x) * 3).lower(jnp.ones(3)).compile()
            assert any(tmp_path.glob("*-cache")) == kept
    finally:
        jax.config.update("jax_compilation_cache_dir", was)
        compilation_cache.reset_cache()
