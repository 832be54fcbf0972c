"""Which checkpoint of a training becomes the model, by what a judge prefers (paper §3.1.3).

Every checkpoint answers the same prompts. Then, in the order of their steps, each is compared with the best before it,
answer by answer and in both orders, as in a head-to-head; it takes that one's place if it wins more prompts than it
loses. The paper asks Claude 2 about 253 prompts and compares each checkpoint with the one before.
"""

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import jax.numpy as jnp
from ml_collections import ConfigDict

from selfreward_jax.core.checkpoints import restore
from selfreward_jax.core.errors import UserError
from selfreward_jax.core.forms import prompt_of
from selfreward_jax.core.progress import say
from selfreward_jax.core.readers import read_rows
from selfreward_jax.core.rows import Prompt, Row, content_id, draw
from selfreward_jax.core.tokens import Chat
from selfreward_jax.llama.config import LlamaConfig
from selfreward_jax.llama.load import Model, abstract_params, load_chat, load_model
from selfreward_jax.llama.lora import Adapter, LoraSettings, lora_specs, merge
from selfreward_jax.methods.pairwise import Outcome, PairwiseTemplate
from selfreward_jax.stages.respond import respond
from selfreward_jax.stages.run import CHOICE, ModelRef, Run
from selfreward_jax.stages.verdicts import AnswerPair, Decision, NoVerdict, decide, judge_pairs, too_long
from selfreward_jax.stages.work import Work
from selfreward_jax.training.batches import TrainRow

WIN_RATE = "win_rate"  # as `checkpoint.choose`

Asked = Mapping[tuple[int, ...], Sequence[dict[str, str]]]  # conversations by the ids of their prompts


def validation_prompts(run: Run, title: str, held_out: Sequence[TrainRow], asked: Asked) -> list[Prompt]:
    """What the checkpoints are asked: the prompts of `checkpoint.prompts`, or those of the held-out rows.

    Args:
      title: of the training, for messages.
      asked: the conversations of the rows whose answers can be compared.

    Raises:
      UserError: there are none, or no answer to any of them fits into the context.
    """
    c, most = run.config.checkpoint, run.config.respond.max_new_tokens
    if c.prompts:
        found = read_rows(c.prompts, prompt_of, "rows with a prompt")
    else:
        ids = [row.examples[0].prompt_ids for row in held_out]
        found = [tuple(asked[i]) for i in ids if i in asked]
    where = c.prompts or f"{title}: the held-out rows"
    prompts = [Prompt(id, m, "validation") for id, m in {content_id(m): m for m in found}.items()]
    if not prompts:
        raise UserError(
            f"{where}: no prompt that checkpoints could answer; hold out more rows (config.checkpoint.held_out), or"
            " give a file (config.checkpoint.prompts)."
        )
    lengths = [len(ids) for ids in run.chat.prompts_ids([p.messages for p in prompts])]
    fitting = [p for p, length in zip(prompts, lengths, strict=True) if length + most <= run.context]
    if not fitting:
        raise UserError(f"{where}: no prompt fits into {run.context} tokens with an answer of {most}.")
    if len(fitting) < len(prompts):
        say(f"{where}: {len(prompts) - len(fitting)} of {len(prompts)} prompts are too long and are left out")
    return draw(fitting, c.prompts_max, run.config.seed)


class Choice(Work):
    """The checkpoints of a training, as models that answer, and the model that judges them."""

    def __init__(self, run: Run, t: int, init: ModelRef, lora: LoraSettings | None):
        """
        Args:
          init: the model that the training began with.
          lora: of the adapter that was trained, None where all weights were.
        """
        super().__init__(run.root / f"m{t}" / CHOICE, run.config, run.interrupt)
        self._run, self._t, self._init, self._lora = run, t, init, lora
        self._steps: dict[str, int] = {}
        self._words: dict[str, tuple[LlamaConfig, Chat]] = {}

    def check_judge(self) -> None:
        """Finds a judge that isn't there before hours of training, instead of after.

        Raises:
          UserError: there is no such model.
        """
        try:
            if self._judge_of_run() is None:
                self.words(ModelRef(self.config.checkpoint.judge, ""))
        except UserError as error:
            raise UserError(f"config.checkpoint.judge: {str(error).removeprefix('model.path: ')}") from None

    def judge(self) -> ModelRef:
        """The model of `checkpoint.judge`."""
        name = self.config.checkpoint.judge
        return self._judge_of_run() or ModelRef(name, self.load(ModelRef(name, "")).hash)

    def _judge_of_run(self) -> ModelRef | None:
        """The judge if it is one of the run's; M1 isn't there when it is chosen itself, so M0 judges then."""
        name = self.config.checkpoint.judge
        if name == "current" or (name == "m1" and self._t == 1):
            return self._init
        return self._run.ref(name) if name in ("m0", "m1") else None

    def step(self, step: int) -> ModelRef:
        """A checkpoint; its weights are read only if it has not answered yet."""
        name = f"M{self._t} step {step}"
        self._steps[name] = step
        entry = self.manifest.entry(f"{step}/responses.jsonl")
        return ModelRef(name, entry["inputs"]["model"] if entry else self.load(ModelRef(name, "")).hash)

    def words(self, ref: ModelRef) -> tuple[LlamaConfig, Chat]:
        if ref.name != self.config.checkpoint.judge or self._judge_of_run():
            return self._run.words(ref)
        if ref.name not in self._words:
            self._words[ref.name] = load_chat(ref.name, date=self.config.model.date)
        return self._words[ref.name]

    def _read(self, ref: ModelRef) -> Model:
        if ref.name in self._steps:
            return self._trained(ref.name, self._steps[ref.name])
        if self._judge_of_run():
            return self._run.take(ref)
        c = self.config.model
        options: dict[str, Any] = {"dtype": c.dtype, "param_dtype": c.param_dtype, "chat": self.words(ref)}
        return load_model(ref.name, mesh=self.mesh, rules=self.rules, **options)

    def _trained(self, name: str, step: int) -> Model:
        """The model that the training had made after a step."""
        c, lora = self.config.model, self._lora
        config, chat = self._run.words(self._init)
        item, dtype, specs = "params", jnp.dtype(c.param_dtype), None
        if lora:
            item, dtype, specs = "adapter", jnp.dtype("float32"), lora_specs(config, lora)
        target = abstract_params(config, self.mesh, dtype, self.rules, specs)
        learnt = restore(self.root.parent / "checkpoints", step, {item: target})[item]
        if lora is None:
            return Model(name, config, learnt, chat, self.mesh, c.dtype, self.rules)
        base = self._run.take(self._init)
        merged = merge(lora, base.params, learnt)
        return dataclasses.replace(base, name=name, params=merged, adapter=Adapter(lora, learnt, base.name))


def walk(steps: Sequence[int], compare: Callable[[int, int], Mapping[str, int]]) -> tuple[int, list[Row]]:
    """The best step, and each comparison on the way: the later one must win more prompts than it loses.

    Where none won or lost a single prompt, nothing speaks against the last, which it is by default.

    Args:
      steps: of the checkpoints, ascending.
      compare: how many prompts the first of two steps won, tied and lost against the second.
    """
    best, comparisons = steps[0], []
    for step in steps[1:]:
        counts = compare(step, best)
        comparisons.append({"step": step, "against": best, **counts})
        if counts["win"] > counts["lose"]:
            best = step
    return best if decided(comparisons) else steps[-1], comparisons


def decided(comparisons: Sequence[Row]) -> bool:
    """Whether any prompt was won or lost."""
    return any(c["win"] or c["lose"] for c in comparisons)


def choose_by_win_rate(work: Choice, title: str, steps: Sequence[int], prompts: Sequence[Prompt]) -> tuple[int, Row]:
    """The best step by the judge, and what is on record of it.

    Args:
      title: of the training, for messages.
      steps: of the checkpoints, ascending.
    """
    section: Any = ConfigDict(work.config.respond.to_dict())
    section.n = 1
    answers: dict[int, dict[str, str]] = {}
    for step in steps:
        made = respond(work, str(step), work.step(step), prompts, section)
        answers[step] = {r.prompt_id: r.text for r in made}
    judge = work.judge()

    def compare(step: int, best: int) -> dict[str, int]:
        what = f"{title}: step {step} against {best}"
        pairs = [AnswerPair(p, answers[step][p.id], answers[best][p.id]) for p in prompts]
        decisions = _decisions(work, judge, f"{step}/verdicts.jsonl", what, pairs)
        outcomes = collections.Counter(d.outcome for d in decisions)
        missing = f", {outcomes[None]} without an outcome" if outcomes[None] else ""
        say(f"{what}: {outcomes['win']} won, {outcomes['tie']} tied, {outcomes['lose']} lost{missing}")
        return {name: outcomes[name] for name in get_args(Outcome)} | {"missing": outcomes[None]}

    best, comparisons = walk(steps, compare)
    if not decided(comparisons):
        say(
            f"{title}: {judge.title} prefers no checkpoint's answer on any prompt (answers alike, verdicts that change"
            " with the order or can't be read), so the last step is taken; another config.checkpoint.judge may tell"
            " more, and config.judge.method=completion reads a verdict from any"
        )
    return best, {"judge": judge.name, "judge_hash": judge.hash, "prompts": len(prompts), "comparisons": comparisons}


def _decisions(work: Choice, judge: ModelRef, artefact: str, title: str, pairs: Sequence[AnswerPair]) -> list[Decision]:
    """Who wins each pair; a judge from which no verdict can be had says nothing of any."""
    try:
        verdicts = judge_pairs(work, artefact, judge, judge.title, title, pairs, 1, PairwiseTemplate())
    except NoVerdict:
        return decide(pairs, [], {p.prompt.id for p in pairs})
    return decide(pairs, verdicts, too_long(pairs, verdicts, title))
