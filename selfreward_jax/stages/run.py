"""A run: its folder, its configuration, its models, and the bookkeeping that every stage shares."""

import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from selfreward_jax import __version__
from selfreward_jax.core import hosts
from selfreward_jax.core.config import differences, to_dict
from selfreward_jax.core.errors import UserError
from selfreward_jax.core.interrupt import Interrupt
from selfreward_jax.core.mesh import make_mesh, make_rules
from selfreward_jax.core.metrics import SPEED_FILE, Board
from selfreward_jax.core.progress import Meter, meter, say
from selfreward_jax.core.rows import Row, read_jsonl, to_line
from selfreward_jax.core.store import Journal, Manifest, is_local, sha256_file, write_atomic
from selfreward_jax.core.tokens import Chat, sha256_json
from selfreward_jax.engine.generate import Engine, EngineSettings
from selfreward_jax.llama.config import LlamaConfig
from selfreward_jax.llama.load import MERGED, MODEL_FILE, Model, load_chat, load_model

ADAPTER = "adapter"  # in the folder of a model that LoRA made: what it learnt, in PEFT's format

# How often rows in the making go to disk, and to an object store, where each part is an upload.
ROWS_PER_PART, SECONDS_PER_PART, SECONDS_PER_UPLOAD = 256, 2.0, 30.0


@dataclasses.dataclass(frozen=True)
class ModelRef:
    """A model of the run by name, `m0` to `mT`, with the hash of its weights; `Run.load` gives the weights."""

    name: str
    hash: str


def versions() -> dict[str, str]:
    """Of what can change a run's numbers."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "tokenizers", "numpy")
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"python": platform.python_version(), "selfreward_jax": __version__, **found}


def stored_config(root: epath.Path) -> dict[str, Any]:
    """The configuration of the run in a folder.

    Raises:
      UserError: there is no run, or someone has edited the file into something else.
    """
    path = root / "config.json"
    if not path.exists():
        raise UserError(f"--workdir={root}: no run there.")
    try:
        return dict(json.loads(path.read_text()))
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: not the configuration of a run ({error}); restore it.") from None


class Growing:
    """Rows of an artefact in the making.

    Attributes:
      before: rows that an earlier session made.
    """

    def __init__(self, journal: Journal, before: list[Row], progress: Meter, interrupt: Interrupt):
        self.before = before
        self._journal, self._progress, self._interrupt = journal, progress, interrupt
        self._rows: list[Any] = []
        self._flushed = time.monotonic()
        self._seconds = SECONDS_PER_PART if is_local(journal.path) else SECONDS_PER_UPLOAD

    def add(self, row: Any, tokens: int, note: str = "") -> None:
        """Takes a row, which is on disk within a few seconds (half a minute on an object store).

        Args:
          tokens: what it cost.

        Raises:
          Interrupted: a stop was asked for; every row so far is kept.
        """
        self._rows.append(row)
        self._progress.advance(1, tokens, note)
        if len(self._rows) >= ROWS_PER_PART or time.monotonic() - self._flushed > self._seconds:
            self.flush()
        self._interrupt.check()

    def flush(self) -> None:
        if self._rows:
            self._journal.append(self._rows)
        self._rows, self._flushed = [], time.monotonic()


class Run:
    """What the stages work in. At most one model's weights are in memory."""

    def __init__(self, workdir: str, config: ConfigDict, *, resume: str = "", interrupt: Interrupt | None = None):
        """Opens or begins a run.

        Args:
          resume: "force" to go on in a folder that was begun with another configuration.

        Raises:
          UserError: the folder belongs to another configuration, or isn't a run.
        """
        self.root = epath.Path(workdir)
        if is_local(self.root):
            self.root = self.root.expanduser().resolve()
        self.config: Any = config  # ConfigDict's attributes have no types
        self.interrupt = interrupt or Interrupt()
        self._claim(resume)
        hosts.wait("the run is claimed")
        self.manifest = Manifest(self.root)
        self.record("config.json", {}, seed=config.seed, versions=versions())
        c = self.config.mesh
        self.mesh, self.rules = make_mesh(c.data, c.fsdp, c.tensor), make_rules(c.rules.to_dict())
        self._loaded: tuple[str, Model] | None = None
        self._engine: tuple[str, Engine] | None = None

    def _claim(self, resume: str) -> None:
        path = self.root / "config.json"
        new = to_dict(self.config)
        if path.exists():
            changed = differences(stored_config(self.root), new)
            # Until training begins, there is nothing that another configuration could mix with.
            if changed and resume != "force" and (self.root / "m1").exists():
                shown = "; ".join(changed[:5]) + (f"; and {len(changed) - 5} more" if len(changed) > 5 else "")
                raise UserError(
                    f"--workdir={self.root}: begun with another configuration ({shown});"
                    " use --resume=force to go on with the new one, or a new folder."
                )
            if not changed:
                return
        elif self.root.exists() and (not self.root.is_dir() or any(self.root.iterdir())):
            raise UserError(f"--workdir={self.root}: not empty and not a run; choose a new folder.")
        hosts.wait("the folder is looked at")
        write_atomic(path, json.dumps(new, indent=2) + "\n")

    # Models.

    def base(self) -> ModelRef:
        """M0, hashed once and recorded."""
        c = self.config.model
        inputs = {"stage": "base", "model": c.to_dict()}
        if not self.manifest.is_made(f"m0/{MODEL_FILE}", inputs):
            model = self._load_base()
            facts = {"hash": model.hash, "path": c.path, **model.chat.hashes}
            facts |= {"adapter": c.adapter} if c.adapter else {}
            write_atomic(self.root / "m0" / MODEL_FILE, json.dumps(facts, indent=2) + "\n")
            self.record(f"m0/{MODEL_FILE}", inputs, **facts)
        return self.ref("m0")

    def _load_base(self) -> Model:
        c = self.config.model
        model = load_model(
            c.path,
            mesh=self.mesh,
            rules=self.rules,
            dtype=c.dtype,
            param_dtype=c.param_dtype,
            adapter=c.adapter,
            chat=self._chat,
        )
        self._loaded = ("m0", model)
        return model

    def ref(self, name: str) -> ModelRef:
        """A model that exists already.

        Raises:
          UserError: it has not been made yet.
        """
        path = self.root / name / MODEL_FILE
        if self.manifest.entry(f"{name}/{MODEL_FILE}") is None or not path.exists():
            raise UserError(
                f"{self.root / name}: {name.upper()} has not been made yet; run the stages before it first."
            )
        return ModelRef(name, json.loads(path.read_text())["hash"])

    def load(self, ref: ModelRef) -> Model:
        """The weights of a model; those of any other are let go first."""
        if self._loaded and self._loaded[0] == ref.name:
            return self._loaded[1]
        self._loaded = self._engine = None
        if ref.name == "m0":
            model = self._load_base()
            if model.hash != ref.hash:
                raise UserError(f"config.model.path: {model.name} has changed since the run began.")
            return model
        c = self.config.model
        model = load_model(
            str(self.root / ref.name),
            mesh=self.mesh,
            rules=self.rules,
            dtype=c.dtype,
            param_dtype=c.param_dtype,
            chat=self._chat,
        )
        self._loaded = (ref.name, model)
        return model

    def take(self, ref: ModelRef) -> Model:
        """The weights for training, which consumes them: the run keeps no hold on them."""
        model = self.load(ref)
        self._loaded = self._engine = None
        return model

    def engine(self, ref: ModelRef) -> Engine:
        """A model ready to generate; the same engine for all stages that ask for the same model in turn."""
        model = self.load(ref)
        if self._engine is None or self._engine[0] != ref.name:
            c = self.config.generation
            settings = EngineSettings(
                c.slots, c.length_bucket, c.prefill_tokens, float(c.cache_gib), c.cache_dtype, c.tensor
            )
            self._engine = (ref.name, Engine(model, settings))
        return self._engine[1]

    def reference(self, t: int) -> ModelRef:
        """The frozen model of the preference training that makes M_t (paper: M_{t-1})."""
        return self.named(self.config.dpo.reference, t)

    def named(self, choice: str, t: int) -> ModelRef:
        """`current` is M_{t-1}; `m0` and `m1` are what they say."""
        return self.ref(f"m{t - 1}" if choice == "current" else choice)

    @functools.cached_property
    def _chat(self) -> tuple[LlamaConfig, Chat]:
        return load_chat(self.config.model.path, self.config.model.chat_template)

    @property
    def chat(self) -> Chat:
        """Tokenizer and template, the same for all models of the run."""
        return self._chat[1]

    @property
    def context(self) -> int:
        """The most tokens that a prompt and its response may have together."""
        return self._chat[0].max_position_embeddings

    def chat_hashes(self) -> dict[str, str]:
        """Of tokenizer and chat template."""
        facts = json.loads((self.root / "m0" / MODEL_FILE).read_text())
        return {name: facts[name] for name in ("tokenizer", "chat_template")}

    def keep(self, ref: ModelRef, model: Model) -> None:
        """Holds a model that was just trained, so that the next stage needn't read it."""
        self._loaded, self._engine = (ref.name, model), None

    def claim_training(self, marker: epath.Path, inputs: dict[str, Any]) -> None:
        """Makes sure that a folder's checkpoints are of these inputs; those of other inputs are removed."""
        key = sha256_json(inputs)
        if marker.exists() and marker.read_text() == key:
            return
        hosts.wait(f"{marker} is read")
        if hosts.is_writer():
            for name in ("checkpoints", "tb", MERGED, ADAPTER):
                if (marker.parent / name).exists():
                    (marker.parent / name).rmtree()
            for name in ("metrics.jsonl", SPEED_FILE):
                (marker.parent / name).unlink(missing_ok=True)
        write_atomic(marker, key)
        hosts.wait(f"{marker} is written")

    # Artefacts.

    def hash_of(self, artefact: str) -> str:
        """SHA-256 of an artefact's bytes, as recorded, else read."""
        entry = self.manifest.entry(artefact)
        return entry["sha256"] if entry and "sha256" in entry else sha256_file(self.root / artefact)

    def record(self, artefact: str, inputs: dict[str, Any], **facts: Any) -> None:
        path = self.root / artefact
        hosts.wait(f"{artefact} is written")
        self.manifest.record(
            artefact, inputs, sha256=sha256_file(path), made_by=f"selfreward_jax {__version__}", **facts
        )

    def is_made(self, artefact: str, inputs: dict[str, Any]) -> bool:
        """Whether an artefact is there already, made from exactly these inputs."""
        return self.manifest.is_made(artefact, inputs)

    def todo(
        self, artefact: str, inputs: dict[str, Any], title: str, sizes: Sequence[int]
    ) -> Iterator[tuple[int, Callable[[list[Any], int], None]]]:
        """The parts of an artefact that are still to be made, with a progress bar over all of them.

        Args:
          sizes: rows of each part.

        Yields:
          The part's number, and a function that takes its rows and how many tokens they cost, and stores them.
        """
        journal = self.journal(artefact, inputs)
        left = [n for n in range(len(sizes)) if not journal.has(n)]
        hosts.wait(f"{artefact} is read")
        with meter(title, sum(sizes), done=sum(sizes) - sum(sizes[n] for n in left)) as progress:
            for n in left:
                size = sizes[n]

                def done(rows: list[Any], tokens: int, n: int = n, size: int = size) -> None:
                    journal.write(n, rows)
                    progress.advance(size, tokens)

                yield n, done
                self.interrupt.check()

    @contextlib.contextmanager
    def growing(self, artefact: str, inputs: dict[str, Any], title: str, total: int) -> Iterator["Growing"]:
        """An artefact whose rows come one by one, with a progress bar; what has come is kept whatever happens."""
        journal = self.journal(artefact, inputs)
        before = [row for number in journal.numbers() for row in journal.rows(number)]
        hosts.wait(f"{artefact} is read")
        with meter(title, total, done=len(before)) as progress:
            growing = Growing(journal, before, progress, self.interrupt)
            try:
                yield growing
            finally:
                growing.flush()

    def journal(self, artefact: str, inputs: dict[str, Any]) -> Journal:
        journal = Journal(self.root / artefact, inputs)
        hosts.wait(f"{artefact} is claimed")
        return journal

    def finish(
        self, artefact: str, inputs: dict[str, Any], order: Callable[[Row], Any] | None = None, **facts: Any
    ) -> None:
        """Joins an artefact's parts in the given order and records it."""
        journal = self.journal(artefact, inputs)
        journal.finish(order)
        self.record(artefact, inputs, **facts)
        journal.discard()

    def write(self, artefact: str, inputs: dict[str, Any], text: str, **facts: Any) -> None:
        """Writes an artefact that is made in one go."""
        write_atomic(self.root / artefact, text)
        self.record(artefact, inputs, **facts)

    def log_iteration(self, t: int, metrics: dict[str, Any]) -> None:
        """An iteration's line in the run's own `metrics.jsonl` and TensorBoard; written again, it stays one line."""
        path = self.root / "metrics.jsonl"
        rows = read_jsonl(path) if path.exists() else []
        rows = [row for row in rows if row["step"] != t] + [{"step": t, **metrics}]
        write_atomic(path, "".join(map(to_line, sorted(rows, key=lambda row: row["step"]))))
        if self.config.log.tensorboard and is_local(self.root) and hosts.is_writer():
            board = Board(self.root / "tb")
            board.write(t, metrics)
            board.close()

    def skip(self, title: str) -> None:
        say(f"{title}: done already")
