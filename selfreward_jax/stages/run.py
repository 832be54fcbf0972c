"""A run: its folder, its configuration and its models M0 to MT."""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import platform
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from selfreward_jax import __version__
from selfreward_jax.core import hosts, lock
from selfreward_jax.core.commit import commit
from selfreward_jax.core.config import check_types, differences, to_dict
from selfreward_jax.core.errors import ReadOnly, UserError
from selfreward_jax.core.interrupt import Interrupt
from selfreward_jax.core.metrics import METRICS_FILE, SPEED_FILE, Board, Tracker
from selfreward_jax.core.paths import is_local, local_path, matching
from selfreward_jax.core.progress import say
from selfreward_jax.core.rows import Row, read_jsonl, to_lines
from selfreward_jax.core.store import Manifest, claim, is_claimed, write_atomic
from selfreward_jax.core.stored import read_json
from selfreward_jax.core.tokens import Chat
from selfreward_jax.llama.config import LlamaConfig, config_to_json
from selfreward_jax.llama.hub import at, commit_of
from selfreward_jax.llama.load import MERGED, MODEL_FILE, Model, load_chat, load_model, locate
from selfreward_jax.stages.work import ModelRef, Work

CONFIG_MEND = "go on with --config=FILE and --config.FIELD=VALUE as it was begun (--resume=force for any other)"
ITERATIONS = "metrics.jsonl"  # of the run itself: a line an iteration
CHOICE = "choice"  # there, of a checkpoint that a judge chose: the answers and verdicts that the choice rests on
ADAPTER = "adapter"  # in the folder of a model that LoRA made: what it learnt, in PEFT's format


def versions() -> dict[str, str]:
    """Of what can change a run's numbers."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "tokenizers", "numpy")
    found = {name: importlib.metadata.version(name) for name in packages}
    own = {"selfreward_jax": __version__} | ({"commit": commit()} if commit() else {})
    return {"python": platform.python_version(), **own, **found}


def models_of(root: epath.Path) -> list[str]:
    """The names of a run's models from M1 on, as far as they are made, in their order."""
    made = [path for path in matching(root, "m*") if path.name[1:].isdigit() and (path / MODEL_FILE).exists()]
    return sorted((path.name for path in made if path.name != "m0"), key=lambda name: int(name[1:]))


def stored_config(root: epath.Path) -> dict[str, Any]:
    """The configuration of the run in a folder.

    Raises:
      UserError: there is no run, or someone has edited the file.
    """
    path = Manifest(root).intact("config.json", CONFIG_MEND)
    if not path.exists():
        raise UserError(f"--workdir={root}: no run there.")
    stored = read_json(path)
    check_types(stored, f"{path}: ")
    return stored


class Run(Work):
    """What the stages of the algorithm work in; its models share one tokenizer."""

    def __init__(self, workdir: str, config: ConfigDict, *, resume: str = "", interrupt: Interrupt | None = None):
        """Opens or begins a run.

        Args:
          resume: "force" to go on in a folder that was begun with another configuration.

        Raises:
          UserError: the folder belongs to another configuration, or isn't a run.
        """
        _claim(local_path(workdir), config, resume)
        self.forced = resume == "force"
        hosts.wait("the run is claimed")
        super().__init__(workdir, config, interrupt)
        with contextlib.suppress(ReadOnly):  # nothing needs to be written to a run that is finished
            self.record("config.json", {}, seed=config.seed, versions=versions())
        tracked = config.tracker == "wandb" and hosts.is_writer()
        self.tracker = Tracker(self.root, to_dict(config)) if tracked else None

    def base(self) -> ModelRef:
        """M0, hashed once and recorded.

        Raises:
          UserError: its tokenizer, chat template or shape is no longer what it was.
        """
        c = self.config.model
        inputs = {"stage": "base", "model": c.to_dict()}
        config, chat = self._chat
        words = {**chat.hashes, "config": json.loads(config_to_json(config, c.param_dtype))}
        if not self.is_made(f"m0/{MODEL_FILE}", inputs) or (self.forced and self._other(words)):
            model = self._read_base()
            self._loaded = ("m0", model)
            facts = {"hash": model.hash, "path": c.path, **words}
            facts |= {"adapter": c.adapter} if c.adapter else {}
            facts |= {"date": model.chat.date} if model.chat.date else {}
            commit = commit_of(locate(self._base_path, "config"))
            facts |= {"commit": commit} if commit else {}
            self.check_again(f"m0/{MODEL_FILE}", inputs, hash=model.hash)
            write_atomic(self.root / "m0" / MODEL_FILE, json.dumps(facts, indent=2) + "\n")
            self.record(f"m0/{MODEL_FILE}", inputs, **facts)
        if other := self._other(words):
            raise UserError(
                f"config.model.path: {self._base_path}: {other} is not what it was when the run began; restore it, or"
                " use --resume=force to go on with the new one."
            )
        return self.ref("m0")

    def _other(self, words: dict[str, Any]) -> str:
        """What of M0 beside its weights is not as recorded, as far as that is known; for people."""
        facts = read_json(self.root / "m0" / MODEL_FILE)
        then, now = ({**x, **{f"config.json's {k}": v for k, v in x.get("config", {}).items()}} for x in (facts, words))
        names = [name for name in now if name != "config" and name in then and then[name] != now[name]]
        return f"its {names[0]}" if names else ""

    def _read_base(self) -> Model:
        c = self.config.model
        return load_model(
            self._base_path,
            mesh=self.mesh,
            rules=self.rules,
            dtype=c.dtype,
            param_dtype=c.param_dtype,
            adapter=c.adapter,
            chat=self._chat,
        )

    @functools.cached_property
    def _base_path(self) -> str:
        """Where M0 lies; on the hub, at the commit with which the run began."""
        begun, given = self.manifest.entry(f"m0/{MODEL_FILE}") or {}, self.config.model.path
        return at(given, begun.get("commit", "") if begun.get("path") == given else "")

    def ref(self, name: str) -> ModelRef:
        """A model that exists already.

        Raises:
          UserError: it has not been made yet.
        """
        if self.manifest.entry(f"{name}/{MODEL_FILE}") is None:
            raise UserError(
                f"{self.root / name}: {name.upper()} has not been made yet; run the stages before it first."
            )
        return ModelRef(name, read_json(self.intact(f"{name}/{MODEL_FILE}"), needs={"hash": str})["hash"])

    def intact(self, artefact: str) -> epath.Path:
        return self.manifest.intact(artefact, f"selfreward run --workdir={self.root} makes it again")

    def _read(self, ref: ModelRef) -> Model:
        if ref.name == "m0":
            model = self._read_base()
            if model.hash != ref.hash:
                raise UserError(f"config.model.path: {model.name} has changed since the run began.")
            return model
        c = self.config.model
        return load_model(
            str(self.root / ref.name),
            mesh=self.mesh,
            rules=self.rules,
            dtype=c.dtype,
            param_dtype=c.param_dtype,
            chat=self._chat,
        )

    def take(self, ref: ModelRef) -> Model:
        """The weights for training, which consumes them: the run keeps no hold on them."""
        model = self.load(ref)
        self._loaded = self._engine = None
        return model

    def reference(self, t: int) -> ModelRef:
        """The frozen model of the preference training that makes M_t (paper: M_{t-1})."""
        return self.named(self.config.dpo.reference, t)

    def grader(self, current: ModelRef) -> ModelRef:
        """The model that judges: `current`, the one that answered (paper), unless `judge.by` names another."""
        return current if self.config.judge.by == "current" else self.ref(self.config.judge.by)

    def named(self, choice: str, t: int) -> ModelRef:
        """`current` is M_{t-1}; `m0` and `m1` are what they say."""
        return self.ref(f"m{t - 1}" if choice == "current" else choice)

    @functools.cached_property
    def _chat(self) -> tuple[LlamaConfig, Chat]:
        c = self.config.model
        return load_chat(self._base_path, c.chat_template, c.date)

    @property
    def chat(self) -> Chat:
        """Tokenizer and template, the same for all models of the run."""
        return self._chat[1]

    @property
    def context(self) -> int:
        """The most tokens that a prompt and its response may have together."""
        return self._chat[0].max_position_embeddings

    def words(self, ref: ModelRef) -> tuple[LlamaConfig, Chat]:
        return self._chat

    def keep(self, ref: ModelRef, model: Model) -> None:
        """Holds a model that was just trained, so that the next stage needn't read it."""
        self._loaded, self._engine = (ref.name, model), None

    def claim_training(self, marker: epath.Path, inputs: dict[str, Any]) -> None:
        """Makes sure that a folder's checkpoints are of these inputs; those of other inputs are removed."""
        if is_claimed(marker, inputs):
            return
        hosts.wait(f"{marker} is read")
        if hosts.is_writer():
            for name in ("checkpoints", "tb", MERGED, ADAPTER, CHOICE):
                if (marker.parent / name).exists():
                    (marker.parent / name).rmtree()
            for name in (METRICS_FILE, SPEED_FILE):
                (marker.parent / name).unlink(missing_ok=True)
        self.manifest.forget(f"{marker.parent.name}/{METRICS_FILE}")
        claim(marker, inputs)
        hosts.wait(f"{marker} is written")

    def check_rest(self) -> None:
        """Raises `UserError` for what was changed and no stage has made again, since none reads it."""
        choices = (self.root / f"m{t}" / CHOICE for t in range(1, self.config.loop.iterations + 1))
        for manifest in (self.manifest, *map(Manifest, choices)):
            for name in [entry["artefact"] for entry in manifest.artefacts()]:
                if (manifest.root / name).exists():
                    manifest.intact(name, "delete it: only the report may miss it")

    def log_iteration(self, t: int, metrics: dict[str, Any]) -> None:
        """An iteration's line in the run's own `metrics.jsonl` and curves; written again, it stays one line."""
        rows = [row for row in self._logged() if row["step"] != t] + [{"step": t, **metrics}]
        write_atomic(self.root / ITERATIONS, to_lines(sorted(rows, key=lambda row: row["step"])))
        self.record(ITERATIONS, {})
        if self.config.log.tensorboard and is_local(self.root) and hosts.is_writer():
            board = Board(self.root / "tb")
            board.write(t, metrics)
            board.close()
        if self.tracker:
            self.tracker.write("iterations", t, metrics)

    def _logged(self) -> list[Row]:
        """The lines of `metrics.jsonl`; none where it isn't what was written."""
        path = self.root / ITERATIONS
        return read_jsonl(path) if path.exists() and not self.manifest.changed(ITERATIONS) else []

    def has_logged(self, t: int) -> bool:
        """Whether an iteration has its line, so that what it tells need not be counted again."""
        if not hosts.any_of(all(row["step"] != t for row in self._logged())):
            return True
        say(f"{self.manifest.changed(ITERATIONS) or f'{ITERATIONS}: has no line of M{t}'}; made again")
        return False


def _claim(root: epath.Path, config: ConfigDict, resume: str) -> None:
    """Writes the configuration of a new run, or compares it with that of an old one."""
    path, manifest = root / "config.json", Manifest(root)
    text = json.dumps(to_dict(config), indent=2) + "\n"
    entry = manifest.entry("config.json")
    if not manifest.path.exists() and path.exists() and (root / "m0").exists():
        raise UserError(f"{manifest.path}: not there any more, so nobody knows what made what; restore it from a copy.")
    if entry and manifest.changed("config.json") and resume != "force":
        _heal(path, manifest.changed("config.json"), text, entry["sha256"])
    elif path.exists() and not manifest.changed("config.json"):
        changed = differences(stored_config(root), to_dict(config))
        # Until training begins, there is nothing that another configuration could mix with.
        if changed and resume != "force" and (root / "m1").exists():
            shown = "; ".join(changed[:5]) + (f"; and {len(changed) - 5} more" if len(changed) > 5 else "")
            raise UserError(
                f"--workdir={root}: begun with another configuration ({shown});"
                " use --resume=force to go on with the new one, or a new folder."
            )
        if not changed:
            return
    elif entry is None and root.exists() and not lock.is_empty(root):
        raise UserError(f"--workdir={root}: not empty and not a run; choose a new folder.")
    hosts.wait("the folder is looked at")
    write_atomic(path, text)


def _heal(path: epath.Path, changed: str, text: str, sha256: str) -> None:
    """Lets a configuration that was changed or lost be written again, if what is asked for is the one that it was."""
    was_stopped = path.exists() and path.read_bytes() == text.encode()  # between its writing and its record
    if not was_stopped:
        if hashlib.sha256(text.encode()).hexdigest() != sha256:
            raise UserError(
                f"{path.parent}: {changed}, and what is asked for is another; restore it, or {CONFIG_MEND}."
            )
        say(f"{changed}; written again")
