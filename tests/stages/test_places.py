"""A finished run says that it is finished, wherever it lies and whichever version of the program made it."""

import json
import shutil
import subprocess
from typing import Any

import pytest

from selfreward_jax import cli
from selfreward_jax.core.config import leaves
from selfreward_jax.verbs.models import newest_model
from tests import tiny
from tests.refused import assert_refused

# Fields that a version may not have known, in sections that inputs hold whole, in part, or with more in them.
UNKNOWN = {"min_p", "rationale", "attention", "moments_dtype", "growth", "use_rslora", "label_smoothing"}


def without(value: Any, names: set[str]) -> Any:
    if isinstance(value, dict):
        return {name: without(x, names) for name, x in value.items() if name not in names}
    return value


def assert_done(capsys, run, data, **changes) -> None:
    assert cli.main(tiny.arguments("run", run, data, changes)) == 0
    err = capsys.readouterr().err
    assert "all is done already" in err and "made again" not in err, err


def test_a_run_of_an_older_version_is_done_under_this_one(finished, data, tmp_path, capsys):
    run = shutil.copytree(finished, tmp_path / "run")
    config = without(json.loads((run / "config.json").read_text()), UNKNOWN | {"tracker"})
    (run / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tiny.write_manifest(run, ({**row, "made_by": "selfreward_jax 0.0.1", "inputs": without(row["inputs"], UNKNOWN)}
        for row in tiny.read_jsonl(run / "manifest.jsonl") if row["artefact"] != "config.json"))  # fmt: skip
    assert len(dict(leaves(config))) < len(dict(leaves(json.loads((finished / "config.json").read_text())))) - 8
    before = tiny.snapshot(run)
    assert_done(capsys, run, data)
    after = tiny.snapshot(run)
    assert {name for name in after if after[name] != before.get(name)} <= {"manifest.jsonl", "report.html"}
    # A field that it didn't know, and that isn't at its default, is another configuration.
    words = tiny.arguments("run", run, data, {"judge.min_p": 0.25})
    assert_refused(capsys, words, "begun with another configuration (judge.min_p: 0.0 -> 0.25)")


def test_a_run_may_be_moved_linked_and_named_like_a_pattern(finished, data, tmp_path, capsys):
    run = shutil.copytree(finished, tmp_path / "run[1]")
    assert_done(capsys, run, data)
    assert newest_model(str(run)) == (str(run / "m3"), "")
    (tmp_path / "link").symlink_to(run)
    assert_done(capsys, tmp_path / "link", data)


def test_a_finished_run_on_a_disk_that_can_not_be_written_says_so(finished, data, tmp_path, capsys):
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", disk], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no tmpfs can be mounted here")
    try:
        run = shutil.copytree(finished, disk / "run")
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        assert_done(capsys, run, data)
        assert_refused(capsys, ["report", f"--workdir={run}", "--samples=1"], "report.html: can't write (Read-only")
    finally:
        subprocess.run(["umount", disk], check=True)
