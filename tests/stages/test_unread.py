"""A judge that says nothing is not heard to its end, in the loop as in an evaluation."""

import pytest

from selfreward_jax import cli
from selfreward_jax.core.errors import UserError
from selfreward_jax.stages import unread
from selfreward_jax.stages.unread import Watch, first_outputs
from tests import tiny


def row(score: float | None, text: str = "Well.", stop_reason: str = "end") -> dict:
    return {"score": score, "text": text, "stop_reason": stop_reason}


def refused(rows) -> UserError:
    return UserError(f"{len(rows)}: {first_outputs(rows)}")


def test_it_is_stopped_and_its_first_outputs_are_told():
    watch = Watch("score", refused)
    for _ in range(unread.GIVE_UP_AFTER - 1):
        watch(row(None))
    with pytest.raises(UserError, match=r"^100: 'Well\.'; 'Well\.'; 'Well\.' \(1 were cut by config\.judge"):
        watch(row(None, stop_reason="length"))


def test_the_last_output_may_be_the_first_that_says_something():
    watch = Watch("score", refused)
    for _ in range(unread.GIVE_UP_AFTER - 1):
        watch(row(None))
    watch(row(0.0))
    for _ in range(unread.GIVE_UP_AFTER):
        watch(row(None))


@pytest.fixture
def mute(tmp_path_factory) -> str:
    """A judge prompt after which the tiny models say anything but a score."""
    path = tmp_path_factory.mktemp("mute") / "judge.txt"
    path.write_text("Say a word on {{prompt}} and on {{response}}.\n")
    return str(path)


@pytest.mark.slow
def test_the_loop_ends_before_it_has_judged_all(tmp_path_factory, tmp_path, mute, capsys, monkeypatch):
    monkeypatch.setattr(unread, "GIVE_UP_AFTER", 5)
    data = tiny.shared_data(tmp_path_factory.getbasetemp())
    changes = {"seeds.eft": "", "judge.template": mute}
    assert cli.main(tiny.arguments("run", tmp_path / "run", data, changes)) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("selfreward: ")]
    assert "M1: none of its 5 judgements has a score to read; they begin '" in line
    assert not (tmp_path / "run" / "m2" / "judgements.jsonl").exists()
    assert not (tmp_path / "run" / "m2" / "pairs.jsonl").exists()
