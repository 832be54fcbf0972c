"""M2 of a run by other losses than DPO's, through the command line: what is computed, logged and recorded."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from selfreward_jax import cli
from tests import tiny


@pytest.fixture
def trained(tmp_path_factory, tmp_path) -> Callable[..., Path]:
    """M2 from the pairs of the shared run, with fields of `dpo` changed."""

    def make(loss: str, **changes) -> Path:
        base = tmp_path_factory.getbasetemp()
        run = shutil.copytree(tiny.shared_run(base), tmp_path / "run", ignore=shutil.ignore_patterns("m3"))
        (run / "m2" / "reference_logps.jsonl").unlink()
        fields = {"loop.iterations": 2, "loop.score_last": False, "dpo.loss_type": loss}
        fields |= {f"dpo.{name}": value for name, value in changes.items()}
        words = tiny.arguments("dpo", run, tiny.shared_data(base), fields)
        assert cli.main([*words, "--iteration=2", "--resume=force"]) == 0
        return run

    return make


def log(run: Path) -> list[dict]:
    return tiny.read_jsonl(run / "m2" / "metrics.jsonl")


def test_two_losses_are_added_with_their_weights(trained):
    run = trained("sigmoid,sft", loss_weights=(0.5, 2.0))
    first = log(run)[0]
    assert first["loss"] == pytest.approx(0.5 * math.log(2) + 2 * first["nll_loss"], rel=1e-5)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-5)


def test_a_loss_without_reference_computes_none_and_says_so(trained, capsys):
    run = trained("simpo", beta=2.0)
    assert "no reference" in capsys.readouterr().err
    assert not (run / "m2" / "reference_logps.jsonl").exists()
    entry = next(e for e in tiny.read_jsonl(run / "manifest.jsonl")[::-1] if e["artefact"] == "m2/model.json")
    assert entry["reference"] is None
    first = log(run)[0]
    margin = first["rewards/margins"] - 0.5
    assert first["loss"] == pytest.approx(math.log1p(math.exp(-margin)), rel=1e-4)  # the batch is one pair


def test_kto_takes_both_answers_of_a_pair_as_rows_with_borrowed_answers_for_its_reference_point(trained):
    run = trained("kto", batch_size=4)
    pairs = tiny.read_jsonl(run / "m2" / "pairs.jsonl")
    scored = tiny.read_jsonl(run / "m2" / "reference_logps.jsonl")
    assert [row["side"] for row in scored] == ["chosen", "chosen_kl", "rejected", "rejected_kl"] * len(pairs)
    rows = log(run)
    assert len(rows) == math.ceil(2 * len(pairs) / 4)
    assert rows[0]["loss"] == pytest.approx(0.5, abs=1e-5)
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-4)


def test_a_margin_of_the_scores_and_lighter_tails_begin_at_their_loss(trained):
    """Policy and reference weigh tails alike, so that at first only the margin sets the loss off from ln 2."""
    run = trained("sigmoid", ld_alpha=0.3, margin_scale=0.2)
    expected = {math.log1p(math.exp(0.2 * pair["margin"])) for pair in tiny.read_jsonl(run / "m2" / "pairs.jsonl")}
    first = log(run)[0]
    assert min(abs(first["loss"] - value) for value in expected) < 1e-4
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-5)
