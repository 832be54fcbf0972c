"""The program that renders chat templates, which strangers write, in a process of its own: see `core/rendering.py`.

It imports nothing of this package, so that it is there within a tenth of a second. What a template may use is what
transformers gives it (`transformers.utils.chat_template_utils`), in Jinja's sandbox.
"""

import contextlib
import functools
import json
import signal
import struct
import sys
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

LENGTH = struct.Struct("<Q")  # before each message, of which the rest is JSON
# A text has at most so many characters, and so many times those of its conversation more.
CHARACTERS, TIMES = 1 << 20, 16


class Generation(jinja2.ext.Extension):
    """`{% generation %}`, which marks an assistant's tokens for a loss of transformers' and writes nothing."""

    tags = {"generation"}

    def parse(self, parser):
        place = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=place)


def _refuse(message):
    raise jinja2.TemplateError(message)


def _tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    """Unlike Jinja's own, it leaves `<` and `>` as they are."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@functools.lru_cache(maxsize=64)
def _compiled(source: str) -> jinja2.Template:
    made = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    made.filters["tojson"] = _tojson
    made.globals["raise_exception"] = _refuse
    return made.from_string(source)


def _written(source: str, shared: dict[str, Any], messages: list[dict[str, str]]) -> str:
    """A conversation as the template writes it.

    Raises:
      ValueError: it can't, or writes too much.
    """
    try:
        text = _compiled(source).render(**shared, messages=messages)
    except MemoryError:
        raise ValueError("it needs too much memory") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except Exception as error:  # templates raise their own exceptions
        raise ValueError(str(error)[:1000] or type(error).__name__) from None
    if len(text) > CHARACTERS + TIMES * sum(len(m["content"]) for m in messages):
        raise ValueError(f"it writes {len(text):,} characters")
    return text


def _answer(source: str, shared: dict[str, Any], conversations: list[Any], seconds: float) -> dict[str, Any]:
    texts = []
    for messages in conversations:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            texts.append(_written(source, shared, messages))
        except ValueError as error:
            return {"texts": texts, "error": str(error)}
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    return {"texts": texts}


def main(seconds: float, bytes_: int) -> None:
    """Answers messages until there are no more.

    Args:
      seconds: of processor time for a conversation, after which the kernel ends the process.
      bytes_: of memory for all.
    """
    with contextlib.suppress(ImportError, ValueError, OSError):  # not every system has these limits
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (bytes_, bytes_))
    for number in (signal.SIGTERM, signal.SIGINT):  # sent to all processes of a job; this one ends with its input
        signal.signal(number, signal.SIG_IGN)
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    while len(head := source.read(LENGTH.size)) == LENGTH.size:
        asked = json.loads(source.read(LENGTH.unpack(head)[0]))
        answer = json.dumps(_answer(**asked, seconds=seconds)).encode()
        sink.write(LENGTH.pack(len(answer)) + answer)
        sink.flush()


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
