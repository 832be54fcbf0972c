"""SFT and DPO with adapters by the command line: models that everything else can load, and adapters for PEFT."""

import json
import math
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath

from selfreward_jax import cli
from selfreward_jax.core.errors import UserError
from selfreward_jax.core.mesh import make_mesh
from selfreward_jax.llama.load import load_model
from selfreward_jax.llama.lora import LoraSettings
from selfreward_jax.llama.peft import load_adapter
from selfreward_jax.stages.run import Run
from selfreward_jax.stages.training import training_inputs
from selfreward_jax.verbs.models import newest_model
from tests import tiny

pytestmark = pytest.mark.slow

CHANGES = {
    "lora.rank": 4,
    "lora.alpha": 8.0,
    "lora.targets": "('q', 'v', 'o', 'down')",
    "sft.epochs": 2,
    "loop.iterations": 2,
    "loop.score_last": False,
}
SETTINGS = LoraSettings(4, 8.0, ("q", "v", "o", "down"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    """Pairs of another run. What they prefer doesn't matter here."""
    return tiny.shared_run(tmp_path_factory.getbasetemp()) / "m2" / "pairs.jsonl"


@pytest.fixture(scope="module")
def run(data, pairs, tmp_path_factory) -> Path:
    """M1 and M2. Only to be read."""
    workdir = tmp_path_factory.mktemp("lora") / "run"
    assert cli.main(tiny.arguments("sft", workdir, data, CHANGES)) == 0
    (workdir / "m2").mkdir()
    shutil.copy(pairs, workdir / "m2" / "pairs.jsonl")
    assert cli.main(tiny.arguments("dpo", workdir, data, CHANGES)) == 0
    return workdir


def assert_same(one, other, **tolerance) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **{"rtol": 0.0} | tolerance), one.params, other.params)


def test_every_model_loads_as_the_one_before_with_its_adapter(run, data):
    before = str(data / "model")
    for name, base in (("m1", "m0"), ("m2", "m1")):
        model = load_model(str(run / name))
        assert json.loads((run / name / "model.json").read_text())["hash"] == model.hash
        adapter = load_adapter(run / name / "adapter", model.config, make_mesh())
        assert (adapter.settings, adapter.base) == (SETTINGS, base)
        assert load_model(before, adapter=str(run / name / "adapter")).hash == model.hash
        assert load_model(before).hash != model.hash
        before = str(run / name)


def test_checkpoints_hold_the_adapter_alone(run):
    for name in ("m1", "m2"):
        (step,) = (path for path in (run / name / "checkpoints").iterdir())
        assert {path.name for path in step.iterdir() if path.is_dir()} == {"adapter"}
        size = lambda folder: sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())  # noqa: E731
        assert size(run / name / "checkpoints") < size(run / name / "merged") / 2


def test_dpo_begins_at_ln_2_since_the_reference_is_the_model_without_its_adapter(run):
    log = tiny.read_jsonl(run / "m2" / "metrics.jsonl")
    assert log[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert log[0]["rewards/margins"] == pytest.approx(0.0, abs=1e-4)
    assert tiny.read_jsonl(run / "m1" / "metrics.jsonl")[-1]["loss"] < 5.0


def test_a_training_killed_before_its_model_was_named_ends_as_if_it_had_not_been(run, data, tmp_path, monkeypatch):
    words = tiny.arguments("sft", tmp_path / "run", data, CHANGES)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("selfreward_jax.stages.training.save_model_files", killed)
        assert cli.main(words) == 130
    assert not (tmp_path / "run" / "m1" / "model.json").exists()
    assert cli.main(words) == 0
    for name in ("model.json", "metrics.jsonl", "adapter/adapter_config.json", "adapter/adapter_model.safetensors"):
        assert (tmp_path / "run" / "m1" / name).read_bytes() == (run / "m1" / name).read_bytes(), name


def test_what_was_learnt_since_m0_is_exported_as_one_adapter(run, data, tmp_path, capsys):
    folder = tmp_path / "adapter"
    assert cli.main(["export", f"--model={run / 'm2'}", "--adapter_only", f"--output={folder}"]) == 0
    assert f"an adapter of {data / 'model'} for PEFT" in capsys.readouterr().err.replace("\n", " ")
    fields = json.loads((folder / "adapter_config.json").read_text())
    assert (fields["r"], fields["base_model_name_or_path"]) == (8, str(data / "model"))
    learnt = load_model(str(run / "m2"))
    assert_same(load_model(str(data / "model"), adapter=str(folder)), learnt, atol=1e-6)

    words = ["export", f"--model={data / 'model'}", f"--adapter={folder}", f"--output={tmp_path / 'merged'}"]
    assert cli.main(words) == 0
    assert_same(load_model(str(tmp_path / "merged")), learnt, atol=1e-6)


def test_a_run_may_begin_with_an_adapter_on_its_m0(run, data, tmp_path):
    config = tiny.make_config(data, {"model.adapter": str(run / "m1" / "adapter")})
    begun = Run(str(tmp_path / "run"), config)
    assert begun.base().hash == load_model(str(run / "m1")).hash
    assert begun.load(begun.ref("m0")).hash == begun.ref("m0").hash
    assert newest_model(str(tmp_path / "run")) == (str(data / "model"), str(run / "m1" / "adapter"))


def test_adapters_settings_belong_to_what_a_model_depends_on(data, tmp_path):
    def inputs(changes):
        begun = Run(str(tmp_path / str(len(list(tmp_path.iterdir())))), tiny.make_config(data, changes))
        return training_inputs(begun, "sft", begun.config.sft, [], begun.base())

    assert inputs({}) == inputs({"lora.alpha": 1.0})  # without a rank there is no adapter
    assert len({json.dumps(inputs({"lora.rank": 4, "lora.alpha": alpha})) for alpha in (1.0, 2.0)}) == 2


def test_a_model_without_an_adapter_is_refused_in_one_line(run, data, pairs, tmp_path, capsys):
    for words, reason in (
        ([f"--model={pairs.parent}", "--adapter_only"], "only models that a run made with lora.rank > 0"),
        ([f"--model={run / 'm2'}", "--adapter_only", "--adapter=a"], "either --adapter=DIR or --adapter_only"),
        ([f"--model={data / 'model'}", "--adapter=nowhere"], "nowhere: no such folder"),
        ([f"--model={data / 'model'}", f"--adapter={data / 'model'}"], "adapter_config.json: no such file"),
    ):
        assert cli.main(["export", *words, f"--output={tmp_path / 'out'}"]) == 2
        error = capsys.readouterr().err
        assert reason in error and error.count("\n") == 1
    with pytest.raises(UserError, match="nowhere: no such folder"):
        Run(str(tmp_path / "run"), tiny.make_config(data, {"model.adapter": "nowhere"})).base()
    assert not epath.Path(tmp_path / "out").exists()
