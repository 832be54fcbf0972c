"""Models by their name on the hub: `huggingface_hub` downloads them into its cache, from a hub on this machine."""

import json
import os
import shutil
import subprocess
import sys

import huggingface_hub
import jax
import numpy as np
import pytest
from huggingface_hub import constants

import selfreward_jax as sr
from selfreward_jax import cli
from selfreward_jax.core.errors import UserError
from selfreward_jax.core.mesh import make_mesh
from selfreward_jax.evals.desk import Desk
from selfreward_jax.llama import hf, hub
from selfreward_jax.llama.load import load_chat, load_model, read_config
from selfreward_jax.llama.lora import Adapter, LoraSettings, merge
from selfreward_jax.llama.peft import load_adapter, save_adapter
from selfreward_jax.report.card import base_of
from selfreward_jax.stages.run import Run
from tests import tiny
from tests.core import small_tokenizers
from tests.llama.hub_server import Hub, commit
from tests.llama.test_gguf import write_gguf
from tests.llama.test_lora import random_adapter

LEFT = ("pytorch_model.bin", "consolidated.safetensors", "original/model.safetensors", "onnx/model.onnx", "x.gguf")


def sharded(folder, source):
    """The same weights in two shards, as large models have them, beside files of other programs."""
    shutil.copytree(source, folder)
    tensors = list(hf.safetensors.numpy.load_file(folder / "model.safetensors").items())
    (folder / "model.safetensors").unlink()
    index = {}
    for number, part in enumerate((tensors[::2], tensors[1::2]), 1):
        name = f"model-{number:05d}-of-00002.safetensors"
        hf.safetensors.numpy.save_file(dict(part), folder / name)
        index |= dict.fromkeys(dict(part), name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    for name in LEFT[:4]:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"not to be read")
    return folder


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    model = tiny.make_model(root / "model")
    config = hf.read_config(model)
    settings = LoraSettings(rank=2, alpha=4.0, targets=("q",))
    save_adapter(root / "adapter", config, Adapter(settings, random_adapter(config, settings, size=0.1), "org/tiny"))
    of_v1 = shutil.copytree(root / "adapter", root / "of_v1")
    fields = json.loads((of_v1 / "adapter_config.json").read_text()) | {"revision": "v1"}
    (of_v1 / "adapter_config.json").write_text(json.dumps(fields))
    pickled = shutil.copytree(model, root / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    other = shutil.copytree(model, root / "other")
    (other / "config.json").write_text('{"model_type": "gpt2"}')
    (root / "gguf").mkdir()
    write_gguf(root / "gguf" / "m.gguf", split=8)
    (root / "dataset").mkdir()
    (root / "dataset" / "rows.jsonl").write_text("")
    folders = {
        "tiny": sharded(root / "sharded", model), "gated": model, "pickled": pickled, "other": other,
        "adapter": root / "adapter", "of_v1": of_v1, "m-GGUF": root / "gguf", "dataset": root / "dataset",
    }  # fmt: skip
    repos = {(f"org/{name}", "main"): folder for name, folder in folders.items()}
    repos["org/tiny", "v1"] = tiny.make_model(root / "v1", seed=1)
    made = Hub(repos, {"org/gated": "secret"})
    server = made.serve()
    yield made
    server.shutdown()


def point(monkeypatch, url, cache, offline=False):
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    huggingface_hub.close_session()
    hub._repository.cache_clear()


@pytest.fixture
def online(served, monkeypatch, tmp_path):
    """The hub on this machine, and an empty cache for what it sends."""
    monkeypatch.chdir(tmp_path)
    point(monkeypatch, served.url, tmp_path / "cache")
    served.sent.clear()
    yield served
    hub._repository.cache_clear()


@pytest.fixture
def without_network(online, monkeypatch, tmp_path):
    """Call it, and the hub can't be reached; with what is in the cache so far."""
    return lambda offline=False: point(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache", offline)


def same(model, folder):
    expected = load_model(str(folder))
    jax.tree.map(np.testing.assert_array_equal, model.params, expected.params)
    assert (model.config, model.chat.hashes) == (expected.config, expected.chat.hashes)


# ---------------------------------------------------------------------------------------------------------------------
# What is downloaded


def test_a_name_is_the_model_and_only_what_is_read_is_downloaded(online):
    same(load_model("org/tiny"), online.repos["org/tiny", "main"])
    small = ["chat_template.jinja", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
    assert sorted(online.sent) == [f"org/tiny/{name}" for name in sorted(small + shards)]


def test_the_shape_alone_needs_the_configuration_alone(online):
    assert read_config("org/tiny") == hf.read_config(online.repos["org/tiny", "main"])
    assert sorted(online.sent) == ["org/tiny/config.json", "org/tiny/generation_config.json"]
    load_chat("org/tiny")
    assert not [name for name in online.sent if "safetensors" in name]


def test_a_revision_is_a_branch_a_tag_or_a_commit(online):
    v1 = online.repos["org/tiny", "v1"]
    same(load_model("org/tiny@v1"), v1)
    sent = len(online.sent)
    same(load_model(f"org/tiny@{commit('org/tinyv1')}"), v1)
    assert len(online.sent) == sent  # the same files


def test_within_a_process_a_name_stays_the_same_commit(online):
    chat = load_chat("org/tiny")
    before = online.repos["org/tiny", "main"]
    online.moved["org/tiny"] = "v1"
    try:
        same(load_model("org/tiny", chat=chat), before)
        hub._repository.cache_clear()  # as in another process
        same(load_model("org/tiny"), online.repos["org/tiny", "v1"])
    finally:
        online.moved.clear()


def test_a_folder_of_the_same_path_comes_first(online, tmp_path):
    shutil.copytree(online.repos["org/tiny", "v1"], tmp_path / "org" / "tiny")
    same(load_model("org/tiny"), tmp_path / "org" / "tiny")
    assert not online.sent
    for path in ("./org/gated", "org/tiny/deeper", "/org/gated", "../org/gated", "org/gated.gguf", "x"):
        with pytest.raises(UserError, match=f"^model.path: .*{path.strip('./')}: no such file or folder.$"):
            load_model(path)


def test_a_gguf_file_of_a_repository(online):
    folder = online.repos["org/m-GGUF", "main"]
    assert read_config("org/m-GGUF/m-00002-of-00003.gguf") == read_config(str(folder / "m-00001-of-00003.gguf"))
    assert sorted(online.sent) == [f"org/m-GGUF/m-0000{n}-of-00003.gguf" for n in (1, 2, 3)]


def test_a_gated_model_with_the_token_of_the_environment(online, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    same(load_model("org/gated"), online.repos["org/gated", "main"])


# ---------------------------------------------------------------------------------------------------------------------
# Adapters


def test_an_adapter_by_name(online):
    base, folder = online.repos["org/tiny", "main"], online.repos["org/adapter", "main"]
    model = load_model("org/tiny", adapter="org/adapter")
    expected = load_model(str(base), adapter=str(folder))
    jax.tree.map(np.testing.assert_array_equal, model.params, expected.params)
    assert model.name == "org/tiny + org/adapter"


@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize(("name", "revision"), [("adapter", "main"), ("of_v1", "v1")])
def test_an_adapter_given_as_the_model_brings_its_base(name, revision, local, online):
    folder = online.repos[f"org/{name}", "main"]
    model = load_model(str(folder) if local else f"org/{name}")
    base = load_model(str(online.repos["org/tiny", revision]))
    learnt = load_adapter(folder, base.config, make_mesh())
    assert read_config(f"org/{name}") == base.config
    jax.tree.map(np.testing.assert_array_equal, model.params, merge(learnt.settings, base.params, learnt.params))


def test_an_adapter_that_names_no_base_is_refused(online, tmp_path):
    folder = shutil.copytree(online.repos["org/adapter", "main"], tmp_path / "adapter")
    fields = json.loads((folder / "adapter_config.json").read_text()) | {"base_model_name_or_path": None}
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    refused("names no base_model_name_or_path; give the base", str(folder))


# ---------------------------------------------------------------------------------------------------------------------
# Without a network, and what can't be had


@pytest.mark.parametrize("offline", [True, False])
def test_what_is_in_the_cache_needs_no_network(offline, online, without_network):
    load_model("org/tiny")
    load_model("org/tiny@v1", adapter="org/adapter")
    without_network(offline)
    same(load_model("org/tiny"), online.repos["org/tiny", "main"])
    same(load_model("org/tiny@v1"), online.repos["org/tiny", "v1"])
    same(load_model(f"org/tiny@{commit('org/tinymain')}"), online.repos["org/tiny", "main"])
    load_model("org/adapter")


def test_what_is_not_in_the_cache_is_refused_without_a_network(online, without_network):
    read_config("org/tiny")
    without_network(offline=True)
    assert read_config("org/tiny").vocab_size
    refused("org/tiny: no such file .* here, nor all that is needed in the cache .* HF_HUB_OFFLINE is set", "org/tiny")
    refused(r"org/tiny@v1: .* HF_HUB_OFFLINE is set; download it where .* \(hf download org/tiny\)", "org/tiny@v1")
    without_network()
    refused("org/nowhere: .* http://127.0.0.1:9 can't be reached", "org/nowhere")
    with pytest.raises(UserError, match="can't be reached"):
        load_model("org/tiny", adapter="org/adapter")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("org/nowhere", "org/nowhere: no such file or folder here, and no such model at http.* HF_TOKEN"),
        ("org/tiny@v9", "org/tiny has no revision 'v9'; give a branch, a tag or a commit"),
        ("org/gated", "gated; ask for access at http.*/org/gated, then log in .* or set HF_TOKEN"),
        ("org/pickled", "has no safetensors weights; pickles, .*: pytorch_model.bin; name a repository"),
        ("org/other", "model_type 'gpt2' is not supported; llama and mistral"),
        ("org/m-GGUF", r"holds GGUF files; name one, such as org/m-GGUF/m-00001-of-00003\.gguf"),
        ("org/m-GGUF/x.gguf", r"org/m-GGUF: has no file x\.gguf; it has m-00001-of-00003\.gguf, "),
        ("org/dataset", r"has no config\.json, so it is no model"),
    ],
)
def test_what_can_not_be_had_is_one_line(name, message, online):
    refused(message, name)
    assert not [file for file in online.sent if file.endswith((".safetensors", ".bin", ".gguf"))]


def test_a_token_without_access_is_refused(online, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "wrong")
    refused("gated; ask for access", "org/gated")


def test_a_repository_without_an_adapter_is_none(online):
    with pytest.raises(UserError, match=r"org/tiny: has no adapter_config\.json and adapter_model\.safetensors"):
        load_model("org/tiny", adapter="org/tiny")


def refused(message, path):
    with pytest.raises(UserError, match=message) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------------------------------------
# Where models are named


def test_verbs_take_names(online, tmp_path, capsys):
    rows = tiny.write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "Is it so?", "response": "yes"}])
    words = ["score", "--model=org/tiny", "--reference=org/tiny@v1", f"--input={rows}", "--output=scored.jsonl"]
    assert cli.main(words) == 0
    (named,) = tiny.read_jsonl(tmp_path / "scored.jsonl")
    folders = [online.repos["org/tiny", revision] for revision in ("main", "v1")]
    words = ["score", f"--model={folders[0]}", f"--reference={folders[1]}", f"--input={rows}", "--output=local.jsonl"]
    assert cli.main(words) == 0
    assert tiny.read_jsonl(tmp_path / "local.jsonl") == [named]
    assert cli.main(["score", "--model=org/nowhere", f"--input={rows}", "--output=none.jsonl"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("selfreward: org/nowhere: no such file or folder here")


def test_a_run_records_the_commit_and_stays_with_it(online, data, tmp_path):
    config = tiny.make_config(data, {"model.path": "org/tiny"})
    begun = Run(str(tmp_path / "run"), config).base()
    facts = json.loads((tmp_path / "run" / "m0" / "model.json").read_text())
    assert (facts["path"], facts["commit"], facts["hash"]) == ("org/tiny", commit("org/tinymain"), begun.hash)
    online.moved["org/tiny"] = "v1"
    hub._repository.cache_clear()  # as in another process
    try:
        again = Run(str(tmp_path / "run"), config)
        assert again.load(again.base()).hash == begun.hash
        desk = Desk(tmp_path / "desk", config)
        assert desk.ref(str(tmp_path / "run" / "m0")).hash == begun.hash
        assert desk.ref("org/tiny").hash != begun.hash
    finally:
        online.moved.clear()


@pytest.fixture
def licensed(online, tmp_path):
    """Cards at the hub, as models have them."""
    folder = shutil.copytree(online.repos["org/tiny", "main"], tmp_path / "licensed")
    (folder / "README.md").write_text("---\nlicense: llama3.1\nbase_model: org/older\n---\n")
    other = shutil.copytree(online.repos["org/m-GGUF", "main"], tmp_path / "quantised")
    (other / "README.md").write_text("---\nlicense: mit\n---\n")
    online.repos |= {("org/licensed", "main"): folder, ("org/q-GGUF", "main"): other}
    yield online
    del online.repos["org/licensed", "main"], online.repos["org/q-GGUF", "main"]


def test_a_card_tells_base_and_license_and_downloads_the_bases_card_alone(licensed, data, tmp_path, without_network):
    Run(str(tmp_path / "run"), tiny.make_config(data, {"model.path": "org/licensed"})).base()
    (tmp_path / "run" / "m1").mkdir()
    (tmp_path / "run" / "m1" / "model.json").write_text('{"hash": "h", "checkpoint": 1}')
    expected = {"license": "llama3.1", "base_model": "org/licensed"}
    point_at = tmp_path / "cache"
    shutil.rmtree(point_at)  # as on another machine
    hub._repository.cache_clear()
    licensed.sent.clear()
    assert base_of(str(tmp_path / "run" / "m1")).facts == expected
    assert licensed.sent == ["org/licensed/README.md"]
    read_config("org/licensed")
    refs = {path: path.read_text() for path in point_at.glob("*/refs/*")}
    assert base_of("org/licensed").facts == base_of("org/licensed@main").facts == expected
    assert {path: path.read_text() for path in point_at.glob("*/refs/*")} == refs
    read_config("org/q-GGUF/m-00001-of-00003.gguf")
    assert base_of("org/q-GGUF/m-00001-of-00003.gguf").facts == {"license": "mit", "base_model": "org/q-GGUF"}
    without_network()
    assert base_of(str(tmp_path / "run" / "m1")).facts == expected
    shutil.rmtree(point_at)
    assert base_of(str(tmp_path / "run" / "m1")).facts == {"base_model": "org/licensed"}


def test_an_exports_date_comes_with_it_from_the_hub(online, tmp_path):
    tokenizer = small_tokenizers.with_template(small_tokenizers.llama3(), small_tokenizers.DATED)
    model = tiny.make_model(tmp_path / "model", tokenizer=tokenizer, max_position_embeddings=4096)
    sr.export(sr.load(str(model), date="2031-02-01"), str(tmp_path / "out"))
    online.repos["org/dated", "main"] = tmp_path / "out"
    try:
        assert load_chat("org/dated")[1].date == "2031-02-01"
    finally:
        del online.repos["org/dated", "main"]


@pytest.mark.slow
def test_the_environment_of_huggingface_hub_is_obeyed(served, tmp_path):
    """In a process of its own, with nothing but environment variables: a download, and then the cache alone."""
    code = "import selfreward_jax as sr; print(sr.load('org/tiny').hash)"
    env = tiny.environment() | {"HF_HOME": str(tmp_path), "HF_ENDPOINT": served.url, "HF_HUB_OFFLINE": "0"}
    first = run_python(code, env)
    second = run_python(code, env | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"})
    assert first == second == load_model(str(served.repos["org/tiny", "main"])).hash
    assert sorted(os.listdir(tmp_path / "hub" / "models--org--tiny"))[:2] == ["blobs", "refs"]


def run_python(code, env):
    ended = subprocess.run([sys.executable, "-c", code], cwd=tiny.ROOT, env=env, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()
