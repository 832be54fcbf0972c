"""A checkpoint is whole or not there, is written beside the training, and says what it is if it can't be used."""

import gc
import json
import random
import shutil
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec

from selfreward_jax.core.bits import tree_hash
from selfreward_jax.core.checkpoints import FACTS, Checkpoints, Damaged, facts_of, restore
from selfreward_jax.core.errors import UserError
from selfreward_jax.core.mesh import make_mesh

SHAPES = {"embed": (16, 8), "layers": {"q": (2, 8, 8)}}


def tree(seed: int, mesh=None):
    """Random arrays, on a mesh split over its axis fsdp."""
    rng = np.random.default_rng(seed)
    made = jax.tree.map(
        lambda shape: rng.normal(size=shape).astype(np.float32), SHAPES, is_leaf=lambda x: isinstance(x, tuple)
    )
    layout = {"embed": PartitionSpec("fsdp"), "layers": {"q": PartitionSpec(None, "fsdp")}}
    if mesh is None:
        return jax.tree.map(jnp.asarray, made)
    return jax.tree.map(lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)), made, layout)


@pytest.fixture
def folder(tmp_path):
    return epath.Path(tmp_path / "checkpoints")


def saved(folder, *steps: int, keep: int = 5) -> None:
    with Checkpoints(folder, keep) as checkpoints:
        for step in steps:
            checkpoints.save(step, {"params": tree(step)})


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


def newest(folder, target=None):
    with Checkpoints(folder, 5) as checkpoints:
        return checkpoints.newest_whole(lambda step: checkpoints.restore(step, {"params": target or tree(0)})["params"])


def assert_same(a, b) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def test_saved_on_eight_devices_it_is_restored_on_eight_four_and_one_bit_for_bit(folder):
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(3, {"params": tree(1, make_mesh(fsdp=8))})
    for devices in (8, 4, 1):
        step, found = newest(folder, tree(0, make_mesh(fsdp=devices)))
        assert step == 3
        assert_same(found, tree(1))
        assert len(found["embed"].sharding.device_set) == devices


def test_arrays_given_away_right_after_a_save_are_saved_as_they_were(folder):
    change = jax.jit(lambda t: jax.tree.map(lambda x: x * 0 - 1, t), donate_argnums=0)
    for step, mesh in enumerate((None, make_mesh(fsdp=8))):
        with Checkpoints(folder) as checkpoints:
            given = tree(1, mesh)
            checkpoints.save(step, {"params": given})
            for _ in range(3):
                given = change(given)
            jax.block_until_ready(given)
        assert_same(newest(folder)[1], tree(1))


def test_a_save_returns_before_its_files_are_written_and_the_next_waits_for_it(folder, monkeypatch):
    may_write = threading.Event()
    real = ocp.type_handlers.ArrayHandler.serialize
    began = []

    async def held(self, *arguments, **options):
        futures = await real(self, *arguments, **options)

        def wait():
            began.append(True)
            may_write.wait(20)

        return [*futures, ocp.future.CommitFutureAwaitingContractedSignals(_coroutine(wait))]

    async def _run(wait):
        wait()

    def _coroutine(wait):
        return _run(wait)

    monkeypatch.setattr(ocp.type_handlers.ArrayHandler, "serialize", held)
    with Checkpoints(folder, 5) as checkpoints:
        checkpoints.save(1, {"params": tree(1)})
        assert "1" not in names(folder)
        assert checkpoints.latest() == 1
        threading.Timer(0.2, may_write.set).start()
        checkpoints.save(2, {"params": tree(2)})
        assert "1" in names(folder)
        assert began
    assert names(folder) >= {"1", "2"}


def test_the_newest_are_kept_and_those_that_are_named(folder):
    with Checkpoints(folder, keep=2) as checkpoints:
        for step, named in ((1, []), (2, [2]), (3, [2]), (4, [2]), (5, [2])):
            checkpoints.save(step, {"params": tree(step)}, also_keep=named)
    assert names(folder) == {"2", "4", "5"}
    with Checkpoints(folder, keep=1) as checkpoints:
        checkpoints.save(6, {"params": tree(6)}, also_keep=[4])
    assert names(folder) == {"4", "6"}


def test_what_stays_by_name_stays_without_the_tree_that_only_going_on_needs(folder):
    def restore(checkpoints, *trees):
        return lambda step: checkpoints.restore(step, {name: tree(0) for name in trees})

    def trees(step):
        return sorted(path.name for path in (folder / str(step)).iterdir() if path.is_dir())

    with Checkpoints(folder) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, {"params": tree(step), "opt": tree(9)}, also_keep=[1, 2], dropping="opt")
            checkpoints.wait()
            assert "opt" in trees(step)  # until the next one is whole, the one before must do
    assert (trees(1), trees(2), trees(3)) == (["params"], ["opt", "params"], ["opt", "params"])
    with Checkpoints(folder) as checkpoints:
        for step in (1, 2, 3):
            assert_same(checkpoints.restore(step, {"params": tree(0)})["params"], tree(step))
        remove_the_tree(folder / "3")
        found = checkpoints.newest_whole(restore(checkpoints, "params", "opt"), "opt")
        assert found and found[0] == 2
        remove_the_tree(folder / "2")
        with pytest.raises(UserError, match="2: damaged"):
            checkpoints.newest_whole(restore(checkpoints, "params", "opt"), "opt")
    assert names(folder) == {"1", "2"}
    (folder / "2").rmtree()
    with Checkpoints(folder) as checkpoints, pytest.raises(UserError, match="1: damaged .opt is missing"):
        checkpoints.newest_whole(restore(checkpoints, "params", "opt"), "opt")
    assert names(folder) == {"1"}


def test_of_one_half_written_the_one_before_is_used_and_it_is_said(folder, capsys):
    saved(folder, 1, 2)
    shutil.copytree(folder / "2", folder / "3.orbax-checkpoint-tmp")
    step, found = newest(folder)
    assert step == 2
    assert_same(found, tree(2))
    assert capsys.readouterr().err == f"{folder}: step 3 was not written whole; going on from step 2\n"
    assert names(folder) == {"1", "2"}


def test_the_first_half_written_is_begun_anew(folder, capsys):
    (folder / "4.orbax-checkpoint-tmp").mkdir(parents=True)
    assert newest(folder) is None
    assert "step 4 was not written whole and there is none before it" in capsys.readouterr().err
    assert names(folder) == set()


def truncate(folder) -> None:
    for path in Path(folder).rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def remove_a_file(folder) -> None:
    for path in Path(folder).rglob("manifest.ocdbt"):
        path.unlink()


def remove_the_tree(folder) -> None:
    (folder / "params").rmtree()


@pytest.mark.parametrize("damage", [truncate, remove_a_file, remove_the_tree])
def test_of_a_damaged_one_the_one_before_is_used_and_alone_it_is_one_line(folder, damage, capsys):
    saved(folder, 1, 2)
    damage(folder / "2")
    step, found = newest(folder)
    assert step == 1
    assert_same(found, tree(1))
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith(f"{folder / '2'}: damaged (") and said[0].endswith("; going on from the one before")
    assert names(folder) == {"1"}

    damage(folder / "1")
    with pytest.raises(Damaged, match="damaged") as error:
        newest(folder)
    assert "\n" not in str(error.value)
    assert names(folder) == {"1"}


def bit_flipped(data: bytes) -> bytes:
    place = random.Random(len(data)).randrange(len(data))
    return data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]


DAMAGES = {
    "emptied": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "short by a byte": lambda data: data[:-1],
    "a bit flipped": bit_flipped,
    "gone": None,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_whatever_happens_to_any_of_its_files_no_other_arrays_come_out(folder, damage, capfd):
    trees = {"params": tree(1), "opt_state": (jnp.int32(3), {"mu": tree(2)})}
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(2, trees)
    refused = set()
    for path in sorted(p for p in Path(folder).rglob("*") if p.is_file()):
        whole = path.read_bytes()
        path.unlink() if damage is None else path.write_bytes(damage(whole))
        try:
            assert_same(restore(folder, 2, trees), trees)  # of some files, nothing depends
        except Damaged as error:
            assert "\n" not in str(error)
            refused.add(path.name)
        path.write_bytes(whole)
    assert refused >= {"_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt"}
    assert_same(restore(folder, 2, trees), trees)
    gc.collect()
    assert capfd.readouterr().err == ""


def test_arrays_of_a_sound_checkpoint_of_other_arrays_are_refused(folder):
    saved(folder, 1, 2)
    shutil.rmtree(folder / "2" / "params")
    shutil.copytree(folder / "1" / "params", folder / "2" / "params")
    with pytest.raises(Damaged, match="params is not what was saved: hash [0-9a-f]{16} expected, [0-9a-f]{16} found"):
        restore(folder, 2, {"params": tree(0)})


def test_reading_writes_nothing(folder):
    def seen():
        return {path: path.stat().st_mtime_ns for path in [Path(folder), *Path(folder).rglob("*")]}

    saved(folder, 1)
    before = seen()
    assert_same(restore(folder, 1, {"params": tree(0)})["params"], tree(1))
    assert seen() == before


def test_in_another_dtype_they_are_known_by_what_is_stored(folder):
    saved(folder, 1)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree(1))
    known = {"params": tree_hash(tree(1))}
    assert_same(restore(folder, 1, {"params": half}, known)["params"], half)
    with pytest.raises(Damaged, match="params is not what was saved"):
        restore(folder, 1, {"params": half}, {"params": tree_hash(half)})


def test_one_of_an_older_version_says_nothing_of_itself_and_is_read(folder):
    saved(folder, 1)
    path = folder / "1" / FACTS
    path.write_text(json.dumps(json.loads(path.read_text()) | {"custom_metadata": {}}))
    assert facts_of(folder, 1) == {}
    assert_same(restore(folder, 1, {"params": tree(0)})["params"], tree(1))


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ({"embed": jnp.zeros((16, 9)), "layers": {"q": jnp.zeros((2, 8, 8))}}, r"params/embed is \[16, 8\] there"),
        ({"embed": jnp.zeros((16, 8))}, r"params/layers/q is \[2, 8, 8\] there and missing here"),
        (SHAPES | {"embed": jnp.zeros((16, 8)), "layers": {"k": jnp.zeros(2)}}, "params/layers/k is missing there"),
    ],
    ids=["another shape", "more", "others"],
)
def test_a_checkpoint_of_another_model_is_one_line_and_stays(folder, target, words):
    saved(folder, 1, 2)
    with pytest.raises(UserError, match=f"of another model or other settings: {words}") as error:
        newest(folder, target)
    assert "\n" not in str(error.value)
    assert names(folder) == {"1", "2"}


def test_a_full_disk_is_one_line_before_and_during_the_writing(folder, monkeypatch):
    saved(folder, 1)
    with Checkpoints(folder) as checkpoints:
        monkeypatch.setattr("selfreward_jax.core.checkpoints.free_bytes", lambda path: 10)
        with pytest.raises(UserError, match="the disk is full: a checkpoint needs"):
            checkpoints.save(2, {"params": tree(2)})
        monkeypatch.undo()

        async def full(*arguments, **options):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(ocp.type_handlers.ArrayHandler, "serialize", full)
        with pytest.raises(UserError, match="the disk is full; free some space"):
            checkpoints.save(2, {"params": tree(2)})
            checkpoints.wait()
        monkeypatch.undo()
    assert "1" in names(folder)
    assert newest(folder)[0] == 1
