"""Artefacts exist whole or not at all: through kills, full disks and changed inputs."""

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from etils import epath
from etils.epath.stat_utils import StatResult

from selfreward_jax.core import store
from selfreward_jax.core.errors import UserError
from selfreward_jax.core.rows import read_jsonl
from selfreward_jax.core.store import Journal, Manifest, free_bytes, sha256_file, write_atomic

INPUTS = {"model": "abc", "seed": 0}
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path) -> epath.Path:
    return epath.Path(tmp_path)


def names(folder: epath.Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def part(number: int) -> list[dict]:
    return [{"n": 10 * number + i, "text": "é\u2028\U0001f600\n", "score": 1 / 3} for i in range(2)]


# ---------------------------------------------------------------------------------------------------------------------
# Single files


def test_a_written_file_holds_the_bytes_and_nothing_else_lies_beside_it(folder):
    write_atomic(folder / "new" / "a.json", "é\n")
    assert (folder / "new" / "a.json").read_bytes() == "é\n".encode()
    assert names(folder / "new") == ["a.json"]


def test_a_file_is_replaced(folder):
    write_atomic(folder / "a", b"one")
    write_atomic(folder / "a", b"two")
    assert (folder / "a").read_bytes() == b"two"


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_earlier_file_whole(step, folder, monkeypatch):
    write_atomic(folder / "a", b"earlier")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, step, full)
    with pytest.raises(UserError, match="a: the disk is full; free some space"):
        write_atomic(folder / "a", b"later")
    assert (folder / "a").read_bytes() == b"earlier"
    assert names(folder) == ["a"]


@pytest.fixture
def tiny_disk(folder):
    """A disk of 64 KiB; only root may mount one."""
    disk = folder / "disk"
    disk.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no tmpfs can be mounted here")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_disk_that_is_really_full_leaves_the_earlier_file_whole(tiny_disk):
    write_atomic(tiny_disk / "a", b"earlier")
    with pytest.raises(UserError, match="the disk is full"):
        write_atomic(tiny_disk / "a", b"x" * 100_000)
    assert (tiny_disk / "a").read_bytes() == b"earlier"
    assert names(tiny_disk) == ["a"]


def test_work_goes_on_when_a_full_disk_has_space_again(tiny_disk):
    (tiny_disk / "ballast").write_bytes(b"x" * 40_000)
    journal = Journal(tiny_disk / "rows.jsonl", INPUTS)
    journal.write(0, part(0))
    with pytest.raises(UserError, match="the disk is full"):
        journal.write(1, [{"text": "x" * 30_000}])
    (tiny_disk / "ballast").unlink()
    journal = Journal(tiny_disk / "rows.jsonl", INPUTS)
    assert journal.numbers() == [0]
    journal.write(1, part(1))
    journal.finish()
    assert read_jsonl(journal.path) == part(0) + part(1)


def test_a_folder_that_can_not_be_made_is_one_line(folder):
    (folder / "file").write_text("")
    with pytest.raises(UserError, match="can't write") as error:
        write_atomic(folder / "file" / "a", b"")
    assert "\n" not in str(error.value)


def test_an_interrupt_leaves_nothing_behind(folder, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(folder / "a", b"x")
    assert names(folder) == []


def test_data_is_on_disk_before_the_file_has_its_name(folder, monkeypatch):
    steps = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (steps.append("fsync"), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda a, b: (steps.append("replace"), replace(a, b)))
    write_atomic(folder / "a", b"x")
    assert steps[:2] == ["fsync", "replace"]


def test_the_hash_of_a_file_is_its_sha256(folder):
    write_atomic(folder / "a", b"abc")
    assert sha256_file(folder / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_where_no_time_of_writing_is_told_a_file_is_read_again(folder, monkeypatch):
    """As of s3fs and adlfs."""
    path = folder / "a"
    told = StatResult(is_directory=False, length=3, mtime=0, owner="", group="", mode=0)
    monkeypatch.setattr(store, "is_local", lambda _: False)
    monkeypatch.setattr(type(path), "stat", lambda _: told)
    path.write_text("abc")
    assert store.known_sha256(path) == sha256_file(path)
    path.write_text("abd")
    assert store.known_sha256(path) == sha256_file(path)


def test_free_space_is_known_before_a_folder_exists(folder):
    assert free_bytes(folder / "not" / "yet") > 0


def test_object_stores_have_no_free_space_to_speak_of():
    assert free_bytes("gs://bucket/run") is None


# ---------------------------------------------------------------------------------------------------------------------
# Journals

WORK = """
import os, signal, sys
from etils import epath
from selfreward_jax.core.store import Journal

path, moment = sys.argv[1:]
replace = os.replace

def die(source, target):
    if "/000002." in str(target) and moment == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
    if "/000002." in str(target) and moment == "after":
        os.kill(os.getpid(), signal.SIGKILL)

os.replace = die
journal = Journal(epath.Path(path), {"model": "abc", "seed": 0})
for number in range(4):
    if not journal.has(number):
        print(number)
        rows = [{"n": 10 * number + i, "text": "\\u00e9\\u2028\\U0001f600\\n", "score": 1 / 3} for i in range(2)]
        journal.write(number, rows)
journal.finish()
journal.discard()
"""


def work(path: epath.Path, moment: str = "never", **environment: str) -> tuple[int, list[int]]:
    """Runs a stage of four parts in a process of its own: its return code, and the parts that it made."""
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(WORK), str(path), moment],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1", **environment},
        stdout=subprocess.PIPE,
        check=False,
    )
    return run.returncode, [int(line) for line in run.stdout.split()]


@pytest.mark.parametrize(("moment", "left"), [("before", [2, 3]), ("after", [3])])
def test_a_killed_stage_goes_on_where_it_was_and_ends_with_the_same_bytes(moment, left, folder):
    assert work(folder / "killed.jsonl", moment) == (-signal.SIGKILL, [0, 1, 2])
    assert not (folder / "killed.jsonl").exists()
    assert work(folder / "killed.jsonl") == (0, left)
    assert work(folder / "whole.jsonl") == (0, [0, 1, 2, 3])
    assert (folder / "killed.jsonl").read_bytes() == (folder / "whole.jsonl").read_bytes()
    assert names(folder) == ["killed.jsonl", "whole.jsonl"]


def test_the_bytes_do_not_depend_on_the_locale(folder):
    work(folder / "a.jsonl")
    assert work(folder / "b.jsonl", LC_ALL="POSIX", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0")[0] == 0
    assert (folder / "a.jsonl").read_bytes() == (folder / "b.jsonl").read_bytes()


def test_parts_of_the_same_inputs_are_kept(folder):
    Journal(folder / "rows.jsonl", INPUTS).write(3, part(3))
    journal = Journal(folder / "rows.jsonl", dict(reversed(INPUTS.items())))
    assert journal.numbers() == [3]
    assert journal.has(3) and not journal.has(0)
    assert journal.rows(3) == part(3)


@pytest.mark.parametrize("other", [{**INPUTS, "seed": 1}, {"model": "abc"}, {**INPUTS, "n": None}])
def test_parts_of_other_inputs_are_thrown_away(other, folder):
    Journal(folder / "rows.jsonl", INPUTS).write(0, part(0))
    assert Journal(folder / "rows.jsonl", other).numbers() == []


def test_parts_without_a_marker_are_thrown_away(folder):
    journal = Journal(folder / "rows.jsonl", INPUTS)
    journal.write(0, part(0))
    (journal.folder / "inputs.json").unlink()
    assert Journal(folder / "rows.jsonl", INPUTS).numbers() == []


def test_what_a_kill_leaves_half_written_is_no_part(folder):
    journal = Journal(folder / "rows.jsonl", INPUTS)
    (journal.folder / ".000000.jsonl.1234abcd.tmp").write_text('{"n": ')
    assert journal.numbers() == []
    journal.finish()
    assert journal.path.read_text() == ""


def test_parts_are_joined_by_number_whenever_they_were_written(folder):
    journal = Journal(folder / "rows.jsonl", INPUTS)
    for number in (10, 2, 0):
        journal.write(number, part(number))
    journal.finish()
    assert read_jsonl(journal.path) == part(0) + part(2) + part(10)


def test_an_order_sorts_the_rows_of_all_parts_and_keeps_ties(folder):
    journal = Journal(folder / "rows.jsonl", INPUTS)
    journal.write(0, [{"k": 1, "at": 0}, {"k": 0, "at": 1}])
    journal.write(1, [{"k": 0, "at": 2}])
    journal.append([{"k": 0, "at": 0}])
    journal.finish(order=lambda row: row["k"])
    assert [row["at"] for row in read_jsonl(journal.path)] == [1, 2, 0, 0]


def test_appended_rows_make_the_next_part(folder):
    journal = Journal(folder / "rows.jsonl", INPUTS)
    journal.append(part(0))
    Journal(folder / "rows.jsonl", INPUTS).append(part(1))  # as after a stop
    assert journal.numbers() == [0, 1]
    journal.finish()
    assert read_jsonl(journal.path) == part(0) + part(1)


def test_the_artefact_appears_with_finish_and_the_parts_go_with_discard(folder):
    journal = Journal(folder / "rows.jsonl", INPUTS)
    journal.write(0, part(0))
    assert names(folder) == ["rows.jsonl.partial"]
    journal.finish()
    assert names(folder) == ["rows.jsonl", "rows.jsonl.partial"]
    journal.discard()
    journal.discard()
    assert names(folder) == ["rows.jsonl"]


def test_a_part_without_rows_counts_as_done(folder):
    journal = Journal(folder / "rows.jsonl", INPUTS)
    journal.write(0, [])
    assert journal.has(0) and journal.rows(0) == []


# ---------------------------------------------------------------------------------------------------------------------
# The manifest


def made(folder: epath.Path, name: str, inputs: dict, **facts) -> Manifest:
    write_atomic(folder / name, "x")
    manifest = Manifest(folder)
    manifest.record(name, inputs, **facts)
    return manifest


def test_an_artefact_is_made_for_exactly_its_inputs(folder):
    made(folder, "m2/pairs.jsonl", {"parts": ("a", "b"), "n": 4}, sha256="00")
    manifest = Manifest(folder)
    assert manifest.is_made("m2/pairs.jsonl", {"n": 4, "parts": ["a", "b"]})
    assert not manifest.is_made("m2/pairs.jsonl", {"n": 5, "parts": ["a", "b"]})
    assert not manifest.is_made("m2/pairs.jsonl", {"n": 4})
    assert not manifest.is_made("m2/other.jsonl", {"n": 4, "parts": ["a", "b"]})


def test_an_artefact_that_was_deleted_is_not_made(folder):
    manifest = made(folder, "a", INPUTS)
    assert not manifest.changed("a")
    (folder / "a").unlink()
    assert manifest.changed("a") == "a: not there any more"


def test_the_manifest_has_one_line_an_artefact_with_its_facts(folder):
    made(folder, "a", INPUTS, sha256="00", rows=3)
    made(folder, "b", {})
    first = {"artefact": "a", "sha256": "00", "rows": 3, "inputs": INPUTS}
    second = {"artefact": "b", "inputs": {}}
    texts = [json.dumps(first) + "\n", json.dumps(first) + "\n" + json.dumps(second) + "\n"]
    chain = [hashlib.sha256(text.encode()).hexdigest()[:16] for text in texts]
    assert read_jsonl(folder / "manifest.jsonl") == [{**first, "chain": chain[0]}, {**second, "chain": chain[1]}]
    assert Manifest(folder).entry("a")["rows"] == 3
    assert Manifest(folder).entry("c") is None


def test_a_replaced_artefact_moves_to_the_end(folder):
    for name in ("a", "b"):
        made(folder, name, INPUTS)
    made(folder, "a", {"seed": 1})
    assert [row["artefact"] for row in read_jsonl(folder / "manifest.jsonl")] == ["b", "a"]


def test_recording_the_same_again_changes_nothing(folder, monkeypatch):
    made(folder, "a", INPUTS, shape=(1, 2))
    made(folder, "b", INPUTS)
    before = (folder / "manifest.jsonl").read_bytes()
    monkeypatch.setattr(store, "write_atomic", lambda *_: pytest.fail("the manifest was written again"))
    Manifest(folder).record("a", INPUTS, shape=(1, 2))
    assert (folder / "manifest.jsonl").read_bytes() == before


@pytest.mark.parametrize("line", ["{broken", "3", '{"inputs": {}}'])
def test_a_damaged_manifest_is_named_with_its_line(line, tmp_path):
    (tmp_path / "manifest.jsonl").write_text(f'{{"artefact": "a", "inputs": {{}}}}\n{line}\n')
    with pytest.raises(UserError, match=r"manifest\.jsonl:2: not a line that was written"):
        Manifest(epath.Path(tmp_path))
