"""A folder with a configuration and models in it, of which one at a time is in memory."""

import abc
import dataclasses
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from selfreward_jax.core.interrupt import Interrupt
from selfreward_jax.core.mesh import make_mesh, make_rules
from selfreward_jax.core.profile import Tracer, Window
from selfreward_jax.core.tokens import Chat
from selfreward_jax.engine.generate import Engine, EngineSettings
from selfreward_jax.llama.config import LlamaConfig
from selfreward_jax.llama.load import Model
from selfreward_jax.stages.folder import Folder


@dataclasses.dataclass(frozen=True)
class ModelRef:
    """A model by name (in a run `m0` to `mT`) with the hash of its weights; `Work.load` gives the weights."""

    name: str
    hash: str

    @property
    def title(self) -> str:
        """For people: M2 in a run, else the end of its path."""
        last = self.name.rstrip("/").rsplit("/", 1)[-1]
        return last.upper() if last[:1] == "m" and last[1:].isdigit() else last


def engine_settings(section) -> EngineSettings:
    """From the `generation` section of the configuration."""
    c = section
    gib = float(c.cache_gib)
    return EngineSettings(c.slots, c.length_bucket, c.prefill_tokens, gib, c.cache_dtype, c.tensor, c.attention)


class Work(Folder, abc.ABC):
    """What the stages that ask a model something work in. At most one model's weights are in memory."""

    def __init__(self, root: epath.PathLike, config: ConfigDict, interrupt: Interrupt | None = None):
        super().__init__(root, interrupt)
        self.config: Any = config  # ConfigDict's attributes have no types
        c = self.config.mesh
        self.mesh, self.rules = make_mesh(c.data, c.fsdp, c.tensor), make_rules(c.rules.to_dict())
        self.profile: Window | None = None  # which steps of each stage are traced
        self._loaded: tuple[str, Model] | None = None
        self._engine: tuple[str, Engine] | None = None

    @abc.abstractmethod
    def _read(self, ref: ModelRef) -> Model:
        """The weights of a model from disk."""

    @abc.abstractmethod
    def words(self, ref: ModelRef) -> tuple[LlamaConfig, Chat]:
        """A model's shape, and its tokenizer with its template, without its weights."""

    def chat_of(self, ref: ModelRef) -> Chat:
        """A model's tokenizer and template."""
        return self.words(ref)[1]

    def context_of(self, ref: ModelRef) -> int:
        """The most tokens that a prompt and its response may have together."""
        return self.words(ref)[0].max_position_embeddings

    def sampling_inputs(self, ref: ModelRef) -> dict[str, Any]:
        """What all that a model samples follows from, beside what it is asked and how."""
        c = self.config
        return {
            "model": ref.hash,
            "chat": self.chat_of(ref).hashes,
            "dtype": c.model.dtype,
            "generation": c.generation.to_dict(),
            "seed": c.seed,
        }

    def tracer(self, artefact: str) -> Tracer:
        """For the stage that makes an artefact; its trace lies in `profile/` beside that."""
        folder, _, name = artefact.rpartition("/")
        return Tracer(self.root / folder / "profile" / name.removesuffix(".jsonl"), self.profile)

    def load(self, ref: ModelRef) -> Model:
        """The weights of a model; those of any other are let go first."""
        if self._loaded is None or self._loaded[0] != ref.name:
            self._loaded = self._engine = None
            self._loaded = (ref.name, self._read(ref))
        return self._loaded[1]

    def engine(self, ref: ModelRef) -> Engine:
        """A model ready to generate; the same engine for all stages that ask for the same model in turn."""
        model = self.load(ref)
        if self._engine is None or self._engine[0] != ref.name:
            self._engine = (ref.name, Engine(model, engine_settings(self.config.generation)))
        return self._engine[1]
