"""A judge that is a Python function: for answers that can be checked, and for rewards of a user's own."""

import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import math
import os
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, cast

from etils import epath

from selfreward_jax.core.errors import UserError, foreign_code, shown
from selfreward_jax.core.paths import check_file, local_path
from selfreward_jax.methods.judging import MAX_SCORE

Messages = tuple[dict[str, str], ...]
JudgeFunction = Callable[[Messages, str], float | None]


def load_function(name: str) -> JudgeFunction:
    """The function of `judge.function`: `module:name`, also of a module in the current folder, or `file.py:name`.

    Args:
      name: takes a prompt's messages and an answer's text, and gives a score from 0 to 5 or None.

    Raises:
      UserError: it can't be imported.
    """
    where = f"config.judge.function: {name}"
    module, colon, attribute = name.rpartition(":")
    if not (module and colon and attribute):
        raise UserError(f"{where!r}: not understood; write module:name or file.py:name.")
    with foreign_code(f"{where}: can't be imported"), _current_folder_first():
        found = _from_file(local_path(module)) if module.endswith(".py") else importlib.import_module(module)
    if not hasattr(found, attribute):
        raise UserError(f"{where}: {module} has no {attribute}.")
    if not callable(function := getattr(found, attribute)):
        raise UserError(f"{where}: is no function.")
    return cast(JudgeFunction, function)


def _from_file(file: epath.Path) -> ModuleType:
    """Kept under a name of its path, so that the function's source can be found."""
    check_file(file)
    name = "judge_" + hashlib.sha256(os.fsencode(file)).hexdigest()[:16]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec and spec.loader
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextlib.contextmanager
def _current_folder_first() -> Iterator[None]:
    """An installed command does not look for modules where it is called, as `python -m` does."""
    before = list(sys.path)
    sys.path.insert(0, os.getcwd())
    try:
        yield
    finally:
        sys.path[:] = before


def source_hash(function: JudgeFunction) -> str:
    """Of the file that the function stands in: another text, and its scores are made anew."""
    try:
        text = inspect.getsource(inspect.getmodule(function) or function)
    except (OSError, TypeError):
        text = repr(function)
    return hashlib.sha256(text.encode()).hexdigest()


def checked_score(function: JudgeFunction, prompt: Messages, response: str) -> float | None:
    """The function's score of one answer.

    Raises:
      UserError: it gave something else than a number from 0 to 5 or None.
    """
    with foreign_code(f"config.judge.function: {getattr(function, '__qualname__', 'it')}"):
        score: Any = function(prompt, response)
    if score is None:
        return None
    try:
        value = float(score)
    except (OverflowError, TypeError, ValueError):
        value = math.nan
    if not 0 <= value <= MAX_SCORE:
        raise UserError(f"config.judge.function: gave {shown(score)} for an answer; it must give 0 to 5 or None.")
    return value
