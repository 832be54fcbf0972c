"""The model behind lm-evaluation-harness: its tasks ask, this model answers.

    python -m selfreward_jax.evals.harness run --model selfreward --model_args path=runs/q/m3 --tasks arc_easy

is lm-eval's own command line with this model known to it; `selfreward eval harness` is the same in a folder that an
evaluation goes on in. Needs `pip install lm-eval`; nothing here needs PyTorch.
"""

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lm_eval.api.model import TemplateLM  # pyright: ignore[reportMissingImports]
from lm_eval.api.registry import register_model  # pyright: ignore[reportMissingImports]
from lm_eval.models.utils import normalize_gen_kwargs  # pyright: ignore[reportMissingImports]
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window  # pyright: ignore[reportMissingImports]

from selfreward_jax import __version__
from selfreward_jax.configs import base
from selfreward_jax.core.config import load_config
from selfreward_jax.core.errors import UserError
from selfreward_jax.core.interrupt import Interrupt
from selfreward_jax.core.mesh import make_mesh, make_rules
from selfreward_jax.core.progress import meter, say
from selfreward_jax.core.terminal import tell
from selfreward_jax.engine.compiling import keep_compiled_programs
from selfreward_jax.engine.continuations import score_continuations
from selfreward_jax.engine.generate import Engine, EngineSettings, Request
from selfreward_jax.engine.sampling import SamplingSettings
from selfreward_jax.llama.load import Model, load_model
from selfreward_jax.stages.work import engine_settings
from selfreward_jax.training.batches import Example

NAME = "selfreward"
MAX_GEN_TOKS = 256  # where a task names no limit, as with lm-eval's own models
SAMPLING = ("until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k", "min_p")  # of a task's gen_kwargs
# What a task may also say where it changes nothing: the values with which transformers generates plainly.
NEUTRAL: Mapping[str, tuple[float, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "repetition_penalty": (1,),
    "encoder_repetition_penalty": (1,),
    "length_penalty": (1,),
    "diversity_penalty": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "no_repeat_ngram_size": (0,),
    "min_new_tokens": (0,),
    "min_tokens": (0,),
    "min_length": (0,),
    "typical_p": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "early_stopping": (False,),
    "renormalize_logits": (False,),
    "use_cache": (True, False),  # of memory and time alone
}

Pair = tuple[tuple[str, str] | None, list[int], list[int]]  # the texts, and the tokens of context and continuation


@register_model(NAME)
class SelfRewardLM(TemplateLM):
    """A model for `lm_eval.simple_evaluate`; by name with `path=MODEL` and fields of the configuration."""

    def __init__(
        self,
        model: Model,
        settings: EngineSettings | None = None,
        *,
        rows: int = 16,
        seed: int = 0,
        interrupt: Interrupt | None = None,
    ):
        """Args:
        settings: of the engine that generates.
        rows: texts whose log-probabilities are computed at a time.
        seed: of samples, where a task wants any.
        """
        super().__init__()
        self.model, self.settings, self.rows, self.seed = model, settings, rows, seed
        self.interrupt = interrupt or Interrupt()
        self.tokenizer = model.chat.tokenizer  # TemplateLM reads its chat template

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict | None = None) -> "SelfRewardLM":
        """From `--model_args`: `path`, perhaps `config` (a file), and fields such as `generation.slots=32`.

        lm-eval's batch size and device are not used: `generation.score_rows`, `generation.slots` and `mesh` say it.

        Raises:
          UserError: no path, or an unknown field.
        """
        fields = dict(arg_dict)
        path, file = str(fields.pop("path", "")), str(fields.pop("config", base.__file__))
        if not path:
            raise UserError("--model_args: path=MODEL is missing; a Hugging Face folder, a .gguf file or runs/x/m2.")
        c: Any = load_config(file, [f"--config.{name}={value}" for name, value in fields.items()])
        keep_compiled_programs()
        model = load_model(
            path,
            mesh=make_mesh(c.mesh.data, c.mesh.fsdp, c.mesh.tensor),
            rules=make_rules(c.mesh.rules.to_dict()),
            dtype=c.model.dtype,
            param_dtype=c.model.param_dtype,
            adapter=c.model.adapter,
            chat_template=c.model.chat_template,
            date=c.model.date,
        )
        return cls(model, engine_settings(c.generation), rows=c.generation.score_rows, seed=c.seed)

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict | None = None) -> "SelfRewardLM":
        pairs = (field.split("=", 1) for field in arg_string.split(",") if field)
        return cls.create_from_arg_obj({name: "".join(value) for name, *value in pairs})

    @functools.cached_property
    def engine(self) -> Engine:
        """Laid out when the first task generates."""
        return Engine(self.model, self.settings)

    @property
    def max_length(self) -> int:
        return self.model.context

    @property
    def eot_token_id(self) -> int:
        return self.model.chat.text_eos_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that nothing stands before."""
        return self.eot_token_id if self.model.chat.bos_id is None else self.model.chat.bos_id

    @property
    def tokenizer_name(self) -> str:
        """For lm-eval's cache of rendered requests."""
        return "selfreward-" + "-".join(digest[:16] for digest in self.model.chat.hashes.values())

    def get_model_info(self) -> dict[str, str]:
        """What results files say of the model."""
        about = {"model_hash": self.model.hash, "model_dtype": self.model.dtype, "selfreward_jax": __version__}
        return {"model": NAME, **about, **self.model.chat.hashes}

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Ids of a text as lm-eval means it, control tokens in it included; one BOS if the tokenizer sets one.

        Args:
          add_special_tokens: False for no BOS at all; else a text that begins with one gets no second.
        """
        chat = self.model.chat
        ids = chat.tokenizer(string, add_special_tokens=False).input_ids
        if chat.bos_id is None or not chat.adds_bos or add_special_tokens is False or ids[:1] == [chat.bos_id]:
            return ids
        return [chat.bos_id, *ids]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as text; contents can't write control tokens.

        A template without a system role gets the conversation without its system message, as with lm-eval's models.
        """
        try:
            return self.model.chat.render(chat_history, add_generation_prompt)
        except UserError as error:
            rest = [m for m in chat_history if m["role"] != "system"]
            if len(rest) == len(chat_history):
                raise
            say(f"{error} The system message is left out.")
            return self.model.chat.render(rest, add_generation_prompt)

    def _score(self, title: str, examples: Sequence[Example], done: Callable[[int, float, bool], None]) -> None:
        with meter(title, len(examples)) as progress:
            for n, logp, greedy in score_continuations(self.model, examples, rows=self.rows):
                done(n, logp, greedy)
                progress.advance(1, len(examples[n]))
                self.interrupt.check()

    def _loglikelihood_tokens(self, requests: Sequence[Pair], **kwargs: Any) -> list[tuple[float, bool]]:
        """Log-probability of each continuation, and if it is greedy; contexts that are too long lose their start."""
        examples = [_example(request, self.max_length) for request in requests]
        found: dict[int, tuple[float, bool]] = {}

        def done(n: int, logp: float, greedy: bool) -> None:
            found[n] = (logp, greedy)
            if (texts := requests[n][0]) is not None:
                self.cache_hook.add_partial("loglikelihood", texts, found[n])

        self._score("log-likelihoods", examples, done)
        return [found[n] for n in range(len(requests))]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of whole texts: each token once, given as much before it as its window holds.

        The first is given the prefix token. A BOS that the tokenizer would set is that prefix, and isn't scored.
        """
        examples, owners = [], []
        for number, request in enumerate(requests):
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            windows = get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1)
            for context, tokens in map(make_disjoint_window, windows):
                examples.append(Example(tuple(context), tuple(tokens)))
                owners.append(number)
        totals, left = [0.0] * len(requests), [owners.count(n) for n in range(len(requests))]

        def done(n: int, logp: float, greedy: bool) -> None:
            number = owners[n]
            totals[number] += logp
            left[number] -= 1
            if not left[number]:
                self.cache_hook.add_partial("loglikelihood_rolling", requests[number].args, totals[number])

        self._score("log-likelihoods of windows", examples, done)
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What follows each context, up to where a text of its `until` begins; greedy unless it asks for samples.

        Raises:
          UserError: a way of sampling that isn't known here, or a limit that fills the context.
        """
        groups: dict[SamplingSettings, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(_sampling(request.args[1]), []).append(number)
        found: dict[int, str] = {}
        with meter("generations", len(requests)) as progress:
            for settings, numbers in groups.items():
                asked = [Request(str(n), self._context(requests[n].args[0], settings.max_new_tokens)) for n in numbers]
                for made in self.engine.run(asked, 1, settings, seed=self.seed, purpose=f"lm-eval\0{self.model.hash}"):
                    number = int(made.request.id)
                    found[number] = self._text(made.token_ids, made.up_to_stop, settings.stop)
                    self.cache_hook.add_partial("generate_until", requests[number].args, found[number])
                    progress.advance(1, made.drawn)
                    self.interrupt.check()
        return [found[n] for n in range(len(requests))]

    def _context(self, text: str, new_tokens: int) -> tuple[int, ...]:
        """The end of a text that leaves room for what is to come."""
        room = self.max_length - new_tokens
        if room < 1:
            raise UserError(
                f"max_gen_toks={new_tokens}: leaves no room for a prompt in the model's context of {self.max_length}."
            )
        return tuple(self.tok_encode(text)[-room:]) or (self.prefix_token_id,)

    def _text(self, ids: Sequence[int], text: str, stop: Sequence[str]) -> str:
        """A generated text, cut too where the model wrote one of `stop` as a control token, which texts don't show."""
        control = self.tokenizer.added_tokens_decoder
        end = next((n for n, i in enumerate(ids) if i in control and str(control[i]) in stop), None)
        return text if end is None else self.model.chat.decode(ids[:end])


def _example(request: Pair, longest: int) -> Example:
    """A continuation with as much of its context as the model's holds; the last token isn't read, only scored."""
    texts, context, continuation = request
    if not continuation or len(continuation) > longest:
        raise UserError(
            f"lm-eval asks for a continuation of {len(continuation)} tokens, {str(texts)[-80:]!r}; from 1 to {longest}"
            " can be scored."
        )
    return Example(tuple(context[-(longest + 1 - len(continuation)) :]), tuple(continuation))


def _sampling(gen_kwargs: Mapping[str, Any]) -> SamplingSettings:
    """How a task wants its texts; null is as good as nothing said."""
    where = "the task's generation_kwargs"
    given = {name: value for name, value in gen_kwargs.items() if value is not None}
    for name, neutral in NEUTRAL.items():
        if name in given and (value := given.pop(name)) not in neutral:
            said = " or ".join(str(n) for n in neutral)
            raise UserError(f"{where}: {name} is {value!r}; here it can only be {said}.")
    try:
        wanted: dict[str, Any] = {**normalize_gen_kwargs(given, MAX_GEN_TOKS)}
        if unknown := sorted(set(wanted) - set(SAMPLING)):
            raise UserError(f"{where} hold {unknown[0]}; known are {', '.join(SAMPLING)}.")
        greedy = not wanted.get("do_sample")
        settings = SamplingSettings(
            0.0 if greedy else float(wanted.get("temperature", 1.0)),
            1.0 if greedy else float(wanted.get("top_p", 1.0)),
            int(wanted["max_gen_toks"]),
            0 if greedy else max(int(wanted.get("top_k", 0)), 0),  # vLLM's -1 is every token
            0.0 if greedy else float(wanted.get("min_p", 0.0)),
            0,
            tuple(text for text in wanted["until"] if text),
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}.") from None
    settings.check(where)
    return settings


def main() -> int:
    """lm-eval's command line, with one line for what can't be used."""
    from lm_eval.__main__ import cli_evaluate  # pyright: ignore[reportMissingImports]

    try:
        cli_evaluate()
    except UserError as error:
        tell(f"selfreward: {error}", sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
