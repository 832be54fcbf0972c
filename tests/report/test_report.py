"""`selfreward report`, and the report at the end of a run."""

import shutil

import pytest

from selfreward_jax import cli
from selfreward_jax.report import make
from tests import tiny


@pytest.mark.slow
def test_a_finished_run_has_a_report_which_the_verb_makes_again(finished, tmp_path):
    output = tmp_path / "page.html"
    assert cli.main(["report", f"--workdir={finished}", f"--output={output}"]) == 0
    assert output.read_bytes() == (finished / "report.html").read_bytes()


@pytest.mark.slow
def test_fewer_samples_make_a_smaller_page(finished, tmp_path):
    output = tmp_path / "page.html"
    assert cli.main(["report", f"--workdir={finished}", f"--output={output}", "--samples=1"]) == 0
    assert output.stat().st_size < (finished / "report.html").stat().st_size


@pytest.mark.slow
def test_a_run_has_ended_although_its_report_can_not_be_made(data, finished, tmp_path, monkeypatch, capsys):
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "report.html").unlink()

    def fails(*_, **__):
        raise ValueError("no picture\nof this")

    monkeypatch.setattr(make, "write_report", fails)
    assert cli.main(tiny.arguments("run", run, data)) == 0
    captured = capsys.readouterr()
    assert "M3" in captured.out
    lines = [line for line in captured.err.splitlines() if "report" in line]
    assert lines == [
        f"the report could not be made (ValueError: no picture); try again: selfreward report --workdir={run}"
    ]
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["report"], "--workdir"),
        (["report", "--workdir=nowhere"], "nowhere: no run there"),
        (["report", "--workdir=run"], "config.json: the field loop is missing"),
        (["report", "--workdir=nowhere", "--samples=-1"], "--samples"),
        (["report", "--workdir=nowhere", "--samples=few"], "few"),
        (["report", "--workdir=run", "--output=no/such/page.html"], "no/such/page.html"),
        (["report", "--workdir=run", "--output=."], "--output=.: a folder"),
        (["report", "--workdir=nowhere", "--config.dpo.beta=1"], "takes no configuration"),
    ],
)
def test_what_is_wrong_is_one_line(words, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    tiny.write_jsonl(tmp_path / "run" / "config.json", [{}])
    assert cli.main(words) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("selfreward: ")
    assert captured.err.count("\n") == 1
    assert expected in captured.err
    assert list(tmp_path.rglob("*")) == [tmp_path / "run", tmp_path / "run" / "config.json"]
