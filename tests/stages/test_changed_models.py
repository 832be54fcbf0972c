"""A model whose files are not what was written is made again, bit for bit, or refused in one line; never used."""

import json
import shutil
from pathlib import Path

import pytest

from selfreward_jax import cli
from selfreward_jax.core.errors import UserError
from selfreward_jax.llama.load import load_chat, load_model
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
    assert "steps, " not in said.replace("16/16", "")  # nothing was trained
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
