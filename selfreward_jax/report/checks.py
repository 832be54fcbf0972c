"""What to look at: known ways in which self-rewarding goes wrong, each with its number and the bound that is set.

A bound is a rule of thumb, not a verdict. What each check stands for is in the literature: answers that grow (paper,
table 3), scores that pile up, pairs that vanish, judges that get worse, chosen answers that lose probability.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator

import numpy as np
from scipy import stats

from selfreward_jax.report.collect import Iteration, Model, RunFacts

FEW_PAIRS = 200  # with fewer, a share is uncertain by some 7 points or more


@dataclasses.dataclass(frozen=True)
class Finding:
    """A check and what came out.

    Attributes:
      name: what is checked.
      where: of which model or iteration.
      number: what was measured.
      bound: what would be worth a look.
      meaning: what it may mean and what may help.
      look: whether the number is beyond the bound.
    """

    name: str
    where: str
    number: str
    bound: str
    meaning: str
    look: bool


def check_run(run: RunFacts) -> list[Finding]:
    """All checks for which the run has numbers, those worth a look first."""
    found = [finding for check in CHECKS for finding in check(run)]
    return sorted(found, key=lambda finding: not finding.look)


def percent(share: float) -> str:
    return f"{100 * share:.0f}%"


def _answered(run: RunFacts) -> list[Model]:
    return [m for m in run.models if m.answers and m.answers.metrics["gen/responses"]]


def _paired(run: RunFacts) -> list[Iteration]:
    return [i for i in run.iterations if i.pairs is not None and i.prompts]


def _share(metric: str, name: str, bound: float, above: bool, meaning: str) -> Callable[[RunFacts], Iterator[Finding]]:
    """A check of a share among a model's metrics."""

    def check(run: RunFacts) -> Iterator[Finding]:
        for model in _answered(run):
            assert model.answers
            value = model.answers.metrics[metric]
            if value is not None:
                look = value > bound if above else value < bound
                told = f"{'above' if above else 'below'} {percent(bound)}"
                yield Finding(name, model.name, percent(value), told, meaning, look)

    return check


def _few_pairs(run: RunFacts) -> Iterator[Finding]:
    meaning = "So few pairs teach little and measure little: differences between models may well be chance."
    for i in _paired(run):
        n = len(i.pairs or ())
        yield Finding("Number of pairs", f"M{i.t}", f"{n:,}", f"fewer than {FEW_PAIRS}", meaning, n < FEW_PAIRS)


def _usable(run: RunFacts) -> Iterator[Finding]:
    meaning = (
        "Many prompts teach nothing; ties, cut answers and unread judgements are the usual causes (see the funnel)."
    )
    for i in _paired(run):
        share = len(i.pairs or ()) / len(i.prompts)
        yield Finding("Prompts that give a pair", f"M{i.t}", percent(share), "below 50%", meaning, share < 0.5)


def _margin_shrinks(run: RunFacts) -> Iterator[Finding]:
    meaning = "Chosen and rejected answers come closer, which leaves little to learn; more varied answers may help."
    found = [(i.t, float(np.mean([p.margin for p in i.pairs]))) for i in _paired(run) if i.pairs]
    for (_, before), (t, now) in zip(found, found[1:], strict=False):
        number = f"{before:.2f} → {now:.2f} points"
        yield Finding("Mean margin of pairs", f"M{t}", number, "less than half of before", meaning, now < before / 2)


def _length_grows(run: RunFacts) -> Iterator[Finding]:
    meaning = "Answers that grow often please the judge, not the reader; compare win rates at equal length."
    answered = _answered(run)
    for before, now in zip(answered, answered[1:], strict=False):
        assert before.answers and now.answers
        a, b = before.answers.metrics["gen/len_mean"], now.answers.metrics["gen/len_mean"]
        if a:
            number = f"{a:.0f} → {b:.0f} tokens"
            yield Finding("Answer length", now.name, number, "more than 1.3 times before", meaning, b > 1.3 * a)


def _chosen_longer(run: RunFacts) -> Iterator[Finding]:
    meaning = "The pairs teach length itself."
    for i in _paired(run):
        if i.pairs:
            a, b = np.mean([(p.tokens_chosen, p.tokens_rejected) for p in i.pairs], axis=0)
            number = f"{a:.0f} against {b:.0f} tokens"
            look = a > 1.2 * b
            yield Finding("Length of chosen against rejected", f"M{i.t}", number, "more than 1.2 times", meaning, look)


def _judge_likes_length(run: RunFacts) -> Iterator[Finding]:
    meaning = "The judge's scores follow length; look at long answers with high scores."
    for model in _answered(run):
        assert model.answers
        known = ~np.isnan(model.answers.scores)
        x, y = model.answers.tokens[known], model.answers.scores[known]
        if len(x) >= 10 and np.ptp(x) > 0 and np.ptp(y) > 0:
            rho = float(np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1])
            yield Finding(
                "Correlation of score and length",
                model.name,
                f"{rho:+.2f} (Spearman)",
                "above +0.4",
                meaning,
                rho > 0.4,
            )


def _one_score(run: RunFacts) -> Iterator[Finding]:
    meaning = (
        "A judge that gives one mark to nearly all can't rank; the additive template and balanced seeds spread marks."
    )
    for model in _answered(run):
        assert model.answers
        counts = model.answers.metrics["judge/score_hist"]
        if sum(counts):
            best = int(np.argmax(counts))
            share = counts[best] / sum(counts)
            number = f"{percent(share)} are {best}"
            yield Finding("Commonest score", model.name, number, "above 60%", meaning, share > 0.6)


def _accuracy(run: RunFacts) -> Iterator[Finding]:
    meaning = "At the end of training, chosen answers should have the higher reward more often than by chance."
    for name, last, steps in _preferences(run):
        value = last.get("rewards/accuracies")
        if value is not None:
            last_steps = max(1, steps // 10)
            over = f"the last {last_steps:,} steps" if last_steps > 1 else "the last step"
            number = f"{percent(value)} over {over}"
            yield Finding("Training accuracy", name, number, "below 55%", meaning, value < 0.55)


def _displaced(run: RunFacts) -> Iterator[Finding]:
    meaning = (
        "Chosen answers lose probability against the reference, though rejected ones may lose more;"
        " a smaller rate, a larger beta or an SFT term (dpo.loss_type=sigmoid,sft) hold them."
    )
    beta = run.settings.get("dpo.beta")
    for name, last, _ in _preferences(run):
        value = last.get("rewards/chosen")
        training = next(m.training for m in run.models if m.name == name)
        if value is not None and beta and training and training.has_reference:
            nats = value / beta
            number = f"{nats:+.2f} nats an answer"
            yield Finding("Log-probability of chosen answers", name, number, "below −1", meaning, nats < -1)


def _preferences(run: RunFacts) -> Iterator[tuple[str, dict, int]]:
    for model in run.models:
        if model.training and model.training.stage == "dpo" and model.training.last:
            yield model.name, model.training.last, model.training.steps


def _skipped(run: RunFacts) -> Iterator[Finding]:
    meaning = "Gradients that were not finite; a smaller rate, or float32, may help."
    for model in run.models:
        if model.training and model.training.curve:
            n = int(model.training.curve[-1].get("skipped_updates") or 0)
            yield Finding("Skipped updates", model.name, f"{n} of {model.training.steps}", "any", meaning, n > 0)


def _rejected_prompts(run: RunFacts) -> Iterator[Finding]:
    meaning = "The generator repeats itself or the seeds; a higher temperature or more seeds vary it."
    for i in run.iterations:
        if i.rejected is not None:
            again = sum(n for reason, n in i.rejected.items() if reason in ("duplicate", "similar"))
            share = again / (len(i.prompts) + sum(i.rejected.values()))
            yield Finding("New prompts too like others", f"M{i.t}", percent(share), "above 50%", meaning, share > 0.5)


def _repeated_prompts(run: RunFacts) -> Iterator[Finding]:
    meaning = "Prompts that differ in nothing but case and spaces, within an iteration or from those before."
    seen: set[str] = set()
    for i in run.iterations:
        before = len(seen)
        seen |= {" ".join(text.casefold().split()) for text in i.prompts}
        n = len(i.prompts) - (len(seen) - before)
        yield Finding("Repeated prompts", f"M{i.t}", f"{n} of {len(i.prompts):,}", "any", meaning, n > 0)


def _judge_gets_worse(run: RunFacts) -> Iterator[Finding]:
    meaning = "The judge agrees less with people than an earlier one; later scores may mislead."
    for data, found in run.results.judges.items():
        judged = [(r.model, x) for r in found if (x := r.metrics.get("pairwise_accuracy")) and not math.isnan(x.low)]
        for n, (model, now) in enumerate(judged[1:], 1):
            name, best = max(judged[:n], key=lambda earlier: earlier[1].value)
            number = f"{percent(now.value)}, {name} {percent(best.value)}"
            look = now.high < best.low
            yield Finding(f"Judge accuracy on {data}", model, number, "intervals apart", meaning, look)


def _judge_by_length(run: RunFacts) -> Iterator[Finding]:
    meaning = "Taking the longer answer would agree with people as well as this judge does."
    for data, found in run.results.judges.items():
        for r in found:
            own, longer = r.metrics.get("pairwise_accuracy"), r.baselines.get("longer", {}).get("pairwise_accuracy")
            if own and longer and not math.isnan(own.low):
                number = f"{percent(own.value)} against {percent(longer.value)}"
                look = own.low <= longer.value
                yield Finding(f"Judge against length on {data}", r.model, number, "within its interval", meaning, look)


def _position(run: RunFacts) -> Iterator[Finding]:
    meaning = "When the answers change places the judge changes its mind; its win rates carry little."
    for data, found in run.results.win_rates.items():
        for w in found:
            if not math.isnan(w.agreement):
                where, look = f"{w.a} against {w.b}", w.agreement < 0.6
                name = f"Agreement of both orders on {data}"
                yield Finding(name, where, percent(w.agreement), "below 60%", meaning, look)


CHECKS: tuple[Callable[[RunFacts], Iterator[Finding]], ...] = (
    _few_pairs,
    _usable,
    _share(
        "judge/parse_rate",
        "Judgements with a score",
        0.9,
        False,
        "Judgements without a score are lost; judge.max_new_tokens or judge.method=completion may help.",
    ),
    _share(
        "gen/truncated_frac",
        "Answers cut by the limit",
        0.1,
        True,
        "Cut answers are judged unfinished, or dropped; raise respond.max_new_tokens.",
    ),
    _share(
        "judge/tie_rate",
        "Prompts tied",
        0.3,
        True,
        "Best and worst answer have the same score, so there is no pair; more judgements an answer break ties.",
    ),
    _one_score,
    _margin_shrinks,
    _length_grows,
    _chosen_longer,
    _judge_likes_length,
    _accuracy,
    _displaced,
    _skipped,
    _rejected_prompts,
    _repeated_prompts,
    _judge_gets_worse,
    _judge_by_length,
    _position,
)
