"""The command line: verbs and flags, and the one place where errors become one line and exit status 2."""

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Sequence

from selfreward_jax.core.errors import UserError, did_you_mean, one_line
from selfreward_jax.core.terminal import tell
from selfreward_jax.flags import GROUPS, VERBS

EXAMPLES = """examples:
  selfreward run --config=configs/quickstart.py --workdir=runs/quickstart
  selfreward run --config=configs/llama3_8b.py --workdir=runs/8b --config.model.path=DIR --config.dpo.beta=0.2
  selfreward respond --config=configs/quickstart.py --workdir=runs/quickstart --iteration=2
  selfreward eval judge --workdir=runs/quickstart --data=ranked.jsonl
  selfreward score --model=runs/quickstart/m3 --input=rows.jsonl --output=scored.jsonl
  selfreward export --model=runs/quickstart/m3 --output=my-model
  selfreward chat --workdir=runs/quickstart

Any field of the configuration can be changed on the command line: --config.FIELD=VALUE. Run again, a command goes on
where it stopped.
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(f"{message}; see {self.prog} --help")


def parser() -> argparse.ArgumentParser:
    top = _Parser(
        prog="selfreward",
        description="Self-Rewarding Language Models (arXiv 2401.10020): a model answers, judges, and learns from it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = top.add_subparsers(metavar="VERB", required=True)
    groups = {}
    for group, summary in GROUPS.items():
        made = verbs.add_parser(group, help=summary, description=_sentence(summary))
        groups[group] = made.add_subparsers(metavar="WHAT", required=True)
    for name, verb in VERBS.items():
        group, _, word = name.rpartition(" ")
        place = groups[group] if group else verbs
        sub = place.add_parser(word, help=verb.summary, description=_sentence(verb.summary))
        sub.set_defaults(verb=name)
        verb.arguments(sub)
        if "--config=" in sub.format_usage().replace("--config FILE", "--config="):
            sub.epilog = (
                "Change any field of the configuration with --config.FIELD=VALUE; configs/base.py has them all."
            )
    return top


def _sentence(summary: str) -> str:
    return summary[0].upper() + summary[1:] + "."


def _check_word(arguments: list[str]) -> None:
    """A word that is no verb, with the one that was meant; argparse would list them all."""
    for depth, known in ((1, {name.split()[0] for name in VERBS}), (2, set(VERBS))):
        words = arguments[:depth]
        if len(words) < depth or words[-1].startswith("-") or (depth == 2 and words[0] not in GROUPS):
            return
        if (word := " ".join(words)) not in known:
            raise UserError(f"{word}: no such verb.{did_you_mean(word, known)} See selfreward --help")


def _function(name: str):
    """What runs a verb."""
    module, function = VERBS[name].function.split(":")
    return getattr(importlib.import_module(f"selfreward_jax.verbs.{module}"), function)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb. Returns the exit status: 0, 2 for unusable input, 130 after a stop that was asked for."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    from selfreward_jax.core import watchdog
    from selfreward_jax.core.interrupt import Interrupt, Interrupted, on_signals

    interrupt = Interrupt()
    try:
        _check_word(arguments)
        if nothing := next((a for a in arguments if a.startswith("--") and a.endswith("=--")), ""):
            raise UserError(f"{nothing}: names no value.")  # argparse would make an empty list of it
        options, rest = parser().parse_known_args(arguments)
        overrides = [a for a in rest if a.startswith("--config.")]
        for other in rest:
            if other not in overrides:
                raise UserError(f"{other}: not understood; see selfreward {options.verb} --help")
        if overrides and not hasattr(options, "config"):
            raise UserError(f"{overrides[0]}: selfreward {options.verb} takes no configuration.")
        # Else transformers says that there is no PyTorch, which nothing here needs.
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        from selfreward_jax.core import hosts
        from selfreward_jax.engine.compiling import keep_compiled_programs

        function = _function(options.verb)
        hosts.join()
        keep_compiled_programs()
        with on_signals(interrupt, alone=hosts.alone()):
            function(options, overrides, interrupt)
        return watchdog.leave(0)
    except UserError as error:
        print(f"selfreward: {error}", file=sys.stderr)
        return watchdog.leave(2, str(error))
    except OSError as error:  # a disk that is full, a file that may not be read
        where = f"{error.filename}: " if error.filename else ""
        line = one_line(f"{where}{error.strerror or error}; mend that, and run the same command again.")
        print(f"selfreward: {line}", file=sys.stderr)
        return watchdog.leave(2, line)
    except (Interrupted, KeyboardInterrupt) as stop:
        after = str(stop) or "the same command goes on from here"
        tell(f"selfreward: stopped{interrupt.told()}; {after}.", sys.stderr)
        return watchdog.leave(130, "it was asked to stop")
    except Exception as error:
        from selfreward_jax.core.store import remote_error

        if line := remote_error(error):
            line = one_line(line)
            print(f"selfreward: {line}", file=sys.stderr)
            return watchdog.leave(2, line)
        watchdog.explain(error)
        tell(traceback.format_exc().rstrip(), sys.stderr)
        return watchdog.leave(1, f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    sys.exit(main())
