"""Configuration files and their checks. Fields are read at the edge and passed on as plain values."""

import functools
import json
import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from selfreward_jax.configs import base
from selfreward_jax.core.errors import UserError, did_you_mean, foreign_code, shown
from selfreward_jax.core.losses import LossSettings, check_losses, loss_settings
from selfreward_jax.core.mesh import make_rules
from selfreward_jax.core.paths import check_file, local_path

CHOICES: Mapping[str, tuple[str, ...]] = {
    "tracker": ("", "wandb"),
    "model.dtype": ("float32", "bfloat16"),
    "model.param_dtype": ("float32", "bfloat16"),
    "training.remat": ("none", "block", "dots", "offload"),
    "training.attention": ("auto", "blocks", "cudnn", "splash"),
    **{f"{s}.schedule": ("cosine", "linear", "constant") for s in ("sft", "dpo")},
    "training.optimizer": ("adamw", "adafactor"),
    "training.moments_dtype": ("float32", "bfloat16", "int8"),
    "prompts.generator": ("base", "current"),
    "judge.by": ("current", "m0", "m1"),
    "judge.method": ("sampled", "completion", "expected", "function"),
    "generation.cache_dtype": ("", "float32", "bfloat16"),
    "generation.attention": ("auto", "xla", "pallas"),
    "respond.truncated": ("drop", "keep"),
    "pairs.rule": ("best_worst",),  # the names of methods.pairing.PAIR_RULES
    "dpo.init_from": ("current", "m0", "m1"),
    "dpo.reference": ("current", "m0", "m1"),
    "checkpoint.choose": ("last", "loss", "accuracy", "win_rate"),
}
# Smallest and largest value that makes sense; None: no bound.
BOUNDS: Mapping[str, tuple[float | None, float | None]] = {
    "seed": (0, 2**32 - 1),  # what a random key holds
    **{f"mesh.{axis}": (-1, None) for axis in ("data", "fsdp", "tensor")},
    **{f"{s}.learning_rate": (0, None) for s in ("sft", "dpo")},
    **{f"{s}.final_learning_rate": (0, None) for s in ("sft", "dpo")},
    **{f"{s}.warmup_steps": (0, None) for s in ("sft", "dpo")},
    **{f"{s}.weight_decay": (0, None) for s in ("sft", "dpo")},
    **{f"{s}.adam_b1": (0, 0.999999) for s in ("sft", "dpo")},
    **{f"{s}.adam_b2": (0, 0.999999) for s in ("sft", "dpo")},
    **{f"{s}.adam_eps": (0, None) for s in ("sft", "dpo")},
    **{f"{s}.clip_norm": (0, None) for s in ("sft", "dpo")},
    **{f"{s}.batch_size": (1, None) for s in ("sft", "dpo")},
    **{f"{s}.micro_batch_size": (0, None) for s in ("sft", "dpo")},
    **{f"{s}.epochs": (1, None) for s in ("sft", "dpo")},
    **{f"{s}.dropout": (0, 0.99) for s in ("sft", "dpo")},
    **{f"{s}.max_length": (2, None) for s in ("sft", "dpo")},
    **{f"{s}.temperature": (0, None) for s in ("prompts", "respond", "judge")},
    **{f"{s}.top_p": (1e-6, 1) for s in ("prompts", "respond", "judge")},
    **{f"{s}.max_new_tokens": (1, None) for s in ("prompts", "respond", "judge")},
    "seeds.max_rows": (0, None),
    "loop.iterations": (1, None),
    "prompts.count": (1, None),
    "prompts.growth": (1, None),
    "prompts.rouge_threshold": (0, 1),
    "prompts.min_words": (1, None),
    "prompts.max_words": (1, None),
    "prompts.max_rounds": (1, None),
    "prompts.demos_seed": (1, None),
    "prompts.demos_generated": (0, None),
    "respond.n": (2, None),
    "judge.samples": (1, None),
    "judge.min_parsed": (1, None),
    "pairs.min_margin": (0, 5),
    "dpo.beta": (1e-9, None),
    "dpo.label_smoothing": (0, 0.5),
    "dpo.ld_alpha": (0, 1),
    "dpo.margin_scale": (0, None),
    "dpo.simpo_gamma": (0, None),
    "dpo.discopop_tau": (1e-6, 1),
    "dpo.desirable_weight": (0, None),
    "dpo.undesirable_weight": (0, None),
    "lora.rank": (0, None),
    "lora.alpha": (1e-6, None),
    "lora.dropout": (0, 0.99),
    "training.length_bucket": (1, None),
    "training.pack": (0, None),
    "training.head_chunk": (1, None),
    "training.ema_decay": (0, 0.999999),  # nearer to 1, float32 can't tell a step's share
    "training.max_skipped": (1, None),
    **{f"{s}.top_k": (0, None) for s in ("prompts", "respond", "judge")},
    **{f"{s}.min_p": (0, 1) for s in ("prompts", "respond", "judge")},
    "respond.min_new_tokens": (0, None),
    "generation.slots": (1, None),
    "generation.cache_gib": (0, None),
    "generation.tensor": (0, None),
    "generation.prefill_tokens": (0, None),
    "generation.length_bucket": (0, None),
    "generation.score_rows": (1, None),
    "checkpoint.every_steps": (1, None),
    "checkpoint.keep": (1, None),
    "log.peak_tflops": (0, None),
    "checkpoint.keep_best": (1, None),
    "checkpoint.held_out": (0, None),
    "checkpoint.prompts_max": (1, None),
}


def leaves(config: Mapping[str, Any] | ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of all fields."""
    for name, value in config.items():
        if isinstance(value, Mapping | ConfigDict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def split_names(value: str | Sequence[str]) -> tuple[str, ...]:
    """Names given as a tuple, or on the command line also as `a,b`, which arrives as one text in a tuple."""
    parts = [value] if isinstance(value, str) else value
    return tuple(name.strip() for part in parts for name in str(part).split(","))


def to_dict(config: ConfigDict) -> dict[str, Any]:
    """The configuration as JSON-compatible values."""
    return json.loads(json.dumps(config.to_dict()))


def check(config: ConfigDict) -> None:
    """Raises `UserError` for an unknown field or a value that can't work, naming the field."""
    known = dict(leaves(base.get_config()))
    given = dict(leaves(config))
    for name in given:
        if name not in known:
            raise UserError(f"config.{name}: no such field.{did_you_mean(name, known)}")
    check_types(config)
    for name in known:
        if name not in given:
            raise UserError(f"config.{name}: the field is missing; start from configs/base.py, which has them all.")
    for name, choices in CHOICES.items():
        if given[name] not in choices:
            raise UserError(f"config.{name}: {given[name]!r} is not one of {', '.join(choices)}.")
    for name, bounds in BOUNDS.items():
        _check_bounds(f"config.{name}", given[name], *bounds)
    for stage in ("sft", "dpo"):
        micro, batch = given[f"{stage}.micro_batch_size"], given[f"{stage}.batch_size"]
        if micro and batch % micro:
            raise UserError(f"config.{stage}.micro_batch_size: {micro} must divide batch_size {batch}.")
    make_rules({n.removeprefix("mesh.rules."): v for n, v in given.items() if n.startswith("mesh.rules.")})
    for stage in ("sft", "dpo"):
        if 0 < given["training.pack"] < given[f"{stage}.max_length"]:
            raise UserError(
                f"config.training.pack: rows of {given['training.pack']} can't hold {stage}.max_length"
                f" {given[f'{stage}.max_length']} tokens; raise one or lower the other."
            )
    losses = loss_settings({n.removeprefix("dpo."): value for n, value in given.items() if n.startswith("dpo.")})
    check_losses(losses, "config.dpo.")
    micro, batch = given["dpo.micro_batch_size"], given["dpo.batch_size"]
    if losses.whole_batch and micro not in (0, batch):
        raise UserError(
            f"config.dpo.micro_batch_size: {losses.whole_batch[0]} compares all rows of a batch, so it can't be split;"
            f" set it to 0, or batch_size to {micro}."
        )
    if given["training.optimizer"] == "adafactor" and given["training.moments_dtype"] != "float32":
        raise UserError("config.training.moments_dtype: adafactor keeps no Adam moments; leave it at float32.")
    held_out = given["checkpoint.held_out"]
    if held_out > 1 and held_out != int(held_out):
        raise UserError(f"config.checkpoint.held_out: {held_out} must be a share below 1 or a whole number of rows.")
    choose, other = given["checkpoint.choose"], given["checkpoint.prompts"]
    if choose != "last" and not held_out and not (choose == "win_rate" and other):
        mend = "checkpoint.held_out" + (" or checkpoint.prompts" if choose == "win_rate" else "")
        raise UserError(f"config.checkpoint.choose: {choose} is measured on held-out rows; set {mend}.")
    if choose == "win_rate" and given["judge.method"] == "function":
        raise UserError("config.checkpoint.choose: win_rate asks a model, and judge.method=function has none.")
    for name in ("prompts.keywords", "respond.stop"):
        if not all(isinstance(word, str) and word for word in given[name]):
            raise UserError(f"config.{name}: {given[name]!r} must hold text only, and none that is empty.")
    targets, every = split_names(given["lora.targets"]), known["lora.targets"]
    if not targets or any(name not in every for name in targets) or len(set(targets)) < len(targets):
        raise UserError(f"config.lora.targets: {targets!r} must hold some of {', '.join(every)}, each once.")
    if given["respond.min_new_tokens"] > given["respond.max_new_tokens"]:
        raise UserError("config.respond.min_new_tokens: more than respond.max_new_tokens.")
    if given["prompts.min_words"] > given["prompts.max_words"]:
        raise UserError("config.prompts.min_words: more than prompts.max_words; no prompt could ever be kept.")
    if given["judge.min_parsed"] > given["judge.samples"]:
        raise UserError("config.judge.min_parsed: more than judge.samples; no response could ever be ranked.")
    if (given["judge.method"] == "function") != bool(given["judge.function"]):
        raise UserError("config.judge.function: goes with judge.method=function, and that with it.")
    if not given["prompts.source"]:
        raise UserError("config.prompts.source: empty; give self_instruct or a file of rows.")
    if (data := given["dpo.data"]) not in ("pairs", "positives") and not re.search(r"[./:]", data):
        raise UserError(f"config.dpo.data: {data!r} is not one of pairs, positives, or a file of preferences.")


def check_types(config: Mapping[str, Any] | ConfigDict, where: str = "") -> None:
    """Raises `UserError` for a known field's value that is of another type than its default; `where` stands before."""
    known = dict(leaves(base.get_config()))
    given = dict(leaves(config))
    for name, value in given.items():
        if name not in known:
            continue
        kind = type(known[name])
        fits = isinstance(value, {float: (int, float), tuple: (list, tuple)}.get(kind, kind))
        if not fits or (isinstance(value, bool) and kind is not bool):
            raise UserError(f"{where}config.{name}: {shown(value)} is not of type {kind.__name__}.")
    sections = {name.partition(".")[0] for name in known if "." in name}
    if wrong := sorted(sections & given.keys()):
        raise UserError(f"{where}config.{wrong[0]}: {shown(given[wrong[0]])} is no section of fields.")


def _check_bounds(name: str, value: float, low: float | None, high: float | None) -> None:
    if isinstance(value, int) and not -(2**63) <= value < 2**63 or not math.isfinite(value):
        raise UserError(f"{name}: {shown(value)} is no finite number of 64 bits.")
    if (low is not None and value < low) or (high is not None and value > high):
        bound = f"at least {low}" if high is None else f"between {low} and {high}"
        raise UserError(f"{name}: {value} must be {bound}.")


def check_loss_bounds(settings: LossSettings, where: str) -> None:
    """What `check` makes sure of, for settings that come from no configuration; `where` precedes a field's name."""
    for name, value in vars(settings).items():
        if bounds := BOUNDS.get(f"dpo.{name}"):
            _check_bounds(f"{where}{name}", value, *bounds)


def load_config(path: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Runs a configuration file and applies `--config.field=value` overrides.

    Args:
      path: a Python file with `get_config()`; after a colon what is handed to it, `configs/llama3_8b.py:v5e-256`.
      overrides: arguments of the form `--config.a.b=value`.

    Raises:
      UserError: no such file, an unknown field (with near names), or a value of the wrong kind.
    """
    file = local_path(re.sub(r"\.py:[^/]*$", ".py", path))
    if not file.exists() or file.is_dir():
        raise UserError(f"--config={path}: no such file; see the folder configs/, for example configs/base.py.")
    check_file(file)
    config = _with_overrides(config_flags.DEFINE_config_file, overrides, f"--config={path}", str(local_path(path)))
    if not isinstance(config, ConfigDict):
        raise UserError(f"--config={path}: get_config() returned {type(config).__name__}, not a ConfigDict.")
    check(config)
    return config


def override(config: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
    """The same as `load_config`, for a configuration that is there already; that one is changed."""
    if overrides:
        config = _with_overrides(config_flags.DEFINE_config_dict, overrides, "--config", "", config)
        check(config)
    return config


def _with_overrides(define: Callable[..., Any], overrides: Sequence[str], where: str, path: str, *given: Any) -> Any:
    """What the flag that `define` makes comes to, of `path` or what is `given`."""
    for override in overrides:
        if not re.fullmatch(r"--config\.[\w.]+=.*", override, flags=re.DOTALL):
            raise UserError(f"{override}: not understood; change a field with --config.FIELD=VALUE.")
    arguments = ["selfreward", *([f"--config={path}"] if path else []), *overrides]
    values = flags.FlagValues()
    told = (flags.Error, AttributeError, KeyError, TypeError, ValueError)  # by ml_collections, of an override, perhaps
    quiet = logging.getLogger("absl")
    level = quiet.level
    try:
        quiet.setLevel(logging.ERROR)  # that a file gives no configuration is said here
        with foreign_code(where, but=told):
            define("config", *given, flag_values=values, sys_argv=arguments)
            values(arguments)
            return values["config"].value
    except told as error:
        _explain_overrides(overrides)
        # Of a whole traceback, which ml_collections makes its message, the last line says what is wrong.
        raise UserError(f"{where}: {(str(error).strip() or type(error).__name__).splitlines()[-1]}") from None
    finally:
        quiet.setLevel(level)


def _explain_overrides(overrides: Sequence[str]) -> None:
    known = dict(leaves(base.get_config()))
    for override in overrides:
        name, value = override.removeprefix("--config.").split("=", 1)
        if name not in known:
            raise UserError(f"--config.{name}: no such field.{did_you_mean(name, known)}")
        kind = type(known[name])
        if kind in (int, float, bool):
            try:
                kind(value) if kind is not bool else ("true", "t", "1", "false", "f", "0").index(value.lower())
            except ValueError:
                raise UserError(f"--config.{name}={value}: not of type {kind.__name__}.") from None


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """`field: old -> new` for every field that differs between two configurations; `old` is `filled_up` first."""
    before, after = dict(leaves(filled_up(old, new))), dict(leaves(new))
    names = sorted(before.keys() | after.keys())
    return [f"{n}: {before.get(n)!r} -> {after.get(n)!r}" for n in names if before.get(n) != after.get(n)]


def filled_up(old: Any, new: Any) -> Any:
    """Settings that an older version recorded, with those that it didn't know, at their defaults of today.

    Args:
      old, new: JSON values with sections of the configuration anywhere in them, whole or in part, under any name.
    """
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return old
    defaults = _section_like(frozenset(new))
    added = {name: defaults[name] for name in new if name not in old and name in defaults}
    return {name: filled_up(value, new.get(name)) for name, value in old.items()} | added


@functools.lru_cache(maxsize=256)
def _section_like(names: frozenset[str]) -> Mapping[str, Any]:
    """The defaults of the section, or of the whole configuration, that shares the most of its names with these."""
    whole = to_dict(base.get_config())
    sections: list[Any] = [whole]
    for section in sections:  # those found on the way too
        sections += [value for value in section.values() if isinstance(value, dict)]
    return max(sections, key=lambda section: len(names & section.keys()) / len(names | section.keys()))
