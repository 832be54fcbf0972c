"""Which chat template a model on disk is asked with, and which date that is told."""

import json
from pathlib import Path

import pytest

import selfreward_jax as sr
from selfreward_jax import cli
from selfreward_jax.core.errors import UserError
from selfreward_jax.evals.desk import Desk
from selfreward_jax.llama.load import load_chat
from tests import tiny
from tests.core import small_tokenizers

ASKED = [{"role": "user", "content": "What is it?"}]


@pytest.fixture(scope="module")
def several(tmp_path_factory) -> Path:
    """A model with templates by name, as transformers writes them."""
    templates = {"default": small_tokenizers.CHATML, "rag": small_tokenizers.ZEPHYR}
    tokenizer = small_tokenizers.with_template(small_tokenizers.chatml(), templates)
    return tiny.make_model(tmp_path_factory.mktemp("several") / "model", tokenizer=tokenizer)


@pytest.mark.parametrize("form", ["files", "list"])
def test_a_template_is_chosen_by_its_name(form, several, tmp_path):
    folder = several
    if form == "list":  # as older releases wrote them
        folder = tmp_path / "model"
        folder.mkdir()
        for file in several.iterdir():
            if file.is_file() and file.suffix != ".jinja":
                (folder / file.name).write_bytes(file.read_bytes())
        facts = json.loads((several / "tokenizer_config.json").read_text())
        facts["chat_template"] = [
            {"name": "default", "template": small_tokenizers.CHATML},
            {"name": "rag", "template": small_tokenizers.ZEPHYR},
        ]
        (folder / "tokenizer_config.json").write_text(json.dumps(facts))
    assert load_chat(str(folder))[1].render(ASKED).startswith("<|im_start|>system")
    assert load_chat(str(folder), "rag")[1].render(ASKED).startswith("<|user|>")
    assert load_chat(str(folder), "plain")[1].render(ASKED).startswith("### Request:")


def test_a_name_that_the_model_does_not_bring_is_told_with_those_it_does(several):
    with pytest.raises(UserError, match=r"chat_template: .*tools: no such file; .*the model's own \(default, rag\)"):
        load_chat(str(several), "tools")


def test_where_none_is_the_default_the_command_line_asks_for_a_choice(tmp_path, capsys):
    templates = {"tools": small_tokenizers.CHATML, "rag": small_tokenizers.ZEPHYR}
    model = tiny.make_model(
        tmp_path / "model", tokenizer=small_tokenizers.with_template(small_tokenizers.chatml(), templates)
    )
    rows = tiny.write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "What is it?", "response": "bread"}])
    words = ["score", f"--model={model}", f"--input={rows}", f"--output={tmp_path / 'out.jsonl'}"]
    assert cli.main(words) == 2
    assert "several (" in (error := capsys.readouterr().err) and error.count("\n") == 1
    assert cli.main([*words, "--chat_template=rag"]) == 0


def test_default_is_a_models_only_template(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = str(tiny.make_model(tmp_path / "model"))
    assert load_chat(model, "default")[1].hashes == load_chat(model)[1].hashes
    with pytest.raises(UserError, match="tools: no such file"):
        load_chat(model, "tools")


@pytest.fixture
def dated(tmp_path) -> Path:
    tokenizer = small_tokenizers.with_template(small_tokenizers.llama3(), small_tokenizers.DATED)
    return tiny.make_model(tmp_path / "model", tokenizer=tokenizer, max_position_embeddings=4096)


def test_an_exported_model_is_asked_with_the_date_that_it_was_told(dated, tmp_path):
    model = sr.load(str(dated), date="2031-02-01")
    for name, source in (("out", model), ("again", None)):
        sr.export(source or sr.load(str(tmp_path / "out")), str(tmp_path / name))
        facts = json.loads((tmp_path / name / "provenance.json").read_text())
        assert facts["date"] == "2031-02-01"
        assert load_chat(str(tmp_path / name))[1].hashes == model.chat.hashes
        assert "it was told 2031-02-01." in (tmp_path / name / "README.md").read_text()
    assert load_chat(str(tmp_path / "out"), date="2032-03-04")[1].date == "2032-03-04"


@pytest.mark.parametrize(
    "text", ['{"date": "2031-02-01"}', "[]", "{", '{"hash": "", "chat_template": "", "date": "x"}']
)
def test_a_provenance_of_another_program_tells_no_date(text, dated):
    (dated / "provenance.json").write_text(text)
    assert load_chat(str(dated))[1].date == "2024-07-26"


@pytest.mark.parametrize(("date", "told"), [("", "2031-02-01"), ("2032-03-04", "2032-03-04")])
def test_a_date_that_is_given_goes_before_that_of_the_run(date, told, dated, data, tmp_path):
    (tmp_path / "run" / "m0").mkdir(parents=True)
    facts = {"hash": "h", "path": str(dated), "date": "2031-02-01"}
    (tmp_path / "run" / "m0" / "model.json").write_text(json.dumps(facts))
    desk = Desk(tmp_path / "desk", tiny.make_config(data, {"model.date": date}))
    assert desk.words(desk.ref(str(tmp_path / "run" / "m0")))[1].date == told


@pytest.mark.slow
def test_the_date_of_a_run_goes_with_its_models(data, tmp_path):
    """Whoever asks M1 later asks it with the date that it was trained with."""
    tokenizer = small_tokenizers.with_template(small_tokenizers.llama3(), small_tokenizers.DATED)
    model = tiny.make_model(tmp_path / "model", tokenizer=tokenizer, max_position_embeddings=4096)
    changes = {"model.path": str(model), "model.date": "2031-02-01", "sft.epochs": 1}
    assert cli.main(tiny.arguments("sft", tmp_path / "run", data, changes)) == 0
    for name in ("m0", "m1"):
        assert json.loads((tmp_path / "run" / name / "model.json").read_text())["date"] == "2031-02-01"
    told = load_chat(str(tmp_path / "run" / "m1"))[1]
    assert "Today Date: 01 Feb 2031" in told.render(ASKED)
    assert "Today Date: 26 Jul 2024" in load_chat(str(model))[1].render(ASKED)
    recorded = json.loads((tmp_path / "run" / "m0" / "model.json").read_text())["chat_template"]
    assert recorded == told.hashes["chat_template"]
