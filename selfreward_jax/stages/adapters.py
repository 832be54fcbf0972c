"""What the models of a run learnt as LoRA adapters, in PEFT's format: each beside its model, all since M0 as one."""

import dataclasses

from etils import epath

from selfreward_jax.core.errors import UserError
from selfreward_jax.core.hosts import is_writer, wait
from selfreward_jax.core.mesh import make_mesh
from selfreward_jax.core.stored import read_json
from selfreward_jax.llama.config import LlamaConfig
from selfreward_jax.llama.hub import ADAPTER as FILES
from selfreward_jax.llama.load import MODEL_FILE
from selfreward_jax.llama.lora import Adapter, compose
from selfreward_jax.llama.peft import load_adapter, save_adapter
from selfreward_jax.stages.run import ADAPTER


def write_adapter(folder: epath.Path, config: LlamaConfig, adapter: Adapter) -> list[str]:
    """Saves what a model learnt in its folder, in the place of what a stage that was killed left there.

    Returns the names of the files in `folder`.
    """
    if is_writer() and (folder / ADAPTER).exists():
        (folder / ADAPTER).rmtree()
    wait(f"{folder / ADAPTER} is empty")
    save_adapter(folder / ADAPTER, config, adapter)
    return [f"{ADAPTER}/{name}" for name in FILES]


def adapter_since_m0(folder: epath.Path, config: LlamaConfig) -> Adapter:
    """One adapter that makes M_t of the run's M0, as given by `model.path`.

    The adapters of the models on the way are joined: their ranks add up.

    Raises:
      UserError: the folder is no model of a run, or it or a model before it was not made by LoRA.
    """
    name, found = folder.name, []
    while name != "m0":
        path = folder.parent / name / ADAPTER
        if not path.exists():
            raise UserError(f"{path}: not there; only models that a run made with lora.rank > 0 have an adapter.")
        found.append(load_adapter(path, config, make_mesh()))
        name = found[-1].base
    facts = read_json(folder.parent / "m0" / MODEL_FILE, needs={"path": str})
    if facts.get("adapter"):
        found.append(load_adapter(facts["adapter"], config, make_mesh()))
    if not found:
        raise UserError(f"{folder}: M0 itself has no adapter.")
    whole = found[0] if len(found) == 1 else compose(config, found[::-1])
    return dataclasses.replace(whole, base=facts["path"])
