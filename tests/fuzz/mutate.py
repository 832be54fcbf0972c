"""What is done to valid inputs: bytes, JSON values and words of a command line that somebody might really bring."""

import copy
import json
import random
from collections.abc import Sequence
from typing import Any

DEEP = 100_000  # brackets, more than any parser's stack
# As they stand in a file; `json.dumps` could not write all of them.
LITERALS = (
    b"null", b"true", b"false", b"0", b"-1", b"1.5", b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b"1e-999",
    b"1e" + b"9" * 400, b"9" * 5000, b"-" + b"9" * 400, b"9223372036854775808", b"2147483648", b'""', b'" "', b'"x"',
    b'"5"', b'"\\ud800"', b'"\\u0000"', b'"\\u001b[2J"', b'"a\\nb"', b"[]", b"{}", b"[[]]", b'["a"]', b"[1]",
    b"[null]", b'{"a": 1}', b'[{"role": "user"}]', b'[{"role": "x", "content": "y"}]', b"[" * DEEP, b'{"a":' * DEEP,
    b'[{"role": "user", "content": null}]', b'[{"role": 1, "content": 2}]', b'"' + b"x" * 100_000 + b'"', b"{1: 2}",
    b"01", b"'a'",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, 1.5, float("nan"), float("inf"), -float("inf"), 1e308, "", " ",
    "x", "5", "\ud800", "\x00", "\x1b[2J", "a\nb", "é" * 300, "../../x", [], {}, [[]], ["a"], [1], [None], [1.5],
    [2**40], {"a": 1}, {"": None}, [{"role": "user"}], [{"role": "x", "content": "y"}],
    [{"role": "user", "content": None}], [{"role": "user", "content": [{"type": "image"}]}],
)  # fmt: skip
CHUNKS = (
    b"", b"\x00", b"\xff", b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf", b"\r", b"\r\n", b"\n", b"\n\n", b"\xe2\x80\xa8",
    b"\x1b[31m", b"\xed\xa0\x80", b"\xc3", b'"', b"\\", b"\\u", b",", b",]", b"}", b"]", b"{", b"[", b":", b"\t", b";",
    b"{{", b"{%", b"}}", b"'", *LITERALS,
)  # fmt: skip
NUMBERS = (
    "nan", "inf", "-inf", "-1", "0", "1e999", "-1e999", "1e400", "9" * 5000, "9" * 30, "-" + "9" * 30, "1.5", "0x10",
    "1_000", "١", "", " ", "x", "True", "None", "1e-400", "2147483648", "18446744073709551616", "[1,", "(1,", "1\n",
)  # fmt: skip
# No gs:// among them: without a network, gcsfs tries for longer than an input may take.
WORDS = (
    "", " ", ".", "..", "/", "-", "--", "~", "~nobody/x", "a\nb", "a\x00b", "\udcff\udcfe", "\x1b[2J", "é", "*", "[",
    "%s", "{}", "x" * 300, "x" * 10_000, "file:///x", "s3://bucket/x", "gs:/x", "hf:", "hf:x", "hf:a/b@c/d:e", "tfds:",
    "tfds:x/y", "http://127.0.0.1:1/x", "/dev/null", "/dev/zero", "/proc/self/mem", "/proc/self/environ", "package:",
    "package:nope", "nope.gguf", "a/b", "a/b/c", "a:b", "://", "\\", "$(id)", "'", '"', "x" * 300 + ".jsonl",
    "memory://x", "\ud800.jsonl", "C:\\x", "hf:" + "x" * 300, "tfds:a/b:c/d", "hf:\x00", "az://c/x.jsonl",
)  # fmt: skip


def mutated(rng: random.Random, data: bytes) -> bytes:
    """Bytes with one to three things changed: bits, chunks cut, doubled, moved, put in, or the whole wrapped."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at, end = sorted((rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)))
        near = min(len(data), at + rng.randrange(1, 9))
        what = rng.randrange(10)
        if what == 0 and data:
            at = min(at, len(data) - 1)
            data = data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        elif what == 1:
            data = data[:at]
        elif what == 2:
            data = data[:at] + data[end:]
        elif what == 3:
            data = data[:at] + data[near:]
        elif what == 4:
            data = data[:end] + data[at:]
        elif what == 5:
            data = data[at:end] + data[:at] + data[end:]
        elif what == 6:
            data = rng.choice((b"\xef\xbb\xbf", b"\n", b"\r\n", b"\x00", b"[", b"\xff\xfe")) + data
        elif what == 7 and rng.random() < 0.3:
            data = data.decode(errors="replace").encode(rng.choice(("utf-16", "utf-16-le", "utf-32", "utf-8-sig")))
        elif what == 8 and rng.random() < 0.3:
            data = rng.choice((data.replace(b"\n", b"\r"), data.replace(b"\n", b"\r\n"), data.replace(b"\n", b" ")))
        else:
            data = data[:at] + rng.choice(CHUNKS) + data[rng.choice((at, near)) :]
    return data


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every place of a JSON value that holds another, as its holder and its key."""
    found = []
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        found += [(value, key), *places(value[key])]
    return found


def changed(rng: random.Random, value: Any, times: int = 1) -> Any:
    """A JSON value (a copy) with another value in a place, or a field gone, renamed or more."""
    value = copy.deepcopy(value)
    for _ in range(times):
        if not (there := places(value)):
            return rng.choice(VALUES)
        holder, key = rng.choice(there)
        what = rng.random()
        if what < 0.7:
            holder[key] = copy.deepcopy(rng.choice(VALUES))
        elif what < 0.85:
            del holder[key]
        elif isinstance(holder, dict):
            holder[rng.choice(("", "x", "id", "prompt", "a.b", "\ud800", "a\nb"))] = holder.pop(key)
        else:
            holder.append(rng.choice(VALUES))
    return value


def as_json(rng: random.Random, value: Any) -> bytes:
    """A JSON value with something changed, in its values or in the bytes as which it is written."""
    what = rng.random()
    if what < 0.6:
        return json.dumps(changed(rng, value, rng.choice((1, 1, 2)))).encode()
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5).encode()
    if what < 0.8 and (there := places(value)):
        # A literal that no writer writes, in the place of a value.
        marked = copy.deepcopy(value)
        at = rng.randrange(len(there))
        holder, key = places(marked)[at]
        holder[key] = "a place for it"
        return json.dumps(marked).encode().replace(b'"a place for it"', rng.choice(LITERALS), 1)
    return mutated(rng, text)


def as_lines(rng: random.Random, rows: Sequence[Any]) -> bytes:
    """JSONL of which one row is changed, or the bytes."""
    lines = [json.dumps(row).encode() for row in rows]
    if rng.random() < 0.7:
        n = rng.randrange(len(rows))
        lines[n] = as_json(rng, rows[n])
        return b"\n".join(lines) + rng.choice((b"", b"\n"))
    return mutated(rng, b"\n".join(lines) + b"\n")
