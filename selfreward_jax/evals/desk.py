"""Where an evaluation works: a folder for its rows and results, and any models, each with its own tokenizer.

The stages `respond` and `judge` work here as they do in a run: their rows are artefacts, so that an evaluation that
was stopped goes on where it was, and one whose inputs have not changed is not done again.
"""

import json
import re
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from selfreward_jax.core import lock
from selfreward_jax.core.config import differences
from selfreward_jax.core.errors import UserError
from selfreward_jax.core.interrupt import Interrupt
from selfreward_jax.core.store import Journal, local_path, write_atomic
from selfreward_jax.core.stored import read_json
from selfreward_jax.core.tokens import Chat
from selfreward_jax.llama.config import LlamaConfig
from selfreward_jax.llama.hub import at
from selfreward_jax.llama.load import MODEL_FILE, Model, load_chat, load_model
from selfreward_jax.stages.work import ModelRef, Work


def model_name(path: str) -> str:
    """How files call a model by default: the last part of its path, with the run's for one of a run."""
    parts = [part for part in re.split(r"[/:]", path.rstrip("/")) if part not in ("", ".", "..")]
    kept = parts[-2:] if re.fullmatch(r"m\d+", parts[-1]) else parts[-1:]
    return re.sub(r"[^\w.-]", "-", "-".join(kept).removesuffix(".gguf"))


class Desk(Work):
    """A folder of evaluations."""

    def __init__(self, root: epath.PathLike, config: ConfigDict, interrupt: Interrupt | None = None):
        """Opens or begins one.

        Args:
          config: of `judge`, `respond`, `generation`, `mesh`, and `model.dtype`; `model.chat_template` is for the
            model at `model.path` alone, a run's M0.

        Raises:
          UserError: the folder holds other things, or is a run's.
        """
        path = local_path(root)
        if (path / "config.json").exists():
            raise UserError(f"--output={path}: is a run's folder; choose another, such as {path / 'eval' / 'mine'}.")
        if path.exists() and not lock.is_empty(path) and not (path / "manifest.jsonl").exists():
            raise UserError(f"--output={path}: not empty and not an evaluation; choose a new folder.")
        super().__init__(root, config, interrupt)
        self._adapters: dict[str, str] = {}  # of a run's M0, by the path of what it is merged into
        self._dates: dict[str, str] = {}  # that a run's M0 is told, by its path
        self._given: dict[str, str] = {}  # as a run's settings call its M0, by the path with its commit
        self._words: dict[str, tuple[LlamaConfig, Chat]] = {}

    def claim(self, result: str, settings: dict[str, Any]) -> None:
        """Refuses to put results beside, or in place of, those of other settings; before anything is made.

        Args:
          result: the name of a file of results, in the folder or in folders of it.
          settings: what all results of the folder share; they stand in the results' inputs as `settings`.
        """
        for entry in self.manifest.artefacts():
            if entry["artefact"].rpartition("/")[2] != result:
                continue
            changed = differences(entry["inputs"].get("settings", {}), json.loads(json.dumps(settings)))
            if changed:
                shown = "; ".join(changed[:3]) + (f"; and {len(changed) - 3} more" if len(changed) > 3 else "")
                mend = "choose a new folder with --output=DIR"
                raise UserError(f"{self.root}: holds the result of another evaluation ({shown}); {mend}.")

    def journal(self, artefact: str, inputs: dict[str, Any]) -> Journal:
        if not self.manifest.path.exists():
            write_atomic(self.manifest.path, "")  # a stop before the first artefact leaves an evaluation too
        return super().journal(artefact, inputs)

    def ref(self, path: str) -> ModelRef:
        """A model by its path: a Hugging Face folder, a .gguf file, `package:NAME`, `org/name` or a run's model.

        Raises:
          UserError: there is no such model.
        """
        facts = local_path(path) / MODEL_FILE
        if "://" not in path and not path.startswith("package:") and facts.exists():
            stored = read_json(facts, needs={"hash": str})
            if "path" not in stored:  # M0's folder names its model, and holds no weights
                return ModelRef(path, stored["hash"])
            path = at(stored["path"], stored.get("commit", ""))
            self._adapters[path], self._dates[path] = stored.get("adapter", ""), stored.get("date", "")
            self._given[path] = stored["path"]
        return ModelRef(path, self.load(ModelRef(path, "")).hash)

    def words(self, ref: ModelRef) -> tuple[LlamaConfig, Chat]:
        if ref.name not in self._words:
            c = self.config.model
            own = self._given.get(ref.name, ref.name) == c.path
            date = c.date or self._dates.get(ref.name, "")
            self._words[ref.name] = load_chat(ref.name, c.chat_template if own else "", date)
        return self._words[ref.name]

    def _read(self, ref: ModelRef) -> Model:
        c = self.config.model
        return load_model(
            ref.name,
            mesh=self.mesh,
            rules=self.rules,
            dtype=c.dtype,
            param_dtype=c.param_dtype,
            adapter=self._adapters.get(ref.name, ""),
            chat=self.words(ref),
        )
