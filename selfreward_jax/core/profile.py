"""A few steps of a stage, traced by JAX's profiler: what ran on the devices and on the host, and how long it took."""

import contextlib
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax
from etils import epath

from selfreward_jax.core.hosts import is_writer
from selfreward_jax.core.progress import say
from selfreward_jax.core.store import is_local

PERFETTO = "perfetto_trace.json.gz"

Window = tuple[int, int]  # the first step that is traced, counted from 1 in this session, and how many are


class Tracer:
    """Traces those steps of one stage that are asked for; of several processes, the first does.

    As a context manager it ends what is left when the stage ends. Names of steps, and what of a program has a name
    (`jax.named_scope`), are found in the trace.
    """

    def __init__(self, folder: epath.Path | None = None, window: Window | None = None):
        """Traces nothing without a window."""
        self._folder = folder
        self._window = window if folder is not None and is_writer() else None
        self._step = 0
        self._session: Path | None = None
        self._trace: epath.Path | None = None  # what was written

    def __enter__(self) -> "Tracer":
        return self

    def __exit__(self, *error) -> None:
        self._stop()
        if self._trace:
            say(f"profile: {self._trace} (open it at https://ui.perfetto.dev), or: xprof --logdir={self._folder}")
        elif self._window and self._step:
            first, count = self._window
            say(
                f"profile: only {self._step} steps, so none from {first} on was traced; --profile=1:{count} traces them"
            )

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """One step, whose name and number the trace shows."""
        self._step += 1
        if self._window and self._step == self._window[0]:
            self._start()
        try:
            with jax.profiler.StepTraceAnnotation(name, step_num=self._step):
                yield
        finally:
            if self._window and self._step == sum(self._window) - 1:
                self._stop()

    def steps(self, name: str, numbers: Iterable[int]) -> Iterator[int]:
        """The same numbers; what is done with each is a step."""
        for number in numbers:
            with self.step(name):
                yield number

    def _start(self) -> None:
        assert self._folder is not None
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # each call of a Python function would hide what takes the time
        self._session = Path(self._folder) if is_local(self._folder) else Path(tempfile.mkdtemp())
        self._session.mkdir(parents=True, exist_ok=True)
        jax.profiler.start_trace(self._session, create_perfetto_trace=True, profiler_options=options)

    def _stop(self) -> None:
        if self._session is None or self._folder is None:
            return
        session, self._session = self._session, None
        jax.profiler.stop_trace()
        made = max(session.glob("plugins/profile/*"))
        if session != Path(self._folder):
            _upload(session, self._folder)
        self._trace = self._folder / made.relative_to(session).as_posix() / PERFETTO


def _upload(session: Path, folder: epath.Path) -> None:
    """To an object store, which the profiler can't write to."""
    for file in session.rglob("*"):
        if file.is_file():
            copy = folder / file.relative_to(session).as_posix()
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
