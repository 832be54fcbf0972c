"""The model card: read by huggingface_hub, and by a reader of Markdown, whatever the names in it are."""

import json
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from selfreward_jax.configs import base
from selfreward_jax.core.config import to_dict
from selfreward_jax.report.card import base_of, model_card, sampling_of
from tests.report.test_results import add_results

EVIL = [
    "<script>alert(1)</script>",
    "a|b`c`](https://evil.example) ![x](y) **z**",
    "x: y\n---\nlicense: evil\n# Heading",
    "www.evil.example @someone https://evil.example",
    "'\"{{ 7 * 7 }}{% raw %}&lt;\u202e\x1b[31m",
]


def make_run(root: Path, **fields) -> Path:
    """As much of a run's folder as a card reads: no weights."""
    config = base.get_config()
    config.update_from_flattened_dict(fields)
    for name in ("m1", "m2"):
        (root / name).mkdir(parents=True)
        (root / name / "model.json").write_text('{"hash": "h", "checkpoint": 1}')
    (root / "config.json").write_text(json.dumps(to_dict(config)))
    told = {"steps": 3, "first": {"loss": 2.5}, "last": {"loss": 1.25}}
    rows = [{"model": f"M{t}", "hash": "h", "stage": ("sft", "dpo")[t > 1], "train": told} for t in (1, 2, 3)]
    (root / "summary.json").write_text(json.dumps(rows))
    versions = {"versions": {"commit": "0123abc"}}
    (root / "manifest.jsonl").write_text(json.dumps({"artefact": "config.json", "inputs": {}, **versions}) + "\n")
    return root


def html(card: str) -> str:
    return MarkdownIt("commonmark", {"html": True}).enable("table").render(ModelCard(card).text)


def test_the_card_of_a_runs_model_tells_base_data_table_recipe_and_commit(tmp_path):
    fields = {"seeds.ift": "hf:org/ift/default:train", "seeds.eft": "hf:org/eft", "dpo.beta": 0.25, "respond.top_k": 7}
    place = tmp_path / "models--org--name" / "snapshots" / "0a1b"
    place.mkdir(parents=True)
    (place / "README.md").write_text("---\nlicense: other\nlicense_name: x\nbase_model: org/older\n---\nText\n")
    run = make_run(tmp_path / "run", **{"model.path": str(place), **fields})
    add_results(run / "eval")
    card = ModelCard(model_card(str(run / "m2"), hash="77"))
    found = card.data.to_dict()
    assert found.pop("model-index")[0]["name"] == "M2 of run"
    assert found == {
        "base_model": "org/name",
        "datasets": ["org/eft", "org/ift"],
        "library_name": "transformers",
        "license": "other",
        "license_name": "x",
        "pipeline_tag": "text-generation",
        "tags": ["selfreward_jax", "self-rewarding", "sft", "dpo"],
    }
    results = {(x.metric_name, x.dataset_name): x.metric_value for x in card.data.eval_results}
    assert results["as a judge: pairwise_accuracy", "ranked"] == 0.6
    assert results["win rate against M1, judged by judge", "heldout"] == 0.65
    assert not any("five_best" in name for name, _ in results)  # it could not be measured
    shown = html(str(card))
    for text in ("commit 0123abc", "<td>dpo.beta</td>\n<td>0.25</td>", '<th style="text-align:right">M2</th>', "77"):
        assert text in shown
    assert "2.500 → 1.250" in shown
    assert "M3" not in shown  # made from it, later
    assert str(tmp_path) not in str(card)
    assert sampling_of(str(run / "m2"))["top_k"] == 7
    assert sampling_of(str(place)) == to_dict(base.get_config())["respond"] | {"stop": ()}


@pytest.mark.parametrize("name", EVIL)
def test_names_of_strangers_stay_text(name, tmp_path):
    base, quoted = tmp_path / "base", json.dumps(name)
    base.mkdir()
    (base / "README.md").write_text(f"---\nlicense: [{quoted}]\nlicense_name: {quoted}\n---\n")
    named = ("model.path", "judge.template", "seeds.ift", "checkpoint.prompts")
    run = make_run(tmp_path / name.replace("/", "_"), **dict.fromkeys(named, name) | {"model.path": str(base)})
    add_results(run / "eval")
    (run / "eval" / "judge" / "ranked").rename(run / "eval" / "judge" / name.replace("/", "_"))
    card = model_card(str(run / "m2"), steps=[{"method": "DPO", "of": name}])
    found = ModelCard(card).data.to_dict()
    assert found.keys() == {"library_name", "license_name", "model-index", "pipeline_tag", "tags"}
    assert found["license_name"] == name
    shown = html(card)
    tame = make_run(tmp_path / "tame", **dict.fromkeys(named, "x"))
    plain = html(model_card(str(tame / "m2"), steps=[{"method": "DPO", "of": "x"}]))
    for tag in ("<script", "<a ", "<img", "<h1", "<h2", "<strong", "<em", "<th ", "<pre", "<hr", "<li"):
        assert shown.count(tag) == plain.count(tag), tag
    body = ModelCard(card).text
    for wrong in ("https://evil", "www.evil", "\u202e", "\x1b"):  # the first two become links by themselves
        assert wrong not in body


def test_a_name_of_the_hub_is_one_that_was_loaded_from_there(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert base_of("org/name").facts == {}  # may be a folder that is gone
    place = tmp_path / "models--org--name"
    (place / "snapshots" / "0a").mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("0a")
    (place / "snapshots" / "0a" / "config.json").write_text("{}")
    assert base_of("org/name").facts == base_of("org/name@main").facts == {"base_model": "org/name"}


@pytest.mark.parametrize(
    "text", ["---\n[1, 2]\n---\n", "---\na: [\n---\n", "no front matter", "---\nlicense: 3\n---\n"]
)
def test_a_bases_own_card_may_be_anything(text, tmp_path):
    (tmp_path / "README.md").write_text(text)
    assert base_of(str(tmp_path)).facts == {}


def test_a_model_that_was_trained_in_python_tells_its_steps(tmp_path):
    (tmp_path / "llama").mkdir()
    steps = [{"method": "SFT", "rows": 8, "learning_rate": 1e-5}, {"method": "DPO", "loss_type": ("sigmoid", "sft")}]
    whole = model_card(str(tmp_path / "llama"), steps=steps)
    assert "method: DPO, loss_type: sigmoid, sft" in html(whole)
    assert ModelCard(whole).data.tags == ["selfreward_jax", "sft", "dpo"]
    adapter = ModelCard(model_card(str(tmp_path / "llama"), steps=steps, adapter_of=str(tmp_path / "llama")))
    assert adapter.data.library_name == "peft" and "lora" in adapter.data.tags
    assert "AutoPeftModelForCausalLM" in adapter.text and "A LoRA adapter of llama" in adapter.text


def test_an_adapter_of_a_runs_model_names_no_other_base(tmp_path):
    place = tmp_path / "models--org--name" / "snapshots" / "0a1b"
    place.mkdir(parents=True)
    run = make_run(tmp_path / "run", **{"model.path": str(place)})
    since_m0 = ModelCard(model_card(str(run / "m2"), adapter_of=str(place)))
    beside = ModelCard(model_card(str(run / "m2"), steps=[{"method": "SFT"}], adapter_of=str(run / "m2")))
    assert since_m0.data.base_model == "org/name"
    assert beside.data.base_model is None and "adapter of M2 of run" in beside.text


@pytest.mark.parametrize("way", ["~/run/m2", "run/m2", "run/../run/m2/", ".", "link"])
def test_a_runs_model_is_known_by_any_path(way, tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", **{"model.path": "/x/llama", "respond.top_k": 7})
    (tmp_path / "link").symlink_to(run / "m2")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(run / "m2" if way == "." else tmp_path)
    assert sampling_of(way)["top_k"] == 7
    card = model_card(way)
    assert "\n# M2 of run\n" in card and "<td>respond.top_k</td>" in html(card)
    assert "Made from llama" in card


def test_a_title_says_no_more_than_the_models_name(tmp_path, monkeypatch):
    (tmp_path / "llama" / "deeper").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "llama" / "deeper")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    titles = {"org/tiny@main": "tiny", "org/x-GGUF@v1/m-Q8_0.gguf": r"m-Q8\_0.gguf", "..": "llama", "~nobody/x": r"x"}
    for path, title in titles.items():
        assert f"\n# {title}\n" in model_card(path)


def test_of_data_the_hubs_names_are_told_and_of_paths_what_they_end_with(tmp_path):
    fields = {
        "seeds.ift": "hf:/data/me/secret/mine:train",
        "seeds.eft": "hf:~/secret/mine",
        "prompts.seeds": "hf:./secret/mine",
        "prompts.source": "hf:org/asked@v1/default:train[:100]",
        "checkpoint.prompts": "hf:org/held",
        "respond.stop": ("</s>", "/secret/mine/x"),
    }
    run = make_run(tmp_path / "run", **fields)
    card = ModelCard(model_card(str(run / "m2")))
    assert card.data.datasets == ["org/asked", "org/held"]
    shown = html(str(card))
    for cell in ("mine:train", "mine", "hf:org/asked@v1/default:train[:100]", "hf:org/held", "&lt;/s&gt;, x"):
        assert f"<td>{cell}</td>" in shown
    assert "secret" not in str(card)
    given = make_run(tmp_path / "given", **fields | {"dpo.data": "hf:org/pairs@v2:train"})
    card = ModelCard(model_card(str(given / "m2")))
    assert card.data.datasets == ["org/held", "org/pairs"]  # no prompt was asked


def test_where_pairs_are_given_nothing_is_said_of_answers(tmp_path):
    fields = {"judge.samples": 9, "respond.n": 5, "prompts.count": 7, "judge.template": "/x/judge.txt"}
    data = {"data": {"pairs": 3, "dropped_too_long": 1, "dropped_equal": 2}}
    run = make_run(tmp_path / "run", **fields | {"dpo.data": "/secret/pairs.jsonl"})
    rows = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps([row | data for row in rows]))
    shown = html(model_card(str(run / "m2")))
    for line in ("pairs learnt from", "  pairs left out: equal", "  pairs left out: too long"):
        assert f"<td>{line.strip()}</td>" in shown
    assert '<td style="text-align:right">3</td>' in shown and '<td style="text-align:right">2</td>' in shown
    for wrong in ("its answers", "prompts kept", "Scores", "judge.samples", "respond.n", "prompts.count"):
        assert wrong not in shown
    assert "<td>pairs.jsonl</td>" in shown and "<td>judge.txt</td>" in shown  # EFT seeds are asked with it
    fields |= {"dpo.data": "/secret/pairs.jsonl", "checkpoint.choose": "win_rate"}
    chosen = html(model_card(str(make_run(tmp_path / "chosen", **fields) / "m2")))
    assert "respond.n" in chosen and "judge.samples" in chosen and "prompts.count" not in chosen


@pytest.mark.parametrize(
    ("fields", "who"),
    [
        ({}, "the model itself"),
        ({"judge.by": "m0"}, "M0"),
        ({"judge.method": "function", "judge.function": "a:b"}, "a function"),
    ],
)
def test_the_card_says_whose_the_scores_are(fields, who, tmp_path):
    run = make_run(tmp_path / "run", **fields)
    rows = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps([row | {"judge/score_mean": 3.0} for row in rows]))
    assert f"from 0 to 5, are given by {who}." in model_card(str(run / "m2"))


def test_the_card_names_the_date_that_the_template_was_told(tmp_path):
    assert "it was told 2031-02-01." in model_card(str(tmp_path), date="2031-02-01")
    assert "it was told" not in model_card(str(tmp_path))
