"""Chat templates are programs of strangers, and are run as such: in a process of its own, with limits.

A template can't read a file or reach the network (Jinja's sandbox), but it can count to 10^12 or double a string forty
times. So one process renders for all templates, with half a second of processor time for each conversation and a
bounded memory; what goes beyond is ended by the kernel, and the next conversation gets a new process.
"""

import atexit
import contextlib
import functools
import json
import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from selfreward_jax.core.interrupt import at_once

# What templates do takes some ten microseconds a conversation, and some milliseconds the first time.
SECONDS, BYTES = 0.5, 1 << 30
TOGETHER = 64  # conversations in one message to the process, which takes as long as rendering two
TOO_LONG = f"it takes more than {SECONDS:g} s of processor time"
_LENGTH = struct.Struct("<Q")

Conversation = Sequence[Mapping[str, str]]


class TemplateError(Exception):
    """A template that can't render a conversation.

    Attributes:
      number: of the conversation.
    """

    def __init__(self, reason: str, number: int = 0):
        super().__init__(reason)
        self.number = number


class _Renderer:
    """The process, begun when it is first needed, and anew after its end or in a process that was forked."""

    def __init__(self):
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def render(self, source: str, shared: Mapping[str, Any], conversations: Sequence[Conversation]) -> list[str]:
        asked = {"source": source, "shared": dict(shared), "conversations": conversations}
        message = json.dumps(asked).encode()
        with self._lock, at_once():
            answer = self._ask(message)
            if "ended" in answer and TOO_LONG not in answer["ended"]:  # by another's hand perhaps
                answer = self._ask(message)
        if "ended" in answer and len(conversations) > 1:  # over one of them, but which?
            return [self._alone(source, shared, n, one) for n, one in enumerate(conversations)]
        if reason := answer.get("error") or answer.get("ended"):
            raise TemplateError(reason, len(answer.get("texts", [])))
        return answer["texts"]

    def _alone(self, source: str, shared: Mapping[str, Any], number: int, conversation: Conversation) -> str:
        try:
            return self.render(source, shared, [conversation])[0]
        except TemplateError as error:
            raise TemplateError(str(error), number) from None

    def _ask(self, message: bytes) -> dict[str, Any]:
        child = self._running()
        assert child.stdin and child.stdout
        try:
            child.stdin.write(_LENGTH.pack(len(message)) + message)
            child.stdin.flush()
            head = child.stdout.read(_LENGTH.size)
            size = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else 0
            body = child.stdout.read(size)
            body = body if len(body) == size else b""  # it was ended in the midst of it
        except BrokenPipeError:
            body = b""
        except BaseException:  # a stop: what the process says next would be taken for the next answer
            self.end()
            raise
        if body:
            return json.loads(body)
        ended = child.wait()
        self.end()
        if ended == -signal.SIGPROF:
            return {"ended": TOO_LONG}
        return {"ended": f"the process that renders it ended with status {ended}"}

    def _running(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._owner != os.getpid() or self._child.poll() is not None:
            program = os.path.join(os.path.dirname(__file__), "jinja_child.py")
            command = [sys.executable, "-P", program, str(SECONDS), str(BYTES)]
            # A session of its own: Ctrl-C is for this process, which ends that one.
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            self._owner = os.getpid()
        return self._child

    def end(self) -> None:
        child, self._child = self._child, None
        if child is not None and self._owner == os.getpid():
            child.kill()
            child.wait()
            for pipe in filter(None, (child.stdin, child.stdout)):
                with contextlib.suppress(OSError):  # what was not sent any more
                    pipe.close()


@functools.cache
def _renderer() -> _Renderer:
    made = _Renderer()
    atexit.register(made.end)
    return made


def render(source: str, shared: Mapping[str, Any], conversations: Sequence[Conversation]) -> list[str]:
    """What a Jinja template writes for each conversation.

    Args:
      shared: JSON values by name, beside `messages`.

    Raises:
      TemplateError: it raises an error of its own, or goes beyond a limit.
    """
    texts: list[str] = []
    for start in range(0, len(conversations), TOGETHER):
        try:
            texts += _renderer().render(source, shared, conversations[start : start + TOGETHER])
        except TemplateError as error:
            raise TemplateError(str(error), start + error.number) from None
    return texts
