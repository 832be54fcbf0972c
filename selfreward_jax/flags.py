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


def dry_run_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dry-run", action="store_true", help="print each array's shape, layout and bytes per device; compute nothing"
    )


def sft_arguments(parser: argparse.ArgumentParser) -> None:
    run_arguments(parser)
    dry_run_argument(parser)


def dpo_arguments(parser: argparse.ArgumentParser) -> None:
    stage_arguments(parser)
    dry_run_argument(parser)


def stage_arguments(parser: argparse.ArgumentParser) -> None:
    run_arguments(parser)
    parser.add_argument(
        "--iteration", type=int, default=2, metavar="T", help="which model is in the making: 2 is M2, from M1 (default)"
    )


def score_arguments(parser: argparse.ArgumentParser) -> None:
    model_arguments(parser)
    parser.add_argument("--input", required=True, metavar="FILE", help="JSONL rows with `prompt` and `response`")
    parser.add_argument("--output", required=True, metavar="FILE", help="JSONL rows `logp`, `tokens`, in order")
    parser.add_argument("--raw", action="store_true", help="BOS + prompt + response + EOS, no chat template")
    parser.add_argument("--rows", type=number(int, 1), default=16, help="rows at a time (default 16)")
    parser.add_argument(
        "--reference", default="", metavar="DIR", help="adds `reference_logp` and the implicit `reward` against it"
    )
    parser.add_argument("--beta", type=number(float, 0), default=0.1, help="of the implicit reward (default 0.1)")


def model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="DIR", help="HF folder, .gguf, runs/x/m2, package:NAME")
    adapter_argument(parser)
    parser.add_argument(
        "--dtype", default="float32", choices=["float32", "bfloat16"], help="of the computation (default float32)"
    )


def adapter_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--adapter", default="", metavar="DIR", help="a LoRA adapter of PEFT, merged into the model")


def export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="DIR", help="a run's model (runs/x/m3), HF folder or .gguf")
    adapter_argument(parser)
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
    adapter_argument(parser)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="default float32")
    parser.add_argument("--temperature", type=number(float, 0), default=0.7, help="0 is greedy (default 0.7)")
    parser.add_argument("--top_p", type=number(float, 1e-6, 1), default=0.9, help="default 0.9")
    parser.add_argument("--max_new_tokens", type=number(int, 1), default=256, help="of an answer (default 256)")
    parser.add_argument("--seed", type=int, default=0)


def eval_winrate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sides", nargs="*", metavar="A B",
        help="two models, or files of answers: JSONL with prompt and response, or AlpacaEval's JSON",
    )  # fmt: skip
    parser.add_argument(
        "--workdir", default="", metavar="RUN", help="instead of A and B: each M_t of a run against M_{t-1} and M1"
    )
    parser.add_argument(
        "--prompts", default="", metavar="FILE",
        help="JSONL with prompt, and perhaps category (default: the prompts of a file of answers)",
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
    "run": Verb("the whole algorithm: M0 to M1 to ... to MT", run_arguments, "runs:run"),
    "sft": Verb("M0 to M1: supervised fine-tuning on the seeds", sft_arguments, "runs:sft"),
    "prompts": Verb("new prompts for an iteration", stage_arguments, "runs:prompts"),
    "respond": Verb("candidate answers to an iteration's prompts", stage_arguments, "runs:respond"),
    "judge": Verb("judgements of an iteration's answers", stage_arguments, "runs:judge"),
    "pairs": Verb("preference pairs from judged answers", stage_arguments, "runs:pairs"),
    "dpo": Verb("preference training on an iteration's pairs", dpo_arguments, "runs:dpo"),
    "score": Verb("log-probabilities of given responses", score_arguments, "models:score"),
    "export": Verb("a model as a Hugging Face folder", export_arguments, "models:export"),
    "chat": Verb("talk to a model in the terminal", chat_arguments, "models:chat"),
    "eval winrate": Verb("head-to-head: whose answers a judge prefers", eval_winrate_arguments, "winrate:winrate"),
}

# Group: one line of help.
GROUPS: dict[str, str] = {"eval": "how well models answer and judge"}
