"""A model whose files are not what was written is made again, bit for bit, or refused in one line; never used."""

import json
import re
import shutil
from pathlib import Path

import pytest

from selfreward_jax import cli
from selfreward_jax.core.errors import UserError
from selfreward_jax.llama.load import load_chat, load_model
from selfreward_jax.stages.run import Run
from tests import tiny
from tests.drills.kills import assert_same_run

pytestmark = pytest.mark.slow


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy of a finished run, of the same name."""
    return shutil.copytree(finished, tmp_path / finished.name)


def one_more(path: Path) -> None:
    """A letter or digit of a text becomes another."""
    data = bytearray(path.read_bytes())
    place = next(n for n in range(len(data) // 2, len(data)) if chr(data[n]).isalnum())
    data[place] ^= 1
    path.write_bytes(data)


def flip(checkpoint: Path) -> None:
    """A bit of each file of arrays."""
    for path in (p for p in checkpoint.rglob("d/*") if p.is_file()):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 16
        path.write_bytes(data)


def test_what_follows_from_a_checkpoint_is_made_again_from_it(run, finished, data, capsys):
    (run / "m1" / "tokenizer.json").unlink()
    one_more(run / "m2" / "config.json")
    (run / "m3" / "model.json").unlink()
    assert cli.main(tiny.arguments("run", run, data)) == 0
    said = capsys.readouterr().err
    for name in ("m1/tokenizer.json: not there any more", "m2/config.json: not what was", "m3/model.json: not there"):
        assert name in said
    begun = re.findall(r"(\d+)/(\d+) steps, going on", said)
    assert len(begun) == 3 and all(done == steps for done, steps in begun)  # nothing was trained
    assert_same_run(run, finished)


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja", "config.json", "model.json"])
@pytest.mark.parametrize("damage", [one_more, Path.unlink])
def test_by_its_path_it_is_not_used(run, name, damage):
    damage(run / "m2" / name)
    if name == "model.json" and damage is Path.unlink:
        with pytest.raises(UserError):
            load_model(str(run / "m2"))
        return
    with pytest.raises(UserError, match=f"m2/{name}: not .*; restore it") as error:
        load_chat(str(run / "m2"))
    assert "\n" not in str(error.value)


def test_weights_that_are_not_the_models_are_refused_whether_or_not_they_are_sound(run, finished, data, capsys):
    step = json.loads((run / "m2" / "model.json").read_text())["checkpoint"]
    folder = run / "m2" / "checkpoints" / str(step)
    swapped = next((finished / "m1" / "checkpoints").iterdir())

    def another(folder: Path) -> None:
        shutil.rmtree(folder)
        shutil.copytree(swapped, folder)

    others = "hash [0-9a-f]{16} expected, [0-9a-f]{16} found"
    for damage, words in ((flip, "damaged"), (another, others), (shutil.rmtree, "no such")):
        damage(folder)
        with pytest.raises(UserError, match=words) as error:
            load_model(str(run / "m2"))
        for mend in (str(folder.parent), str(run / "m2" / "model.json"), "makes them again"):
            assert mend in str(error.value)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(finished / "m2" / "checkpoints" / str(step), folder)
    assert load_model(str(run / "m2")).hash == json.loads((run / "m2" / "model.json").read_text())["hash"]


def test_what_the_line_says_helps(run, finished, data, capsys):
    """Of weights that are lost, the way out: the training, done again, has the same bits."""
    flip(run / "m1" / "checkpoints")
    (run / "m2" / "responses.jsonl").unlink()  # for which they are needed
    words = tiny.arguments("run", run, data)
    assert cli.main(words) == 2
    assert "m1/checkpoints" in capsys.readouterr().err.splitlines()[-1]
    shutil.rmtree(run / "m1" / "checkpoints")
    (run / "m1" / "model.json").unlink()
    assert cli.main(words) == 0
    assert_same_run(run, finished)


def test_a_lost_line_of_the_metrics_is_refused(run, finished, data, capsys):
    path = run / "m1" / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    assert cli.main(tiny.arguments("run", run, data)) == 2
    said = capsys.readouterr().err.splitlines()
    assert "m1/metrics.jsonl: not what was written" in said[-1] and "to train M1 again" in said[-1]


@pytest.mark.parametrize(
    ("name", "before", "after", "words"),
    [
        ("config.json", '"rope_theta": 10000.0', '"rope_theta": 20000.0', "its config.json's rope_"),
        ("chat_template.jinja", "assistant", "helper", "its chat_template"),
        ("tokenizer.json", '"add_prefix_space": false', '"add_prefix_space": true', "its tokenizer"),
    ],
)
def test_m0s_words_and_shape_are_those_of_the_run_s_beginning(name, before, after, words, data, tmp_path, capsys):
    path = shutil.copytree(data / "model", tmp_path / "model") / name
    run = Run(str(tmp_path / "run"), tiny.make_config(data, {"model.path": str(path.parent)}))
    assert run.base() == Run(str(tmp_path / "run"), run.config).base()
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    with pytest.raises(UserError, match=f"config.model.path: .*{words}"):
        Run(str(tmp_path / "run"), run.config).base()
