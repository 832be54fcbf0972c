"""The command line: verbs and flags, and the one place where errors become one line and exit status 2."""

import argparse
import math
import os
import sys
import traceback
from collections.abc import Callable, Sequence

from selfreward_jax.core.errors import UserError, did_you_mean

EXAMPLES = """examples:
  selfreward run --config=configs/quickstart.py --workdir=runs/quickstart
  selfreward run --config=configs/llama3_8b.py --workdir=runs/8b --config.model.path=DIR --config.dpo.beta=0.2
  selfreward respond --config=configs/quickstart.py --workdir=runs/quickstart --iteration=2
  selfreward score --model=runs/quickstart/m3 --input=rows.jsonl --output=scored.jsonl
  selfreward export --model=runs/quickstart/m3 --output=my-model
  selfreward chat --workdir=runs/quickstart

Any field of the configuration can be changed on the command line: --config.FIELD=VALUE. Run again, a command goes on
where it stopped.
"""


def _number(kind: Callable[[str], float], low: float, high: float = math.inf) -> Callable[[str], float]:
    """A type of flag: a number from `low` to `high`."""

    def parse(text: str) -> float:
        value = kind(text)
        if not low <= value <= high or value == math.inf:
            bound = f"at least {low}" if high == math.inf else f"between {low} and {high}"
            raise argparse.ArgumentTypeError(f"{text} must be {bound}")
        return value

    parse.__name__ = kind.__name__  # argparse names it where the text is no number at all
    return parse


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(f"{message}; see {self.prog} --help")


def _run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", default="", metavar="FILE", help="configuration (default: the one in the workdir)")
    parser.add_argument("--workdir", required=True, metavar="DIR", help="the run's folder, local or gs://")
    parser.add_argument(
        "--resume", default="", choices=["", "force"], help="force: go on although the configuration has changed"
    )


def _dry_run_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dry-run", action="store_true", help="print each array's shape, layout and bytes per device; compute nothing"
    )


def _sft_arguments(parser: argparse.ArgumentParser) -> None:
    _run_arguments(parser)
    _dry_run_argument(parser)


def _dpo_arguments(parser: argparse.ArgumentParser) -> None:
    _stage_arguments(parser)
    _dry_run_argument(parser)


def _stage_arguments(parser: argparse.ArgumentParser) -> None:
    _run_arguments(parser)
    parser.add_argument(
        "--iteration", type=int, default=2, metavar="T", help="which model is in the making: 2 is M2, from M1 (default)"
    )


def _score_arguments(parser: argparse.ArgumentParser) -> None:
    _model_arguments(parser)
    parser.add_argument("--input", required=True, metavar="FILE", help="JSONL rows with `prompt` and `response`")
    parser.add_argument("--output", required=True, metavar="FILE", help="JSONL rows `logp`, `tokens`, in order")
    parser.add_argument("--raw", action="store_true", help="BOS + prompt + response + EOS, no chat template")
    parser.add_argument("--rows", type=_number(int, 1), default=16, help="rows at a time (default 16)")
    parser.add_argument(
        "--reference", default="", metavar="DIR", help="adds `reference_logp` and the implicit `reward` against it"
    )
    parser.add_argument("--beta", type=_number(float, 0), default=0.1, help="of the implicit reward (default 0.1)")


def _model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="DIR", help="HF folder, .gguf, runs/x/m2, package:NAME")
    _adapter_argument(parser)
    parser.add_argument(
        "--dtype", default="float32", choices=["float32", "bfloat16"], help="of the computation (default float32)"
    )


def _adapter_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--adapter", default="", metavar="DIR", help="a LoRA adapter of PEFT, merged into the model")


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="DIR", help="a run's model (runs/x/m3), HF folder or .gguf")
    _adapter_argument(parser)
    parser.add_argument("--output", required=True, metavar="DIR", help="a new folder")
    parser.add_argument(
        "--adapter_only", action="store_true", help="of a model that LoRA made: what it learnt since M0, for PEFT"
    )
    parser.add_argument(
        "--dtype", default="float32", choices=["float32", "bfloat16"], help="of the weights (default float32)"
    )


def _chat_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", default="", metavar="DIR", help="a run; its newest model is used")
    parser.add_argument("--model", default="", metavar="DIR", help="or any model")
    _adapter_argument(parser)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="default float32")
    parser.add_argument("--temperature", type=_number(float, 0), default=0.7, help="0 is greedy (default 0.7)")
    parser.add_argument("--top_p", type=_number(float, 1e-6, 1), default=0.9, help="default 0.9")
    parser.add_argument("--max_new_tokens", type=_number(int, 1), default=256, help="of an answer (default 256)")
    parser.add_argument("--seed", type=int, default=0)


# Verb: (one line of help, its arguments, the function in `verbs` that runs it).
VERBS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "run": ("the whole algorithm: M0 to M1 to ... to MT", _run_arguments),
    "sft": ("M0 to M1: supervised fine-tuning on the seeds", _sft_arguments),
    "prompts": ("new prompts for an iteration", _stage_arguments),
    "respond": ("candidate answers to an iteration's prompts", _stage_arguments),
    "judge": ("judgements of an iteration's answers", _stage_arguments),
    "pairs": ("preference pairs from judged answers", _stage_arguments),
    "dpo": ("preference training on an iteration's pairs", _dpo_arguments),
    "score": ("log-probabilities of given responses", _score_arguments),
    "export": ("a model as a Hugging Face folder", _export_arguments),
    "chat": ("talk to a model in the terminal", _chat_arguments),
}


def parser() -> argparse.ArgumentParser:
    top = _Parser(
        prog="selfreward",
        description="Self-Rewarding Language Models (arXiv 2401.10020): a model answers, judges, and learns from it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, (summary, add_arguments) in VERBS.items():
        sub = verbs.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        add_arguments(sub)
        if "--config=" in sub.format_usage().replace("--config FILE", "--config="):
            sub.epilog = (
                "Change any field of the configuration with --config.FIELD=VALUE; configs/base.py has them all."
            )
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb. Returns the exit status: 0, 2 for unusable input, 130 after a stop that was asked for."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    from selfreward_jax.core import watchdog
    from selfreward_jax.core.interrupt import Interrupted, on_signals

    try:
        if arguments and not arguments[0].startswith("-") and arguments[0] not in VERBS:
            raise UserError(f"{arguments[0]}: no such verb.{did_you_mean(arguments[0], VERBS)} See selfreward --help")
        options, rest = parser().parse_known_args(arguments)
        overrides = [a for a in rest if a.startswith("--config.")]
        for other in rest:
            if other not in overrides:
                raise UserError(f"{other}: not understood; see selfreward {options.verb} --help")
        if overrides and not hasattr(options, "config"):
            raise UserError(f"{overrides[0]}: selfreward {options.verb} takes no configuration.")
        # Else transformers says that there is no PyTorch, which nothing here needs.
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        from selfreward_jax import verbs
        from selfreward_jax.core import hosts
        from selfreward_jax.engine.compiling import keep_compiled_programs

        hosts.join()
        keep_compiled_programs()
        with on_signals() as interrupt:
            getattr(verbs, options.verb)(options, overrides, interrupt)
        return watchdog.leave(0)
    except UserError as error:
        print(f"selfreward: {error}", file=sys.stderr)
        return watchdog.leave(2, str(error))
    except OSError as error:  # a disk that is full, a file that may not be read
        where = f"{error.filename}: " if error.filename else ""
        line = f"{where}{error.strerror or error}; mend that, and run the same command again."
        print(f"selfreward: {line}", file=sys.stderr)
        return watchdog.leave(2, line)
    except (Interrupted, KeyboardInterrupt):
        print("selfreward: stopped; the same command goes on from here.", file=sys.stderr)
        return watchdog.leave(130, "it was asked to stop")
    except Exception as error:
        watchdog.explain(error)
        traceback.print_exc()
        return watchdog.leave(1, f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    sys.exit(main())
