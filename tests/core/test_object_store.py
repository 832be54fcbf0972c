"""gs:// paths, against a server that speaks the JSON API of Google Cloud Storage: gcsfs and TensorStore talk to it."""

import functools
import json
import os
import socketserver
import time
import urllib.request
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from etils import epath
from gcp_storage_emulator import server as emulator
from gcp_storage_emulator.handlers import objects

from selfreward_jax import cli
from selfreward_jax.core import lock
from selfreward_jax.core.checkpoints import Checkpoints
from selfreward_jax.core.errors import UserError
from selfreward_jax.core.interrupt import Interrupt
from selfreward_jax.core.profile import Tracer
from selfreward_jax.core.readers import read_table
from selfreward_jax.core.store import Journal, Manifest, remote_error, write_atomic
from selfreward_jax.llama import load
from tests import tiny

ROOT = epath.Path("gs://bucket")


@pytest.fixture(scope="module", autouse=True)
def service():
    """The server's address. The clients read it from the environment when they are first used."""
    with pytest.MonkeyPatch.context() as patch:
        # The server tells of every connection that a client closes before its answer is read.
        patch.setattr(socketserver.BaseServer, "handle_error", lambda *_: None)
        patch.setattr(objects, "download", functools.partial(download, objects.download))
        server = emulator.create_server("localhost", 0, in_memory=True, default_bucket="bucket")
        server.start()
        address = f"http://localhost:{server._api._httpd.server_port}"
        patch.setenv("STORAGE_EMULATOR_HOST", address)
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", address)
        yield address
        server.stop()


def download(of_the_server, request, response, storage) -> None:
    """With the header by which TensorStore knows what it has read; the server leaves it out."""
    of_the_server(request, response, storage)
    if response.status < 300:
        place = request.params["bucket_name"], request.params["object_id"]
        response["x-goog-generation"] = storage.get_file_obj(*place)["generation"]


def put(service: str, name: str, data: bytes) -> None:
    """Writes an object as another process would, unknown to this one's clients."""
    url = f"{service}/upload/storage/v1/b/bucket/o?uploadType=media&name={name}"
    urllib.request.urlopen(urllib.request.Request(url, data, {"Content-Type": "text/plain"}, method="POST"))


def upload(folder: Path, to: epath.Path) -> epath.Path:
    for file in folder.rglob("*"):
        if file.is_file():
            (to / file.relative_to(folder).as_posix()).write_bytes(file.read_bytes())
    return to


def test_what_another_process_writes_is_seen_at_once(service):
    folder = ROOT / "shared"
    (folder / "a.txt").write_text("old")
    assert [p.name for p in folder.iterdir()] == ["a.txt"] and not (folder / "b.txt").exists()
    put(service, "shared/b.txt", b"new")
    put(service, "shared/a.txt", b"newer")
    assert (folder / "b.txt").exists() and sorted(p.name for p in folder.iterdir()) == ["a.txt", "b.txt"]
    assert (folder / "a.txt").read_text() == "newer"


def test_an_artefact_grows_is_joined_and_recorded():
    path = ROOT / "rows" / "a.jsonl"
    Journal(path, {"seed": 1}).append([{"n": 2}])
    journal = Journal(path, {"seed": 1})  # after a preemption
    journal.append([{"n": 1}])
    assert journal.numbers() == [0, 1]
    journal.finish(lambda row: row["n"])
    journal.discard()
    assert path.read_text() == '{"n": 1}\n{"n": 2}\n' and not journal.folder.exists()
    assert Journal(path, {"seed": 2}).numbers() == []

    manifest = Manifest(ROOT / "rows")
    manifest.record("a.jsonl", {"seed": 1}, rows=2)
    assert Manifest(ROOT / "rows").is_made("a.jsonl", {"seed": 1})
    assert sorted(p.name for p in (ROOT / "rows").iterdir()) == ["a.jsonl", "a.jsonl.partial", "manifest.jsonl"]


def params(value: float) -> dict:
    return {"params": {"w": jnp.full((8, 4), value)}}


def test_a_checkpoint_that_was_not_written_whole_is_not_there(tmp_path):
    folder = ROOT / "run" / "checkpoints"
    with Checkpoints(folder, keep=2) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, params(step))
    assert not list(tmp_path.iterdir()) and not Path("gs:").exists()  # once they went to a local folder of that name
    (folder / "2" / "commit_success.txt").unlink()  # what Orbax writes last, since nothing is renamed there
    with Checkpoints(folder, keep=2) as checkpoints:
        found = checkpoints.newest_whole(lambda step: checkpoints.restore(step, params(0)))
        assert found and found[0] == 1
        np.testing.assert_array_equal(found[1]["params"]["w"], params(1)["params"]["w"])
        checkpoints.save(2, params(5))  # the training comes to the same step again
    with Checkpoints(folder, keep=2) as checkpoints:
        np.testing.assert_array_equal(checkpoints.restore(2, params(0))["params"]["w"], params(5)["params"]["w"])


def test_a_bucket_that_is_not_there_is_one_line():
    with pytest.raises(UserError, match="gs://no-such-bucket/run/checkpoints: can't write"):  # noqa: SIM117
        with Checkpoints(epath.Path("gs://no-such-bucket/run/checkpoints")) as checkpoints:
            checkpoints.save(1, params(1))
    with pytest.raises(UserError, match="gs://no-such-bucket/a.txt: can't write"):
        write_atomic("gs://no-such-bucket/a.txt", "text")


def test_a_profile_is_uploaded():
    with Tracer(ROOT / "profile", (1, 1)) as tracer:
        list(tracer.steps("step", range(1)))
    assert [p.name for p in (ROOT / "profile/plugins/profile").glob("*/perfetto*")] == ["perfetto_trace.json.gz"]


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "jsonl.gz"])
def test_tables_are_read(kind, tmp_path):
    import gzip

    rows = [{"prompt": "a", "n": 1}, {"prompt": "b", "n": 2}]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t")
        lines = (tmp_path / "t").read_bytes()
    (ROOT / "tables" / f"train.{kind}").write_bytes(gzip.compress(lines) if kind.endswith("gz") else lines)
    assert read_table(f"gs://bucket/tables/train.{kind}", lambda row, split: row["n"], "rows") == [1, 2]


def test_sft_on_an_object_store_writes_what_it_writes_on_a_disk(tmp_path_factory, tmp_path):
    here, local, remote = tiny.shared_data(tmp_path_factory.getbasetemp()), tmp_path / "run", ROOT / "sft" / "m1"
    there = upload(here, ROOT / "data")
    assert cli.main(tiny.arguments("sft", local, here)) == 0
    words = [word.replace(str(here), str(there)) for word in tiny.arguments("sft", Path("WORKDIR"), here)]
    words = [word.replace("WORKDIR", "gs://bucket/sft") for word in words]
    assert cli.main(words) == 0
    for name in ("metrics.jsonl", "config.json", "model.json"):
        assert (remote / name).read_text() == (local / "m1" / name).read_text()
    assert not list((remote / "checkpoints").glob("*/opt_state")) and not (remote / "tb").exists()
    written = (ROOT / "sft" / "manifest.jsonl").read_bytes()
    assert cli.main(words) == 0 and (ROOT / "sft" / "manifest.jsonl").read_bytes() == written

    assert cli.main(["export", f"--model={remote}", "--output=gs://bucket/exported"]) == 0
    assert load.load_model("gs://bucket/exported").hash == load.load_model(str(local / "m1")).hash
    assert cli.main(["export", f"--model={remote}", "--output=gs://bucket/exported"]) == 2


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ImportError("Please install gcsfs to access Google Storage"), "gs:// paths need gcsfs"),
        (OSError("disk"), ""),
        (ImportError("no module named x"), ""),
    ],
)
def test_what_is_missing_for_object_stores_is_one_line(error, said):
    assert remote_error(error).startswith(said) and (said or remote_error(error) == "")


def test_what_the_service_refuses_is_one_line(monkeypatch, capsys):
    from gcsfs.retry import HttpError

    from selfreward_jax.verbs import report

    def refuse(*_):
        raise HttpError({"code": 401, "message": "Anonymous caller\nhas no access"})

    monkeypatch.setattr(report, "report", refuse)
    assert cli.main(["report", "--workdir=gs://bucket/none"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("selfreward: gs://: Anonymous caller has no access") and said.count("\n") == 1


assert os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] == "false"  # of core/store.py, before gcsfs is imported


def test_one_process_at_a_time_works_there(monkeypatch):
    """The kernel knows nothing of it: the last who writes the file holds it."""
    for name, seconds in {"BEAT": 0.1, "GIVEN_UP": 0.5, "SETTLE": 0.2}.items():
        monkeypatch.setattr(lock, name, seconds)
    folder = ROOT / "locked"
    refused = pytest.raises(UserError, match=f"process {os.getpid()} on .* works on it")
    with lock.held(folder, Interrupt()), refused, lock.held(folder, Interrupt()):
        pass
    assert not (folder / lock.NAME).exists()
    dead = {"host": "far", "machine": "another", "pid": 7, "born": "1", "since": "2026-01-01", "id": "x"}
    (folder / lock.NAME).write_text(json.dumps(dead))
    with lock.held(folder, lost := Interrupt()):
        assert json.loads((folder / lock.NAME).read_text())["pid"] == os.getpid()
        (folder / lock.NAME).write_text(json.dumps(dead))  # as one that has taken this process for dead
        time.sleep(0.5)
        assert lost.requested
    assert json.loads((folder / lock.NAME).read_text())["id"] == "x"
