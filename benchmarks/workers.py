"""A side of a comparison in a process of its own: a line of JSON in, some work, a line of JSON out."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


class Worker:
    """Starts the process and waits until it says that it is ready."""

    def __init__(self, words: list[str]):
        env = os.environ | {"JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu"), "PYTHONPATH": str(HERE.parent)}
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args}: ended without an answer")
        return json.loads(line)

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return self._read()

    def quit(self) -> None:
        assert self.process.stdin
        print(json.dumps({"do": "quit"}), file=self.process.stdin, flush=True)
        self.process.wait()
