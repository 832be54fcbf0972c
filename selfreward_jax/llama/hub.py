"""Models of the Hugging Face hub by name: `org/name`, `org/name@revision`, `org/name/FILE.gguf`.

`huggingface_hub` finds, downloads and keeps them, with its cache (`HF_HOME`), its token (`HF_TOKEN`) and its offline
mode (`HF_HUB_OFFLINE`). Only what is read is downloaded: the configuration, the tokenizer, safetensors. A file or
folder of the same path comes first, and `./org/name` is never the hub's. Within a process a name stays the commit
that it was when first asked for.
"""

import dataclasses
import fnmatch
import functools
import os
import pathlib
import re
from typing import Literal

from etils import epath

from selfreward_jax.core.errors import UserError
from selfreward_jax.llama import hf, hf_save, tokenizer

Need = Literal["config", "tokenizer", "weights"]

ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
MAIN = (hf.CONFIG, ADAPTER[0])  # one of them makes a repository a model
# A revision is a name that git allows; it is looked up in the cache's folders, out of which `..` would lead.
FORM = re.compile(
    r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>(?!/)(?:(?!\.\.)[^@\s:\\~^?*\[\x00])+?))?(?:/(?P<file>[^@]+\.gguf))?"
)
PART = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")


@dataclasses.dataclass(frozen=True)
class Name:
    """A model's name on the hub; `file` is a .gguf file of it, or empty."""

    repo: str
    revision: str = ""
    file: str = ""

    def __str__(self) -> str:
        return self.repo + (f"@{self.revision}" if self.revision else "") + (f"/{self.file}" if self.file else "")


def parse(path: str) -> Name | None:
    """What a path names on the hub; None where it is a local or remote path by its form, or where something lies."""
    match = FORM.fullmatch(path)
    if match is None or match["repo"].endswith(".gguf") or os.path.exists(path):
        return None
    return Name(match["repo"], match["revision"] or "", match["file"] or "")


def at(path: str, commit: str) -> str:
    """The same name at a commit of the hub; other paths, and all without a commit, as they are."""
    match = FORM.fullmatch(path)
    if not commit or match is None:
        return path
    return str(Name(match["repo"], commit, match["file"] or ""))


def commit_of(location: epath.Path) -> str:
    """The commit that a file or folder of the cache belongs to; "" for any other."""
    found = re.search(r"/models--[^/]+/snapshots/([0-9a-f]{40})(/|$)", location.as_posix())
    return found[1] if found else ""


def find(name: Name, need: Need = "weights") -> epath.Path:
    """Downloads what isn't in the cache yet. Returns the folder, or the .gguf file, in the cache.

    An adapter's folder, which has no config.json, is returned with all that belongs to the adapter.

    Args:
      need: how much: the configuration; that and the tokenizer; all.

    Raises:
      UserError: there is no such model or none that can be read, access is not granted, or there is no network.
    """
    files = _files(name)
    if name.file:
        return _download(name, _parts(name.file)) / name.file
    main = next((file for file in MAIN if file in files), None)
    weights = next((file for file in (hf.WEIGHTS, hf.INDEX) if file in files), None)
    if main is None or (main == hf.CONFIG and weights is None and need != "config"):
        raise _unusable(name)
    further = [hf.GENERATION_CONFIG]
    if need != "config" or main != hf.CONFIG:
        further += [hf_save.PROVENANCE]  # the date that the chat template was told
        further += tokenizer.FILES if tokenizer.TOKENIZER in files else (*tokenizer.FILES, tokenizer.SENTENCEPIECE)
    wanted = [main, *(file for file in files if any(fnmatch.fnmatch(file, pattern) for pattern in further))]
    if main != hf.CONFIG:
        return _download(name, [*wanted, ADAPTER[1]])
    folder = _download(name, wanted)
    if need == "weights" and weights:
        folder = _download(name, [weights])
        if weights == hf.INDEX:
            _download(name, list(hf.weight_map(folder)))
    return folder


def find_adapter(name: Name) -> epath.Path:
    """The folder of an adapter in the cache; as `find`."""
    files = _files(name)
    if not set(ADAPTER) <= set(files):
        raise _unusable(name, adapter=True)
    return _download(name, list(ADAPTER))


def _parts(file: str) -> list[str]:
    """All files of a split GGUF file, given any of them."""
    part = PART.search(file)
    return [PART.sub(f"-{n:05d}-of-{part[1]}.gguf", file) for n in range(1, int(part[1]) + 1)] if part else [file]


@functools.cache
def _repository(repo: str, revision: str) -> tuple[str, tuple[str, ...], bool]:
    """The commit that a revision is, its files, and whether the hub says so; else it is the cache, of what it has."""
    import huggingface_hub
    from huggingface_hub import errors

    name = Name(repo, revision)
    try:
        info = huggingface_hub.HfApi().model_info(repo, revision=revision or None)
        return str(info.sha), tuple(sorted(file.rfilename for file in info.siblings or ())), True
    except Exception as error:
        known = (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError)
        folder = None if isinstance(error, known) else cached(name)
        if folder is None:
            raise _refusal(name, error) from None
        here = pathlib.Path(folder)
        return folder.name, tuple(sorted(str(p.relative_to(here)) for p in here.rglob("*") if not p.is_dir())), False


def _files(name: Name) -> tuple[str, ...]:
    """The names of a model's files; what is named must be among them."""
    _, files, _ = _repository(name.repo, name.revision)
    if name.file and name.file not in files:
        raise _unusable(name)
    return files


def cached(name: Name) -> epath.Path | None:
    """The folder of a revision in the cache; it may hold some of the files alone."""
    from huggingface_hub import constants

    store = epath.Path(constants.HF_HUB_CACHE) / f"models--{name.repo.replace('/', '--')}"
    ref = store / "refs" / (name.revision or "main")
    folder = store / "snapshots" / (ref.read_text().strip() if ref.exists() else name.revision)
    return folder if folder.parent.name == "snapshots" and folder.is_dir() else None


def _download(name: Name, files: list[str]) -> epath.Path:
    """Downloads files that aren't in the cache. Returns the folder there."""
    import huggingface_hub

    commit, _, _ = _repository(name.repo, name.revision)
    at_commit = Name(name.repo, commit)
    try:
        if (known := cached(name)) is None or known.name != commit:
            # By its own revision, so that the cache knows that too when there is no network.
            huggingface_hub.hf_hub_download(name.repo, files[0], revision=name.revision or None)
        folder = cached(at_commit)
        missing = [file for file in files if folder is None or not (folder / file).exists()]
        if missing:
            huggingface_hub.snapshot_download(name.repo, revision=commit, allow_patterns=missing)
    except Exception as error:
        raise _refusal(name, error) from None
    folder = cached(at_commit)
    if folder is None or not all((folder / file).exists() for file in files):
        raise _refusal(name, FileNotFoundError())
    return folder


def _unusable(name: Name, adapter: bool = False) -> UserError:
    """Why a repository is none that can be read, from the names of its files."""
    _, files, online = _repository(name.repo, name.revision)
    if not online:
        return _refusal(name, FileNotFoundError())
    if name.file:
        return UserError(f"{name.repo}: has no file {name.file}{_named(files, ('.gguf',), '; it has ')}.")
    if adapter:
        return UserError(f"{name}: has no {' and '.join(ADAPTER)}; an adapter of PEFT in safetensors is needed.")
    if gguf := [file for file in files if file.endswith(".gguf")]:
        return UserError(f"{name}: holds GGUF files; name one, such as {dataclasses.replace(name, file=gguf[0])}.")
    if hf.CONFIG not in files:
        return UserError(f"{name}: has no {hf.CONFIG}, so it is no model that transformers knows.")
    pickles = _named(files, (".bin", ".pt", ".pth"), "; pickles, which can run code, are never loaded: ")
    return UserError(f"{name}: has no safetensors weights{pickles}; name a repository or a revision that has them.")


def _named(files: tuple[str, ...], ends: tuple[str, ...], lead: str) -> str:
    found = [file for file in files if file.endswith(ends)]
    return lead + hf.some(found, verb=False) if found else ""


def _refusal(name: Name, error: Exception) -> UserError:
    from huggingface_hub import constants, errors

    host, login = constants.ENDPOINT, "log in (hf auth login) or set HF_TOKEN"
    if isinstance(error, errors.GatedRepoError):
        return UserError(f"{name}: gated; ask for access at {host}/{name.repo}, then {login}.")
    if isinstance(error, errors.RepositoryNotFoundError):
        return UserError(
            f"{name}: no such file or folder here, and no such model at {host}; mend the name, or if the model is"
            f" private, {login}."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return UserError(f"{name}: {name.repo} has no revision {name.revision!r}; give a branch, a tag or a commit.")
    if isinstance(error, errors.HFValidationError):
        return UserError(f"{name}: no such file or folder here, nor a name that the hub can have.")
    if isinstance(error, errors.HfHubHTTPError):
        return UserError(f"{name}: {host} answers {' '.join(str(error).split())[:200]}; try again later.")
    why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{host} can't be reached"
    return UserError(
        f"{name}: no such file or folder here, nor all that is needed in the cache ({constants.HF_HUB_CACHE}), and"
        f" {why}; download it where there is a network (hf download {name.repo})."
    )
