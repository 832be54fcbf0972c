"""Two processes on this machine that find one another."""

import socket
import subprocess
from collections.abc import Callable

from tests import tiny


def environments(count: int = 2) -> list[dict[str, str]]:
    """Of processes that find one another on this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = tiny.environment() | {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": str(count)}
    return [shared | {"JAX_PROCESS_ID": str(n)} for n in range(count)]


def together(
    words: list[str],
    given: str = "",
    *,
    meanwhile: Callable[[list[subprocess.Popen]], None] = lambda _: None,
    status: int | list[int] = 0,
) -> list[subprocess.CompletedProcess[str]]:
    """Runs the same command in two processes; neither may be waited for alone.

    Args:
      meanwhile: what to do to them at work.
      status: with which both end, or each.
    """
    started = [
        subprocess.Popen(
            words, cwd=tiny.ROOT, env=env, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for env in environments()
    ]  # fmt: skip
    try:
        for process in started:
            assert process.stdin
            process.stdin.write(given)
            process.stdin.close()
            process.stdin = None
        meanwhile(started)
        ended = []
        for process in started:
            out, err = process.communicate(timeout=240)
            ended.append(subprocess.CompletedProcess(words, process.returncode, out, err))
    finally:
        for process in started:
            process.kill()
    statuses = [status] * len(ended) if isinstance(status, int) else status
    for process, wanted in zip(ended, statuses, strict=True):
        assert process.returncode == wanted, process.stderr[-3000:]
    return ended
