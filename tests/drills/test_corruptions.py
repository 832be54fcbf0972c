"""A part of the drill of `corruptions`, over every kind of file and every way of change."""

import shutil
from pathlib import Path

import pytest

from tests import tiny
from tests.drills import corruptions

FINISHED = [
    ("config.json", "digit"),
    ("manifest.jsonl", "letter"),
    ("manifest.jsonl", "digit"),
    ("manifest.jsonl", "bit"),
    ("manifest.jsonl", "last line"),
    ("metrics.jsonl", "digit"),
    ("metrics.jsonl", "deletion"),
    ("summary.json", "digit"),
    ("m0/model.json", "letter"),
    ("m1/model.json", "truncation"),
    ("m1/config.json", "digit"),
    ("m1/metrics.jsonl", "digit"),
    ("m2/prompts.jsonl", "letter"),
    ("m2/responses.jsonl", "last line"),
    ("m2/judgements.jsonl", "bit"),
    ("m2/pairs.jsonl", "digit"),
    ("m2/positives.jsonl", "truncation"),
    ("m2/reference_logps.jsonl", "last line"),
    ("m3/eval/judgements.jsonl", "deletion"),
]
HALF_DONE = [
    ("config.json", "bit"),
    ("manifest.jsonl", "truncation"),
    ("m2/model.json", "digit"),
    ("m3/prompts.jsonl", "letter"),
    ("m3/responses.jsonl", "digit"),
    (f"{corruptions.JUDGED}.partial/inputs.json", "letter"),
    (f"{corruptions.JUDGED}.partial/000000.*.jsonl", "digit"),
    (f"{corruptions.JUDGED}.partial/000000.*.jsonl", "bit"),
    (f"{corruptions.JUDGED}.partial/000001.*.jsonl", "last line"),
    (f"{corruptions.JUDGED}.partial/000001.*.jsonl", "truncation"),
    (f"{corruptions.JUDGED}.partial/000002.*.jsonl", "deletion"),
]


@pytest.fixture(scope="module")
def half_done(finished, data, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("half") / "run"
    corruptions.make_half_done(finished, run)
    return run


@pytest.fixture(scope="module")
def judged(half_done, data, tmp_path_factory) -> Path:
    """The same, gone on without any change."""
    run = shutil.copytree(half_done, tmp_path_factory.mktemp("judged") / "run")
    assert corruptions.told([*tiny.arguments("judge", run, data), "--iteration=3"])[0] == 0
    return run


def check(source: Path, made: Path, words: list[str], data: Path, name: str, way: str, run: Path) -> str:
    shutil.copytree(source, run)
    name = next(str(path.relative_to(run)) for path in run.glob(name))
    if not corruptions.corrupted(run / name, way, tiny.SEED):
        pytest.skip("an empty file")
    command = [*tiny.arguments(words[0], run, data), *words[1:]]
    return corruptions.verdict(command, run, name, corruptions.snapshot(source), corruptions.snapshot(made))


def test_every_way_is_tried():
    assert {way for _, way in [*FINISHED, *HALF_DONE]} == set(corruptions.WAYS)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "way"), FINISHED)
def test_a_finished_run(name, way, finished, data, tmp_path):
    said = check(finished, finished, ["run"], data, name, way, tmp_path / "run")
    # Whichever of the two, it names the file; of what a lost line told of, nobody knows.
    assert name in said or (name, way) == ("manifest.jsonl", "last line")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "way"), HALF_DONE)
def test_a_run_in_the_making(name, way, half_done, judged, finished, data, tmp_path):
    check(half_done, judged, ["judge", "--iteration=3"], data, name, way, tmp_path / "run")
    assert (judged / corruptions.JUDGED).read_bytes() == (finished / corruptions.JUDGED).read_bytes()
