"""Which commit of this program is running, where that can be known."""

import functools
import subprocess
from pathlib import Path

HERE = Path(__file__).parent


@functools.cache
def commit() -> str:
    """The commit's hash, with `-dirty` behind it where files were changed since; "" outside of a checkout."""
    try:
        # An environment may lie in somebody else's repository, which doesn't have this file.
        _git("ls-files", "--error-unmatch", Path(__file__).name)
        return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=HERE, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()
