"""The rows of a run in other programs: `datasets` loads them, TRL trains on them, both as they are."""

import math

import pytest

from tests import tiny


@pytest.fixture(scope="module")
def load(tmp_path_factory, finished):
    """`datasets.load_dataset` of files in the run's folder, without a network."""
    import datasets

    def rows(*names: str):
        files, cache = [str(finished / name) for name in names], str(tmp_path_factory.mktemp("datasets"))
        return datasets.load_dataset("json", data_files=files, split="train", cache_dir=cache)

    return rows


def test_datasets_loads_every_file_of_rows(finished, load):
    files = [p for p in sorted(finished.glob("m*/**/*.jsonl")) if p.read_text().strip()]
    names = {p.name for p in files}
    assert {"prompts.jsonl", "responses.jsonl", "judgements.jsonl", "pairs.jsonl"} <= names
    for path in files:
        expected = tiny.read_jsonl(path)
        found = load(str(path.relative_to(finished)))
        for ours, theirs in zip(expected, found, strict=True):
            assert {name: value for name, value in theirs.items() if value is not None} == {
                name: value for name, value in ours.items() if value is not None
            }


@pytest.mark.torch("trl")
def test_trl_trains_on_pairs_as_they_are(data, load, tmp_path):
    import transformers
    import trl

    rows = load("m2/pairs.jsonl", "m3/pairs.jsonl")
    settings = trl.DPOConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=2, max_steps=1, logging_steps=1, save_strategy="no",
        report_to=[], use_cpu=True, bf16=False,
    )  # fmt: skip
    trainer = trl.DPOTrainer(
        transformers.AutoModelForCausalLM.from_pretrained(data / "model"),
        args=settings,
        train_dataset=rows,
        processing_class=transformers.AutoTokenizer.from_pretrained(data / "model"),
    )
    prepared = trainer.train_dataset
    assert len(prepared) == len(rows)
    assert prepared["prompt_ids"][:] == rows["prompt_token_ids"][:]  # made from the messages, the same as ours
    trainer.train()
    first = trainer.state.log_history[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert first["grad_norm"] > 0
