"""The field's benchmarks: AlpacaEval, MT-bench, IFEval, and lm-evaluation-harness, each with files in its own format.

Every verb works in a folder of its own, asks each question once, and goes on where it was. What others read lies at
the top of the folder; the samples behind it, with token ids, in `samples/`.
"""

import argparse
import functools
import importlib.util
import json
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ml_collections import ConfigDict
from rich.table import Table
from rich.text import Text

from selfreward_jax.configs import base
from selfreward_jax.core import hosts
from selfreward_jax.core.config import load_config
from selfreward_jax.core.console import Terminal
from selfreward_jax.core.errors import UserError, did_you_mean
from selfreward_jax.core.interrupt import Interrupt
from selfreward_jax.core.lock import alone
from selfreward_jax.core.paths import local_path
from selfreward_jax.core.progress import say
from selfreward_jax.core.readers import fingerprint, read_rows, stem
from selfreward_jax.core.rows import Prompt, Row, content_id, group_by, read_jsonl, to_lines
from selfreward_jax.core.terminal import tell
from selfreward_jax.engine.generate import Completion, Request
from selfreward_jax.evals import alpaca as alpaca_eval
from selfreward_jax.evals import ifeval as ifeval_eval
from selfreward_jax.evals import mt_bench as mt
from selfreward_jax.evals.desk import Desk, model_name
from selfreward_jax.stages.respond import respond
from selfreward_jax.stages.sampling import sample_artefact, sampling_settings
from selfreward_jax.stages.unread import Watch, first_outputs
from selfreward_jax.stages.work import ModelRef, engine_settings
from selfreward_jax.verbs.runs import Overrides

# One greedy answer and one greedy judgement, as these benchmarks do it; flags that follow change it.
FIELD_SETTINGS = (
    "--config.respond.temperature=0.0",
    "--config.respond.top_p=1.0",
    "--config.judge.temperature=0.0",
    "--config.judge.top_p=1.0",
    "--config.judge.max_new_tokens=1024",
)


REQUEST, RESULT = "request.json", "result.json"


def _open(options: argparse.Namespace, overrides: Overrides, interrupt: Interrupt) -> Desk:
    config: Any = load_config(options.config or base.__file__, [*FIELD_SETTINGS, *overrides])
    config.respond.n = 1
    return Desk(options.output, config, interrupt)


def _claim(desk: Desk, about: Row) -> None:
    """One folder belongs to one model, one set of questions and one way of asking them; refuses any other."""
    c = desk.config
    settings = {**about, "seed": c.seed, "dtype": c.model.dtype}
    settings |= {"respond": c.respond.to_dict(), "generation": c.generation.to_dict()}
    desk.claim(REQUEST, settings)
    desk.write(REQUEST, {"settings": settings}, json.dumps(settings, indent=2) + "\n")


def _write(desk: Desk, artefact: str, inputs: dict[str, Any], make: Callable[[], str | Iterable[bytes]]) -> None:
    """An artefact, unless it is there already: some formats hold the time, which is to stay what it was."""
    if not desk.is_made(artefact, inputs):
        desk.write(artefact, inputs, make())


def _answers(desk: Desk, folder: str, ref: ModelRef, prompts: Sequence[Prompt], section: Any = None) -> list[str]:
    """The text of one answer to each prompt; prompts that are the same are asked once."""
    found = respond(desk, folder, ref, list({p.id: p for p in prompts}.values()), section)
    texts = {response.prompt_id: response.text for response in found}
    return [texts[p.id] for p in prompts]


def _result(desk: Desk, facts: Row, inputs: dict[str, Any]) -> None:
    desk.write(RESULT, inputs, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")


def _show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if not hosts.is_writer():
        return
    table = Table(title=Text(title), title_justify="left")
    for n, column in enumerate(columns):
        table.add_column(column, justify="right" if n else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    Terminal().print(table)


# ---------------------------------------------------------------------------------------------------------------------
# AlpacaEval


@alone(lambda options: options.output)
def alpaca(options: argparse.Namespace, overrides: Overrides, interrupt: Interrupt) -> None:
    asked = alpaca_eval.read_instructions(options.prompts)
    desk = _open(options, overrides, interrupt)
    ref, name = desk.ref(options.model), options.name or model_name(options.model)
    _claim(desk, {"verb": "alpaca", "name": name, "model": ref.hash, "data": fingerprint(options.prompts)})
    rows = alpaca_eval.model_outputs(asked, _answers(desk, "samples", ref, [p for p, _ in asked]), name)
    alpaca_eval.check_outputs(rows, asked)
    inputs = {"stage": "alpaca", "rows": content_id(rows)}
    _write(desk, "model_outputs.json", inputs, lambda: json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
    say(f"{len(rows)} outputs of {name} lie in {desk.root / 'model_outputs.json'}, for alpaca_eval --model_outputs")


# ---------------------------------------------------------------------------------------------------------------------
# MT-bench


@alone(lambda options: options.output)
def mt_bench(options: argparse.Namespace, overrides: Overrides, interrupt: Interrupt) -> None:
    questions = read_rows(options.questions, mt.parse_question, "MT-bench's questions")
    if len({q.id for q in questions}) < len(questions):
        raise UserError(f"{options.questions}: a question_id comes twice.")
    name = options.name or model_name(options.model)
    mt.check_model_name(name)
    desk = _open(options, overrides, interrupt)
    ref = desk.ref(options.model)
    _claim(desk, {"verb": "mt_bench", "name": name, "model": ref.hash, "data": fingerprint(options.questions)})
    answers: dict[int, tuple[str, ...]] = {q.id: () for q in questions}
    for turn in mt.TURNS:
        for group in group_by(questions, lambda q: f"{q.temperature:g}").values():
            section = ConfigDict(desk.config.respond.to_dict() | {"temperature": group[0].temperature})
            prompts = [q.prompt(*answers[q.id]) for q in group]
            folder = f"samples/turn_{turn}/temperature_{group[0].temperature:g}"
            for q, text in zip(group, _answers(desk, folder, ref, prompts, section), strict=True):
                answers[q.id] += (text,)
    file = f"model_answer/{name}.jsonl"
    inputs = {"stage": "mt_bench", "model": name, "answers": content_id(sorted(answers.items()))}
    rows = [mt.answer_row(q, answers[q.id], name, time.time()) for q in questions]
    mt.check_answers(rows, questions)
    _write(desk, file, inputs, lambda: to_lines(rows))
    if empty := mt.empty_answers(rows):
        say(f"{empty} of {len(mt.TURNS) * len(rows)} answers are empty; they stand in the file as they are")
    say(f"answers of {name} to {len(questions)} questions lie in {desk.root / file}")
    if options.judge:
        _grade(desk, questions, answers, options, name, ref)


def _grade(
    desk: Desk,
    questions: Sequence[mt.Question],
    answers: dict[int, tuple[str, ...]],
    options: argparse.Namespace,
    name: str,
    ref: ModelRef,
) -> None:
    judge, judge_name = desk.ref(options.judge), model_name(options.judge)
    settings = {"judge": judge.hash, "judging": desk.config.judge.to_dict()}
    desk.claim(RESULT, settings)
    graded = {f"{q.id}-{turn}": (q, turn) for turn in mt.TURNS for q in questions}
    texts = _gradings(desk, judge, {id: mt.grading_prompt(q, answers[q.id], turn) for id, (q, turn) in graded.items()})
    rows = [
        mt.judgement_row(q, answers[q.id], name, judge_name, turn, texts.get(id, ""), time.time())
        for id, (q, turn) in graded.items()
    ]
    mt.check_judgements(rows, questions)
    file = f"model_judgment/{judge_name}_single.jsonl"
    inputs = {"stage": "grading", "model": name, "settings": settings, "texts": content_id(sorted(texts.items()))}
    _write(desk, file, inputs, lambda: to_lines(rows))
    facts = mt.averages(rows, {q.id: q.category for q in questions})
    about = {"kind": "mt_bench", "model": name, "hash": ref.hash, "judge": {"name": judge_name, "hash": judge.hash}}
    about |= {"questions": len(questions), "data_sha256": fingerprint(options.questions)}
    _result(desk, about | facts, inputs)
    cell = lambda x: "-" if x is None else f"{x:.2f}"  # noqa: E731
    table = [*facts["by_category"].items(), ("all", facts["by_turn"])]
    _show(
        f"MT-bench marks of {name} by {judge_name}, {facts['parse_rate']:.0%} of judgements with a mark",
        ("category", "turn 1", "turn 2", "both"),
        [(label, *(cell(means[turn]) for turn in ("turn_1", "turn_2", "both"))) for label, means in table],
    )
    say(f"{len(rows)} judgements lie in {desk.root / file}")


def _gradings(desk: Desk, judge: ModelRef, prompts: dict[str, str]) -> dict[str, str]:
    """The judge's text on each prompt that fits its context."""
    c, chat, context = desk.config.judge, desk.chat_of(judge), desk.context_of(judge)
    asked = chat.prompts_ids([[{"role": "user", "content": text}] for text in prompts.values()])
    made = [Request(id, tuple(ids)) for id, ids in zip(prompts, asked, strict=True)]
    requests = [r for r in made if len(r.prompt_ids) + c.max_new_tokens <= context]
    if len(requests) < len(made):
        say(f"{len(made) - len(requests)} answers are too long to be judged in {context} tokens; they get no mark")
    artefact = "samples/judgements.jsonl"
    inputs = {
        "stage": "mt_bench judge",
        **desk.sampling_inputs(judge),
        "prompts": content_id(sorted(prompts.items())),
        "settings": c.to_dict(),
    }
    if not requests:
        return {}
    if not desk.is_made(artefact, inputs):
        title, watch = f"{judge.title} grades", Watch("mark", functools.partial(_no_mark, judge.title))
        sample_artefact(
            desk, artefact, inputs, judge, requests, 1, sampling_settings(c), _graded, "id", title, watch=watch
        )
    return {row["id"]: row["text"] for row in read_jsonl(desk.root / artefact)}


def _graded(x: Completion) -> Row:
    mark = mt.parse_mark(x.text)
    return {"id": x.request.id, "index": x.index, "text": x.text, "mark": mark, "stop_reason": x.stop_reason}


def _no_mark(name: str, rows: Sequence[Row]) -> UserError:
    return UserError(
        f"{name}: none of its {len(rows)} judgements has a mark such as [[5]]; they begin {first_outputs(rows)}."
        " MT-bench needs a judge that follows its prompts."
    )


# ---------------------------------------------------------------------------------------------------------------------
# IFEval


@alone(lambda options: options.output)
def ifeval(options: argparse.Namespace, overrides: Overrides, interrupt: Interrupt) -> None:
    if bool(options.model) == bool(options.responses):
        raise UserError("eval ifeval: give either --model=DIR or --responses=FILE.")
    tasks = read_rows(options.data, ifeval_eval.parse_task, "IFEval's prompts with their instructions")
    about: Row = {"kind": "ifeval"}
    if options.responses:
        given = read_rows(options.responses, _response_row, "rows with prompt and response")
        try:
            responses = ifeval_eval.match_responses(tasks, given)
        except ValueError as error:
            raise UserError(f"{options.responses}: {error}.") from None
        desk, name = _open(options, overrides, interrupt), stem(options.responses)
        about |= {"responses": name, "responses_sha256": fingerprint(options.responses)}
        _claim(desk, {"verb": "ifeval", "data": fingerprint(options.data), "responses": about["responses_sha256"]})
    else:
        desk = _open(options, overrides, interrupt)
        ref, name = desk.ref(options.model), model_name(options.model)
        _claim(desk, {"verb": "ifeval", "data": fingerprint(options.data), "model": ref.hash})
        prompts = [Prompt(content_id(t.prompt), ({"role": "user", "content": t.prompt},), "ifeval") for t in tasks]
        responses = _answers(desk, "samples", ref, prompts)
        about |= {"model": name, "hash": ref.hash}
    inputs = {"stage": "ifeval", "data": fingerprint(options.data), "responses": content_id(responses)}
    answered = [{"prompt": t.prompt, "response": r} for t, r in zip(tasks, responses, strict=True)]
    ifeval_eval.check_responses(answered, tasks)
    _write(desk, "responses.jsonl", inputs, lambda: to_lines(answered))
    rows = {
        mode: [
            ifeval_eval.verdict_row(t, r, ifeval_eval.verdicts(t, r, mode))
            for t, r in zip(tasks, responses, strict=True)
        ]
        for mode in ifeval_eval.MODES
    }
    for mode, found in rows.items():
        desk.write(f"eval_results_{mode}.jsonl", inputs, to_lines(found))
    scores, kinds = ifeval_eval.accuracies(rows), ifeval_eval.by_kind(rows)
    about |= {"data": stem(options.data), "data_sha256": inputs["data"], "prompts": len(tasks)}
    about |= {"instructions": sum(len(t.instructions) for t in tasks)}
    about |= {"accuracies": {key: x.to_json() for key, x in scores.items()}, "by_instruction": kinds}
    _result(desk, about, inputs)
    table = [(kind, str(x["n"]), f"{x['strict']:.0%}", f"{x['loose']:.0%}") for kind, x in kinds.items()]
    for label, level, n in (("all instructions", "inst", about["instructions"]), ("all prompts", "prompt", len(tasks))):
        strict, loose = (f"{scores[f'{level}_level_{mode}_acc'].value:.1%}" for mode in ifeval_eval.MODES)
        table.append((label, str(n), strict, loose))
    _show(f"IFEval of {name}", ("instruction", "n", "strict", "loose"), table)
    say(f"responses, verdicts and result.json lie in {desk.root}")


def _response_row(row: Row) -> Row:
    if not isinstance(row["prompt"], str) or not isinstance(row["response"], str):
        raise ValueError("prompt and response must be text")
    return row


# ---------------------------------------------------------------------------------------------------------------------
# lm-evaluation-harness


def check_tasks(names: Sequence[str], manager: Any) -> None:
    """Raises `UserError` for a task that lm-eval's `TaskManager` doesn't know."""
    for name in names:
        if not manager.match_tasks([name]):
            raise UserError(f"--tasks={name}: lm-eval has no such task.{did_you_mean(name, manager.all_tasks)}")
    if not names:
        raise UserError("--tasks: none named; lm-eval ls tasks lists them.")


@alone(lambda options: options.output)
def harness(options: argparse.Namespace, overrides: Overrides, interrupt: Interrupt) -> None:
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("eval harness: lm-eval is not installed; pip install 'lm-eval>=0.4.13'.")
    # Imported by name, so that types are checked alike with and without it.
    lm_eval = importlib.import_module("lm_eval")
    make_table = importlib.import_module("lm_eval.utils").make_table
    folder = str(local_path(options.include_path)) if options.include_path else None
    manager = importlib.import_module("lm_eval.tasks").TaskManager(include_path=folder)
    names = [name.strip() for name in options.tasks.split(",") if name.strip()]
    check_tasks(names, manager)
    desk = _open(options, overrides, interrupt)
    ref = desk.ref(options.model)
    how = {name: getattr(options, name) for name in ("num_fewshot", "limit", "apply_chat_template")}
    _claim(desk, {"verb": "harness", "tasks": names, "model": ref.hash, **how})
    c = desk.config
    lm = importlib.import_module("selfreward_jax.evals.harness").SelfRewardLM(
        desk.load(ref), engine_settings(c.generation), rows=c.generation.score_rows, seed=c.seed, interrupt=interrupt
    )
    asked = desk.sampling_inputs(ref)
    tracker = importlib.import_module("lm_eval.loggers").EvaluationTracker(output_path=str(desk.root))
    results = lm_eval.simple_evaluate(
        lm,
        model_args={"path": options.model},
        tasks=names,
        **how,
        task_manager=manager,
        evaluation_tracker=tracker,
        use_cache=str(desk.root / "samples" / f"answers_{content_id(asked)}"),  # so that it goes on where it was
    )
    if results is None or not hosts.is_writer():
        return
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    for task in results["configs"]:
        tracker.save_results_samples(task_name=task, samples=samples[task])
    facts = {"kind": "harness", "model": model_name(options.model), "hash": ref.hash, "results": results["results"]}
    _result(desk, facts, {"stage": "harness", **asked, "tasks": names, "limit": options.limit})
    tell(make_table(results))
    say(f"results and samples in lm-eval's files lie in {desk.root}")
