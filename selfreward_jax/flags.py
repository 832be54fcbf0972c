"""The verbs of the command line and the flags of each.

Nothing heavy is imported here, so that `--help` and a mistyped flag answer at once.
"""

import argparse
import dataclasses
import math
from collections.abc import Callable


def number(kind: Callable[[str], float], low: float, high: float = math.inf) -> Callable[[str], float]:
    """A type of flag: a number from `low` to `high`."""

    def parse(text: str) -> float:
        value = kind(text)
        if not low <= value <= high or value == math.inf:
            bound = f"at least {low}" if high == math.inf else f"between {low} and {high}"
            raise argparse.ArgumentTypeError(f"{text} must be {bound}")
        return value

    parse.__name__ = kind.__name__  # argparse names it where the text is no number at all
    return parse


def run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", default="", metavar="FILE", help="configuration (default: the one in the workdir)")
    parser.add_argument("--workdir", required=True, metavar="DIR", help="the run's folder, local or gs://")
    parser.add_argument(
        "--resume", default="", choices=["", "force"], help="force: go on although the configuration has changed"
    )


def window(text: str) -> tuple[int, int]:
    """A type of flag: FIRST:COUNT, or FIRST alone for one step."""
    first, colon, count = text.partition(":")
    count = count if colon else "1"
    if not (first.isdecimal() and count.isdecimal() and int(first) and int(count)):
        raise argparse.ArgumentTypeError(f"{text} must be FIRST:COUNT, such as 3:3")
    return int(first), int(count)


def profile_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--profile", type=window, nargs="?", const=(3, 3), metavar="FIRST:COUNT",
        help="trace so many training steps, or calls of decoding, from the FIRST on, into profile/ (default 3:3)",
    )  # fmt: skip


def whole_run_arguments(parser: argparse.ArgumentParser) -> None:
    run_arguments(parser)
    profile_argument(parser)


def dry_run_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dry-run", action="store_true", help="print each array's shape, layout and bytes per device; compute nothing"
    )


def sft_arguments(parser: argparse.ArgumentParser) -> None:
    whole_run_arguments(parser)
    dry_run_argument(parser)


def dpo_arguments(parser: argparse.ArgumentParser) -> None:
    sampling_arguments(parser)
    dry_run_argument(parser)


def stage_arguments(parser: argparse.ArgumentParser) -> None:
    run_arguments(parser)
    parser.add_argument(
        "--iteration", type=int, default=2, metavar="T", help="which model is in the making: 2 is M2, from M1 (default)"
    )


def sampling_arguments(parser: argparse.ArgumentParser) -> None:
    stage_arguments(parser)
    profile_argument(parser)


def score_arguments(parser: argparse.ArgumentParser) -> None:
    model_arguments(parser)
    parser.add_argument("--input", required=True, metavar="FILE", help="rows with `prompt` and `response`, or messages")
    parser.add_argument("--output", required=True, metavar="FILE", help="JSONL rows `logp`, `tokens`, in order")
    parser.add_argument("--raw", action="store_true", help="BOS + prompt + response + EOS, no chat template")
    parser.add_argument("--rows", type=number(int, 1), default=16, help="rows at a time (default 16)")
    parser.add_argument(
        "--reference", default="", metavar="DIR", help="adds `reference_logp` and the implicit `reward` against it"
    )
    parser.add_argument("--beta", type=number(float, 0), default=0.1, help="of the implicit reward (default 0.1)")


def model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="DIR", help="folder, org/name, .gguf, runs/x/m2, package:X")
    loading_arguments(parser)
    parser.add_argument(
        "--dtype", default="float32", choices=["float32", "bfloat16"], help="of the computation (default float32)"
    )


def loading_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--adapter", default="", metavar="DIR", help="a LoRA adapter of PEFT (or org/name), merged in")
    parser.add_argument(
        "--chat_template", default="", metavar="NAME", help="of several that the model brings, plain, or a Jinja file"
    )


def export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="DIR", help="runs/x/m3, HF folder, org/name or .gguf")
    loading_arguments(parser)
    parser.add_argument("--output", required=True, metavar="DIR", help="a new folder")
    parser.add_argument(
        "--adapter_only", action="store_true", help="of a model that LoRA made: what it learnt since M0, for PEFT"
    )
    parser.add_argument(
        "--dtype", default="float32", choices=["float32", "bfloat16"], help="of the weights (default float32)"
    )


def chat_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", default="", metavar="DIR", help="a run; its newest model is used")
    parser.add_argument("--model", default="", metavar="DIR", help="or any model")
    loading_arguments(parser)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="default float32")
    parser.add_argument("--temperature", type=number(float, 0), default=0.7, help="0 is greedy (default 0.7)")
    parser.add_argument("--top_p", type=number(float, 1e-6, 1), default=0.9, help="default 0.9")
    parser.add_argument("--max_new_tokens", type=number(int, 1), default=256, help="of an answer (default 256)")
    parser.add_argument("--seed", type=int, default=0)


def sandbox_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", default="", metavar="FILE", help="of the runs (default: configs/sandbox.py)")
    parser.add_argument("--workdir", required=True, metavar="DIR", help="for worlds, runs and results")
    parser.add_argument(
        "--seeds", type=number(int, 1), default=1, metavar="N", help="how many runs, with seeds 0 to N - 1 (default 1)"
    )
    parser.add_argument(
        "--reward", default="self", choices=["self", "frozen", "people", "truth"],
        help="self: every model judges its own answers (default); frozen: M1 judges all; people: they do, with their"
        " noise and bias; truth: the true score",
    )  # fmt: skip
    share = number(float, 0, 1)
    parser.add_argument(
        "--answer_error", type=share, default=0.45, help="share of places where people's answers slip (default 0.45)"
    )
    parser.add_argument(
        "--judge_noise", type=share, default=0.1, help="share of marks that people get wrong (default 0.1)"
    )
    parser.add_argument(
        "--judge_bias", type=number(float, -5, 5), default=0.0,
        help="points that people give for a flourish, which is worth nothing (default 0)",
    )  # fmt: skip
    parser.add_argument("--ift_rows", type=number(int, 1), default=3000, help="answers to learn from (default 3000)")
    parser.add_argument("--eft_rows", type=number(int, 1), default=3000, help="judgements to learn from (default 3000)")


def seeds_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        required=True,
        nargs="+",
        metavar="FILE",
        help="Open Assistant's messages, or rows with `prompt` and ranked `responses`: a file (JSONL, JSON, CSV,"
        " Parquet; .gz, .zst), a folder of these, hf:NAME or tfds:NAME/SPLIT",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="a new folder, or one to go on in")
    parser.add_argument("--model", default="", metavar="DIR", help="who judges for EFT: SFT on IFT alone (paper)")
    parser.add_argument("--config", default="", metavar="FILE", help="configuration (default: configs/base.py)")
    parser.add_argument("--lang", default="en", help="language of prompts and answers (default en)")
    parser.add_argument(
        "--ift", default=[], nargs="+", metavar="FILE", help="demonstrations that there are already; none are made"
    )
    parser.add_argument(
        "--exclude", default=[], nargs="+", metavar="FILE", help="rows whose `prompt` may be in none of the sets"
    )
    parser.add_argument("--ift_rows", type=number(int, 0), help="demonstrations (default 3200, as in the paper)")
    parser.add_argument("--eft_rows", type=number(int, 0), default=1630, help="judgements (default 1630, paper)")
    parser.add_argument(
        "--eft_validation_rows", type=number(int, 0), default=541, help="judgements held out (default 541, paper)"
    )
    parser.add_argument("--eft_prompts", type=number(int, 0), default=0, help="prompts to judge at most (default all)")
    parser.add_argument(
        "--min_gap",
        type=number(float, 0),
        default=0.5,
        help="points by which scores of differently ranked answers must differ (default 0.5); 0 lets ties pass",
    )
    parser.add_argument(
        "--min_words", type=number(int, 0), default=5, help="different ones in the reasons before a score (default 5)"
    )
    parser.add_argument(
        "--max_share", type=number(float, 0.01, 1), default=0.35, help="of any one score in a set (default 0.35)"
    )


def eval_judge_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", default="", metavar="RUN", help="a run: each of its models M1 to MT is measured")
    parser.add_argument(
        "--model", action="append", default=[], metavar="DIR",
        help="a model, as often as you like; with --workdir one of the run's, such as m0",
    )  # fmt: skip
    parser.add_argument(
        "--data", required=True, metavar="FILE",
        help="rows: prompt and responses with ranks; or chosen and rejected; or response_a, response_b and label",
    )  # fmt: skip
    parser.add_argument("--split", default="", help="only rows whose field split says so")
    parser.add_argument(
        "--max_prompts", type=number(int, 1), default=0, metavar="N", help="at most so many, drawn by the seed"
    )
    parser.add_argument("--output", default="", metavar="DIR", help="default: RUN/eval/judge/ and the data's name")
    parser.add_argument("--config", default="", metavar="FILE", help="configuration (default: the run's, or base.py)")
    parser.add_argument(
        "--reward", default="judgement", choices=["judgement", "implicit"],
        help="implicit: log-probability less that under --reference, no judgements (default judgement)",
    )  # fmt: skip
    parser.add_argument("--reference", default="", metavar="DIR", help="of the implicit reward; a model like --model")


def plan_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, metavar="FILE", help="configuration; its model need not be here")
    parser.add_argument(
        "--topology", required=True, metavar="NAME",
        help="v5p:4x4x4 or v5p-128, v5e:16x16 or v5litepod-256, v6e:8x8, gpu:8xh100, cpu:8",
    )  # fmt: skip
    parser.add_argument(
        "--stages", default="", help="of sft, reshard, respond, judge, reference, dpo, with commas (default: all)"
    )
    parser.add_argument(
        "--search", type=number(int, 1), nargs="?", const=3, default=0, metavar="N",
        help="look for the mesh, remat and cache that go fastest; compiles the N most promising (default 3)",
    )  # fmt: skip
    tokens = number(int, 1)
    parser.add_argument("--prompt_tokens", type=tokens, default=512, help="of the longest prompt (default 512)")
    parser.add_argument(
        "--instruction_tokens", type=tokens, default=512, help="of the judge's instructions (default 512)"
    )
    parser.add_argument("--mean_prompt", type=tokens, default=128, help="tokens of a prompt, on average (default 128)")
    parser.add_argument("--mean_answer", type=tokens, default=384, help="tokens of an answer (default 384)")
    parser.add_argument("--mean_judgement", type=tokens, default=160, help="tokens of a judgement (default 160)")
    parser.add_argument(
        "--pair_share", type=number(float, 0, 1), default=0.8, help="of prompts that end as a pair (default 0.8)"
    )
    parser.add_argument("--price", type=number(float, 0), default=0, help="USD of a chip-hour, for the cost")
    parser.add_argument("--output", default="", metavar="FILE", help="the same as JSON")


def report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", required=True, metavar="DIR", help="the run's folder, finished or in the making")
    parser.add_argument("--output", default="", metavar="FILE", help="the page (default: report.html in the workdir)")
    parser.add_argument(
        "--samples", type=number(int, 0), default=50, metavar="N", help="prompts shown with their answers (default 50)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of their choice (default 0)")


def _benchmark_arguments(parser: argparse.ArgumentParser, model: bool = True) -> None:
    parser.add_argument("--model", required=model, default="", metavar="DIR", help="folder, org/name, .gguf, runs/x/m2")
    parser.add_argument("--output", required=True, metavar="DIR", help="the evaluation's folder; goes on if begun")
    parser.add_argument("--config", default="", metavar="FILE", help="configuration (default: every default)")


def _name_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", default="", help="of the model in the files (default: from its path)")


def alpaca_arguments(parser: argparse.ArgumentParser) -> None:
    _benchmark_arguments(parser)
    _name_argument(parser)
    parser.add_argument("--prompts", required=True, metavar="FILE", help="alpaca_eval.json, or rows with `prompt`")


def mt_bench_arguments(parser: argparse.ArgumentParser) -> None:
    _benchmark_arguments(parser)
    _name_argument(parser)
    parser.add_argument("--questions", required=True, metavar="FILE", help="MT-bench's question.jsonl")
    parser.add_argument("--judge", default="", metavar="DIR", help="a model that gives marks from 1 to 10")


def ifeval_arguments(parser: argparse.ArgumentParser) -> None:
    _benchmark_arguments(parser, model=False)
    parser.add_argument("--data", required=True, metavar="FILE", help="IFEval's input_data.jsonl")
    parser.add_argument(
        "--responses", default="", metavar="FILE", help="instead of a model: rows with `prompt` and `response`"
    )


def harness_arguments(parser: argparse.ArgumentParser) -> None:
    _benchmark_arguments(parser)
    parser.add_argument("--tasks", required=True, help="names of lm-eval's tasks or groups, with commas between them")
    parser.add_argument("--include_path", default="", metavar="DIR", help="further tasks, lm-eval's YAML files")
    parser.add_argument("--num_fewshot", type=number(int, 0), default=None, help="examples (default: the task's)")
    parser.add_argument("--limit", type=number(int, 1), default=None, help="rows of each task (default: all)")
    parser.add_argument("--apply_chat_template", action="store_true", help="ask in the model's chat template")


def eval_winrate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sides", nargs="*", metavar="A B",
        help="two models, or files of answers: rows with prompt and response, or AlpacaEval's JSON",
    )  # fmt: skip
    parser.add_argument(
        "--workdir", default="", metavar="RUN", help="instead of A and B: each M_t of a run against M_{t-1} and M1"
    )
    parser.add_argument(
        "--prompts", default="", metavar="FILE",
        help="rows with prompt, and perhaps category (default: the prompts of a file of answers)",
    )  # fmt: skip
    parser.add_argument("--judge", default="", metavar="DIR", help="a model (default with --workdir: its last one)")
    parser.add_argument(
        "--score", default="pairwise", choices=["pairwise", "absolute"],
        help="pairwise: which of two answers is better, in both orders (default);"
        " absolute: each answer's mean score by itself",
    )  # fmt: skip
    parser.add_argument(
        "--samples", type=number(int, 1), default=0, metavar="N",
        help="verdicts in each order (default 1), or scores an answer (default judge.samples)",
    )  # fmt: skip
    parser.add_argument(
        "--max_prompts", type=number(int, 1), default=0, metavar="N", help="at most so many, drawn by the seed"
    )
    parser.add_argument(
        "--template", default="", metavar="FILE", help="pairwise template with {{prompt}}, {{first}} and {{second}}"
    )
    parser.add_argument(
        "--output", default="", metavar="DIR", help="default with --workdir: RUN/eval/winrate/ and the prompts' name"
    )
    parser.add_argument("--config", default="", metavar="FILE", help="configuration (default: the run's, or base.py)")


@dataclasses.dataclass(frozen=True)
class Verb:
    """What stands behind a word of the command line.

    Attributes:
      summary: one line of help.
      arguments: adds its flags to a parser.
      function: "module:function" below `selfreward_jax.verbs`; takes the flags, the overrides of the configuration and
        the interrupt.
    """

    summary: str
    arguments: Callable[[argparse.ArgumentParser], None]
    function: str


# A verb of two words belongs to a group, such as `eval judge`.
VERBS: dict[str, Verb] = {
    "run": Verb("the whole algorithm: M0 to M1 to ... to MT", whole_run_arguments, "runs:run"),
    "sft": Verb("M0 to M1: supervised fine-tuning on the seeds", sft_arguments, "runs:sft"),
    "prompts": Verb("new prompts for an iteration", stage_arguments, "runs:prompts"),
    "respond": Verb("candidate answers to an iteration's prompts", sampling_arguments, "runs:respond"),
    "judge": Verb("judgements of an iteration's answers", sampling_arguments, "runs:judge"),
    "pairs": Verb("preference pairs from judged answers", stage_arguments, "runs:pairs"),
    "dpo": Verb("preference training on an iteration's pairs", dpo_arguments, "runs:dpo"),
    "seeds": Verb("the paper's seed sets from answers that people ranked", seeds_arguments, "seeds:seeds"),
    "plan": Verb(
        "a run compiled for a machine that need not be here: memory, speed, hours", plan_arguments, "plan:plan"
    ),
    "report": Verb("a run as one page to look at: report.html", report_arguments, "report:report"),
    "score": Verb("log-probabilities of given responses", score_arguments, "models:score"),
    "export": Verb("a model as a Hugging Face folder", export_arguments, "models:export"),
    "sandbox": Verb("the loop in a made world where every true score is known", sandbox_arguments, "sandbox:sandbox"),
    "eval alpaca": Verb("answers as AlpacaEval's model_outputs.json", alpaca_arguments, "benchmarks:alpaca"),
    "eval mt_bench": Verb("MT-bench's answers, and marks of a judge", mt_bench_arguments, "benchmarks:mt_bench"),
    "eval ifeval": Verb("IFEval's responses and its four accuracies", ifeval_arguments, "benchmarks:ifeval"),
    "eval harness": Verb("tasks of lm-evaluation-harness", harness_arguments, "benchmarks:harness"),
    "chat": Verb("talk to a model in the terminal", chat_arguments, "models:chat"),
    "eval judge": Verb("a judge's scores against the ranks that people gave", eval_judge_arguments, "evals:judge"),
    "eval winrate": Verb("head-to-head: whose answers a judge prefers", eval_winrate_arguments, "winrate:winrate"),
}

# Group: one line of help.
GROUPS: dict[str, str] = {"eval": "how well models answer and judge"}
