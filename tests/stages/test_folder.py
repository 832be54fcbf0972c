"""What is made again is what it was, or is refused where other things were made from that."""

import pytest
from etils import epath

from selfreward_jax.core.errors import UserError
from selfreward_jax.stages.folder import Folder

ROWS, PAIRS = "m2/rows.jsonl", "m2/pairs.jsonl"


def make(folder: Folder, text: str = '{"n": 1}\n') -> str:
    """A stage of one artefact, as all are written. Returns what was done."""
    inputs = {"stage": "rows"}
    if folder.is_made(ROWS, inputs, "m2/beside.jsonl"):
        return "nothing"
    folder.write("m2/beside.jsonl", inputs, "{}\n")
    folder.write(ROWS, inputs, text)
    return "made"


@pytest.fixture
def root(tmp_path) -> epath.Path:
    folder = Folder(tmp_path / "run")
    assert make(folder) == "made" and make(folder) == "nothing"
    folder.write(PAIRS, {"stage": "pairs", "rows": folder.hash_of(ROWS)}, "{}\n")
    return folder.root


@pytest.mark.parametrize("name", [ROWS, "m2/beside.jsonl"])
@pytest.mark.parametrize("change", ['{"n": 2}\n', "", None])
def test_what_was_changed_is_made_again_with_a_line(name, change, root, capsys):
    before = {path.name: path.read_bytes() for path in (root / "m2").iterdir()}, (root / "manifest.jsonl").read_bytes()
    (root / name).unlink() if change is None else (root / name).write_text(change)
    with pytest.raises(UserError, match=f"{name}: not .*restore it from a copy, or delete it and make it again"):
        Folder(root).intact(name)
    assert make(Folder(root)) == "made"
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith(f"{name}: not ") and said[0].endswith("; made again")
    after = {path.name: path.read_bytes() for path in (root / "m2").iterdir()}, (root / "manifest.jsonl").read_bytes()
    assert after == before


def test_what_comes_out_otherwise_is_refused_before_anything_is_lost(root):
    (root / ROWS).write_text('{"n": 1\n')
    with pytest.raises(UserError, match=r"made again, it is not what was written \(SHA-256 .*\(m2/pairs\.jsonl\)"):
        make(Folder(root), '{"n": 3}\n')
    assert (root / ROWS).read_text() == '{"n": 1\n'
    with pytest.raises(UserError, match="made again, it is not what was written"):
        journal = Folder(root).journal(ROWS, {"stage": "rows"})
        journal.append([{"n": 3}])
        Folder(root).finish(ROWS, {"stage": "rows"})
    assert (root / ROWS).read_text() == '{"n": 1\n'
    (root / PAIRS).unlink()  # nothing stands on it any more
    assert make(Folder(root), '{"n": 3}\n') == "made"
    assert make(Folder(root)) == "nothing"


def test_other_inputs_may_make_another(root):
    (root / ROWS).write_text("")
    Folder(root).write(ROWS, {"stage": "other rows"}, '{"n": 4}\n')
    assert (root / ROWS).read_text() == '{"n": 4}\n'


def test_files_that_belong_to_an_artefact_are_looked_at_too(tmp_path):
    folder = Folder(tmp_path)
    for name in ("m1/model.json", "m1/tokenizer.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    folder.record("m1/model.json", {"n": 1}, files=["tokenizer.json"])
    assert Folder(tmp_path).is_made("m1/model.json", {"n": 1})
    (tmp_path / "m1/tokenizer.json").write_text("{ }")
    assert not Folder(tmp_path).is_made("m1/model.json", {"n": 1})
    (tmp_path / "m1/tokenizer.json").unlink()
    assert not Folder(tmp_path).is_made("m1/model.json", {"n": 1})
