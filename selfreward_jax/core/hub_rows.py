"""Rows of data sets as the Hugging Face hub has them, through `datasets`: `hf:NAME[@REVISION][/CONFIG][:SPLIT]`.

NAME is `org/name` (or a name alone, which then has no CONFIG), or a folder laid out as the hub lays them out, which
begins with `/`, `./`, `../` or `~`. SPLIT may end in `[FROM:TO]`, rows counted from 0; no more than these are fetched.
Of a folder `datasets` tells which files make up a split; they are read here, for the sake of errors with file and line.
No code of a data set is ever run.
"""

import dataclasses
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from selfreward_jax.core.errors import UserError, did_you_mean, first_line
from selfreward_jax.core.paths import local_path
from selfreward_jax.core.progress import say
from selfreward_jax.core.rows import Row, present
from selfreward_jax.core.texts import form_of

HF = "hf:"
ABOUT = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json")  # about the data, not data

Found = Iterator[tuple[str, str, Row]]  # place, split and row
ReadFile = Callable[[epath.Path], Iterator[tuple[str, Row]]]


@dataclasses.dataclass(frozen=True)
class Name:
    """What follows `hf:`; a field that isn't given is empty.

    Attributes:
      folder: whether `name` is a path.
      span: first row, and the one after the last.
    """

    name: str
    folder: bool
    revision: str = ""
    config: str = ""
    split: str = ""
    span: tuple[int, int | None] | None = None


def parse_name(spec: str) -> Name:
    """Takes `hf:NAME[@REVISION][/CONFIG][:SPLIT]` apart.

    Raises:
      UserError: it is not of this form.
    """
    text, _, split = spec.removeprefix(HF).partition(":")
    wrong = UserError(f"{spec}: not understood; write hf:NAME[/CONFIG][:SPLIT], such as hf:org/name:train[:1000].")
    found = re.fullmatch(r"([\w.-]*)(?:\[(\d*):(\d*)\])?", split)
    if not found or (split and not found[1]):
        raise wrong
    span = (int(found[2] or 0), int(found[3]) if found[3] else None) if "[" in split else None
    if text in (".", "..") or text.startswith(("/", "./", "../", "~")):
        return Name(text, True, "", "", found[1], span)
    revision = r"refs/convert/\w+|refs/pr/\d+|[\w.-]+"
    parts = re.fullmatch(rf"([\w.-]+(?:/[\w.-]+)?)(?:@({revision}))?(?:/([^/@]+))?", text)
    if not parts:
        raise wrong
    return Name(parts[1], False, parts[2] or "", parts[3] or "", found[1], span)


def rows(spec: str, every: bool, read_file: ReadFile) -> Found:
    """Place, split and row of `hf:...`.

    Args:
      every: the rows of all splits, where none is named.
      read_file: reads one file of the forms that need no `datasets`.

    Raises:
      UserError: it can't be read; says what to do.
    """
    name = parse_name(spec)
    if name.folder:
        yield from _of_folder(spec, name, every, read_file)
        return
    if os.path.isdir(name.name):  # `datasets` would read it, whatever the revision
        raise UserError(
            f"{spec}: a folder of this name lies here; write hf:./{name.name}, or for the hub's call from elsewhere."
        )
    datasets = _datasets(spec)
    if name.name in _kinds_of_file():
        raise UserError(f"{spec}: {name.name} is a kind of file to `datasets`, and no data set; check the name.")
    offline = datasets.config.HF_HUB_OFFLINE
    try:
        made = datasets.load_dataset(
            name.name,
            name.config or None,
            revision=name.revision or None,
            streaming=name.span is not None and not offline,
        )
    except Exception as error:  # `datasets` hands on whatever it meets
        folder = _snapshot(name) if _is_unreachable(error) else None
        if folder is None:
            raise UserError(f"{spec}: {_reason(error, name.name)}.") from None
        yield from _of_folder(spec, dataclasses.replace(name, name=str(folder)), every, read_file)
        return
    yield from _of_splits(spec, name, made, every)


def is_saved(folder: epath.Path) -> bool:
    """Whether `datasets` wrote this folder, with `save_to_disk`."""
    return (folder / "dataset_dict.json").exists() or (folder / "state.json").exists()


def saved_rows(folder: epath.Path, spec: str, every: bool, name: Name | None = None) -> Found:
    """Place, split and row of a folder that `save_to_disk` wrote."""
    try:
        made = _datasets(spec).load_from_disk(str(folder))
    except Exception as error:  # as in `rows`
        raise UserError(f"{spec}: can't be read ({first_line(error)}).") from None
    yield from _of_splits(spec, name or Name(str(folder), True), made, every)


def choose_split(spec: str, there: Iterable[str], wanted: str = "") -> str:
    """The split that is wanted, else the only one, else `train`; says so where others are left.

    Raises:
      UserError: there is none of this name, or no way to tell.
    """
    there = sorted(there)
    known = ", ".join(there)
    if wanted:
        if wanted in there:
            return wanted
        raise UserError(f"{spec}: has no split {wanted}; there are {known}.{did_you_mean(wanted, there)}")
    if not there:
        raise UserError(f"{spec}: has no split, and so no rows.")
    if len(there) == 1:
        return there[0]
    if "train" not in there:
        raise UserError(f"{spec}: has the splits {known}; name one, as in hf:NAME:{there[0]}.")
    say(f"{spec}: of the splits {known}, train is read; hf:NAME:SPLIT reads another")
    return "train"


def check_whole(files: Sequence[epath.Path]) -> None:
    """Raises `UserError` if a part of a file in parts is missing, or if rows lie there twice, in two forms."""
    parts: dict[tuple[str, int], set[int]] = {}
    forms: dict[str, epath.Path] = {}
    for file in files:
        bare = str(file)[: -len(form_of(file.name))]
        if bare in forms:
            raise UserError(f"{file}: {forms[bare].name} lies beside it, with the same rows perhaps; give one of them.")
        forms[bare] = file
        if found := re.search(r"^(.*)-(\d{5})-of-(\d{5})", str(file)):
            parts.setdefault((found[1], int(found[3])), set()).add(int(found[2]))
    for (name, count), there in parts.items():
        if missing := set(range(count)) - there:
            raise UserError(
                f"{name}-{min(missing):05}-of-{count:05}: missing; {len(there)} of {count} parts are there."
            )


def _datasets(spec: str) -> Any:
    try:
        import datasets  # seconds that only those who use it should wait
    except ImportError as error:
        raise UserError(f"{spec}: {error.name or error} is missing; pip install datasets.") from None
    import huggingface_hub

    datasets.logging.set_verbosity_error()
    huggingface_hub.logging.set_verbosity_error()
    return datasets


def _kinds_of_file() -> frozenset[str]:
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

    return frozenset(_PACKAGED_DATASETS_MODULES)


def _of_folder(spec: str, name: Name, every: bool, read_file: ReadFile) -> Found:
    folder, config = local_path(name.name), name.config
    if folder.is_file():
        raise UserError(f"{spec}: a file; give it without hf:.")
    gone = UserError(f"{spec}: no such folder.")
    if not folder.exists() and folder.parent.is_dir() and name.folder:
        folder, config = folder.parent, folder.name
        if is_saved(folder):
            raise gone
    if not folder.is_dir():
        raise gone
    if is_saved(folder):
        yield from saved_rows(folder, spec, every, name)
        return
    datasets = _datasets(spec)
    try:
        builder = datasets.load_dataset_builder(str(folder), config or None)
        files: Mapping[str, list[str]] = {str(k): list(v) for k, v in (builder.config.data_files or {}).items()}
        if not all(form_of(file) for of_split in files.values() for file in of_split):
            made = datasets.load_dataset(str(folder), config or None, streaming=True)
            yield from _of_splits(spec, name, made, every)
            return
    except UserError:
        raise
    except Exception as error:  # as in `rows`
        reason = _reason(error, str(folder))
        if config != name.config and not re.search("; name one of (?!default$)", reason):
            raise gone from None
        raise UserError(f"{spec}: {reason}.") from None
    for split in _splits(spec, name, files, every):
        check_whole([epath.Path(file) for file in files[split]])  # a cache may hold some of the files alone
        found = (row for file in files[split] for row in read_file(epath.Path(file)))
        for where, row in _cut(found, name.span):
            yield where, split, row


def _splits(spec: str, name: Name, there: Iterable[str], every: bool) -> list[str]:
    if every and not name.split and not name.span:
        return list(there)
    return [choose_split(spec, there, name.split)]


def _cut(found: Iterable, span: tuple[int, int | None] | None) -> Iterator:
    return itertools.islice(found, *(span or (0, None)))


def _of_splits(spec: str, name: Name, made: Any, every: bool) -> Found:
    """The rows of a `Dataset`, or of the splits of a `DatasetDict`."""
    by_split: Mapping[str, Any] = made if isinstance(made, dict) else {name.split or "train": made}
    for split in _splits(spec, name, by_split, every):
        where = spec if name.split else f"{spec}:{split}"
        number = (name.span or (0, None))[0]
        try:
            for row in _cut(_plain_rows(by_split[split]), name.span):
                number += 1
                yield f"{where}: row {number}", split, present(row)
        except UserError:
            raise
        except Exception as error:  # as in `rows`
            raise UserError(f"{where}: row {number + 1}: {_reason(error, name.name)}.") from None


def _plain_rows(rows: Any) -> Iterator[Row]:
    """Rows as they are stored: no image, sound or film in them is decoded."""
    import datasets

    for column, feature in (rows.features or {}).items():
        if isinstance(feature, datasets.Image | datasets.Audio | datasets.Video):
            rows = rows.remove_columns(column)
    return iter(rows)


def _snapshot(name: Name) -> epath.Path | None:
    """The folder of a data set that lies in the hub's cache, None if it doesn't."""
    import huggingface_hub

    try:
        return epath.Path(
            huggingface_hub.snapshot_download(
                name.name, repo_type="dataset", revision=name.revision or None, local_files_only=True
            )
        )
    except Exception:  # whatever the reason, it is not there
        return None


def _is_unreachable(error: BaseException) -> bool:
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    return isinstance(error, ConnectionError | LocalEntryNotFoundError | OfflineModeIsEnabled)


def _reason(error: BaseException, name: str) -> str:
    """What went wrong and what to do about it, as a line without its full stop."""
    if type(error).__name__ == "DatasetGenerationError" and error.__cause__:
        error = error.__cause__
    line = first_line(error)
    if _is_unreachable(error):
        return (
            f"the hub can't be reached, and its cache has no such data set; connect, or fetch it beforehand with"
            f" hf download --repo-type dataset {name}"
        )
    if "gated" in line.lower():
        return f"gated; accept its terms at https://huggingface.co/datasets/{name}, then run hf auth login"
    if type(error).__name__ in ("DatasetNotFoundError", "RepositoryNotFoundError"):
        return "the hub has no such data set, or it is private; check the name, or run hf auth login"
    if "scripts are no longer supported" in line:
        return "a data set made by a program of its own, which is never run; use one whose rows are files"
    if "Config name is missing" in line or "BuilderConfig" in line:
        known = re.search(r"\[(.*)\]", str(error))
        names = known[1].replace("'", "") if known else ""
        return f"{'has several configurations' if 'missing' in line else line.split('.')[0]}; name one of {names}"
    if isinstance(error, FileNotFoundError):
        return f"no file of rows is there ({line})"
    return f"can't be read ({line})"
