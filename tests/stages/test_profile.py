"""--profile: a few steps of a stage are traced, under the algorithm's names, and nothing else changes."""

import gzip
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from selfreward_jax import cli
from selfreward_jax.core.profile import Tracer
from selfreward_jax.engine import programs
from selfreward_jax.engine.compiling import compiled_anew
from selfreward_jax.engine.generate import Engine, EngineSettings, Request
from selfreward_jax.engine.sampling import SamplingSettings
from selfreward_jax.training import step
from selfreward_jax.training.batches import Example, TrainRow
from selfreward_jax.training.objectives import SFT
from selfreward_jax.training.optimizer import OptimizerSettings
from selfreward_jax.training.packing import Layout, micro_batches
from tests import tiny
from tests.engine.small_llama import GQA, random_params, small_model


def traced(folder: Path) -> list[dict]:
    """The events of the one trace in a folder."""
    [trace] = folder.glob("plugins/profile/*/perfetto_trace.json.gz")
    return json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]


def numbers(events: list[dict], name: str) -> list[int]:
    """Of the steps of that name."""
    return sorted(int(e["args"]["step_num"]) for e in events if e.get("name") == name and "args" in e)


@pytest.fixture
def anew():
    with compiled_anew():
        yield


@pytest.mark.usefixtures("anew")
def test_sft_traces_the_steps_asked_for_under_the_names_of_the_algorithm(tmp_path, tmp_path_factory, capsys):
    data = tiny.shared_data(tmp_path_factory.getbasetemp())
    changes = {"sft.epochs": 2, "checkpoint.every_steps": 3}
    assert cli.main([*tiny.arguments("sft", tmp_path / "run", data, changes), "--profile=2:2"]) == 0
    folder = tmp_path / "run" / "m1" / "profile" / "sft"
    events = traced(folder)
    assert numbers(events, "training step") == [2, 3]
    assert "checkpoint" in {event.get("name") for event in events}
    [planes] = folder.glob("plugins/profile/*/*.xplane.pb")
    assert all(name in planes.read_bytes() for name in (b"jit(gradients)", b"logps", b"attention", b"optimizer"))
    said = capsys.readouterr().err
    assert f"profile: {folder}/plugins/profile/" in said and "https://ui.perfetto.dev" in said


def test_sampling_traces_calls_of_decoding(tmp_path):
    engine = Engine(small_model(), EngineSettings(slots=2, length_bucket=8))
    requests = [Request(str(n), (1, 2, 3 + n)) for n in range(6)]
    with Tracer(epath.Path(tmp_path), (2, 1)) as engine.tracer:
        made = list(engine.run(requests, 1, SamplingSettings(1.0, 1.0, 4), seed=0))
    assert len(made) == 6
    events = traced(tmp_path)
    assert numbers(events, "decode") == [2]


def test_a_stage_of_too_few_steps_says_so(tmp_path, capsys):
    with Tracer(epath.Path(tmp_path / "none"), (3, 3)) as tracer:
        assert list(tracer.steps("step", range(5, 7))) == [5, 6]
    assert "only 2 steps, so none from 3 on was traced; --profile=1:3 traces them" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_stage_that_ends_in_a_trace_keeps_it(tmp_path):
    with pytest.raises(KeyError), Tracer(epath.Path(tmp_path), (1, 9)) as tracer:
        for _ in tracer.steps("step", range(3)):
            jnp.ones(3).block_until_ready()
            raise KeyError
    assert numbers(traced(tmp_path), "step") in ([1], [])  # a step that broke off may have no end


@pytest.mark.parametrize("text", ["0:3", "3:0", "x", "3:", "-1:2", "1:2:3"])
def test_a_window_that_is_none_is_one_line(text, capsys):
    assert cli.main(["sft", "--workdir=none", f"--profile={text}"]) == 2
    said = capsys.readouterr().err
    assert f"{text} must be FIRST:COUNT, such as 3:3" in said and said.count("\n") == 1


def training() -> jax.stages.Lowered:
    rows = [TrainRow((Example((1, 2), (3, 4, 5)),))]
    [(batch, arrays)] = micro_batches(rows, Layout(1, 16))
    settings = step.ForwardSettings("float32", 16, "block", 0.0)
    counts = {name: np.float32(value) for name, value in SFT().counts(rows).items()}
    args = GQA, SFT(), settings, random_params(GQA), batch, arrays, counts, jax.random.key(0)
    return step.gradients.lower(*args)


def updating() -> jax.stages.Lowered:
    settings = OptimizerSettings(1e-3, 1e-4, 0, 2, 0.0, 0.9, 0.95, 1e-8, 1.0)
    state = step.init_state(GQA, settings, random_params(GQA))
    return step.update.lower(GQA, settings, state, random_params(GQA))


def sampling() -> jax.stages.Lowered:
    law, keys = SamplingSettings(0.7, 0.9, 4).law(), jnp.zeros((2, 1, 2), jnp.uint32)
    return programs.first_tokens.lower(jnp.zeros((2, 70)), keys, law, banned=())


@pytest.mark.parametrize(
    ("program", "names"),
    [
        (training, ("embed", "attention", "mlp", "head", "logps", "loss")),
        (updating, ("optimizer",)),
        (sampling, ("sample",)),
    ],
)
def test_names_are_notes_beside_a_program_and_no_part_of_it(program, names):
    """So they change no number, and no key in the cache of compiled programs."""
    lowered = program()
    notes = re.findall(r'loc\("([^"]*)"', lowered.as_text(debug_info=True))
    for name in names:
        assert any(re.search(rf"(^|[/(]){name}[/)]", note) for note in notes), name
    # Of the names, `embed`, `head` and `loss` are also those of arguments and results.
    assert not re.search(r"\b(attention|mlp|logps|optimizer|sample)\b", lowered.as_text())
