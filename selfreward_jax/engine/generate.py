"""The engine: requests in, completions out as they finish, each piece of work done once.

The prefix that all requests share is run through the model once, a prompt once for all its samples, and a finished
sample's slot takes the next one at once. Every draw's key follows from (seed, purpose with the model's hash, request,
sample, position), and a row's numbers don't depend on the rows beside it, so neither slot nor order nor an
interruption has a say in what comes out.
"""

import collections
import dataclasses
import functools
from collections.abc import Iterator, Sequence, Set
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from selfreward_jax.core.errors import UserError
from selfreward_jax.core.mesh import bytes_on_device
from selfreward_jax.core.profile import Tracer
from selfreward_jax.core.progress import say
from selfreward_jax.engine.cache import CachePlan, default_budget, padded_length, plan_cache
from selfreward_jax.engine.compiling import compile_ahead
from selfreward_jax.engine.layout import REPLICA, TENSOR, lay_out, sampling_config, sampling_mesh, splits_kv
from selfreward_jax.engine.regions import Attention, choose_attention
from selfreward_jax.engine.run import Completion, EngineRun, Reading
from selfreward_jax.engine.sampling import SamplingSettings
from selfreward_jax.engine.schedule import Request, Sample, Schedule, sample_key, shared_prefix
from selfreward_jax.llama.load import Model, check_end_ids


@dataclasses.dataclass(frozen=True)
class EngineSettings:
    """What an engine may use.

    Attributes:
      slots: rows that decode at a time, on all devices together.
      length_bucket: prompts are padded to a multiple of so many tokens; 0: 16 on a CPU, 64 elsewhere.
      prefill_tokens: prompt tokens, padding included, that one call runs through the model in each replica; 0: what
        fills the device.
      cache_gib: memory for keys and values on each device; 0: what fits.
      cache_dtype: of keys and values; "" for that of the computation.
      tensor: devices that share a model; 0: as in training.
      attention: of decoding: `xla`, `pallas` (kernels for TPU, interpreted elsewhere), or `auto`: by device.
    """

    slots: int = 64
    length_bucket: int = 0
    prefill_tokens: int = 0
    cache_gib: float = 0.0
    cache_dtype: str = ""
    tensor: int = 0
    attention: str = "auto"


def check_requests(requests: Sequence[Request], samples: int, settings: SamplingSettings, context: int, what: str,
                   extra: int = 0) -> None:  # fmt: skip
    """Raises `UserError` for what can't be sampled: nothing at all, an empty prompt, one too long for the context.

    Args:
      what: of the requests, for people.
      extra: tokens that a reading adds.
    """
    settings.check(what)
    if not requests:
        raise UserError(f"{what}: none given; there is nothing to generate from.")
    if samples < 1:
        raise UserError(f"{what}: {samples} samples asked for; at least 1 is needed.")
    new = settings.max_new_tokens + extra
    if len({r.id for r in requests}) < len(requests):
        raise UserError(f"{what}: the same id is given twice, so both would be sampled alike; give each its own.")
    for request in requests:
        if not request.prompt_ids:
            raise UserError(f"{what} {request.id}: empty, not one token; a model needs something to go on.")
        if len(request.prompt_ids) + new > context:
            raise UserError(
                f"{what} {request.id}: {len(request.prompt_ids)} prompt tokens and {new} new ones"
                f" exceed the model's context of {context}; shorten the prompt or lower max_new_tokens."
            )


class Engine:
    """A model laid out for sampling. One may serve any number of runs; programs compiled for one serve the others.

    Attributes:
      counters: tokens since the engine was made: `gen/tokens`, `gen/prefill_tokens_computed`,
        `gen/prefill_tokens_shared` (what running each sample's prompt by itself would have cost in addition),
        `gen/prefill_tokens_padding`, `gen/decode_steps`, `gen/slot_steps` (slots in use, summed over the steps).
      config: the model's shape as its devices share it (`layout.sampling_config`).
      in_use: slots in use, and how many there are.
      tracer: of its calls of decoding.
    """

    def __init__(self, model: Model, settings: EngineSettings | None = None):
        """Lays the model's weights out.

        Raises:
          UserError: the weights or the devices can't be divided as asked, or an end id is none of the vocabulary.
        """
        self.model, self.settings = model, settings or EngineSettings()
        config = model.config
        check_end_ids(model.name, config, model.chat)
        self.mesh = sampling_mesh(model.mesh, self.settings.tensor)
        self.replicas = self.mesh.shape[REPLICA]
        self.dtype = jnp.dtype(model.dtype)
        self.attention: Attention = choose_attention(self.settings.attention, self.mesh.devices.flat[0].platform)
        self.cache_dtype = jnp.dtype(self.settings.cache_dtype or model.dtype)
        self.config = sampling_config(config, self.mesh)
        with jax.set_mesh(self.mesh):
            self.weights = lay_out(self.config, model.params, self.mesh, self.dtype)
        shared = f"{model.name}: {config.num_kv_heads} K/V heads can't be split over {self.mesh.shape[TENSOR]} tensor"
        if not splits_kv(self.config, self.mesh):
            say(f"{shared} devices; each keeps all keys and values")
        elif copies := self.config.num_kv_heads // config.num_kv_heads - 1:
            say(f"{shared} devices; each is kept {copies + 1} times, for a part of its queries each")
        self.counters: collections.Counter[str] = collections.Counter()
        self.in_use: tuple[int, int] = (0, 0)
        self.tracer = Tracer()
        self._compiled: set[Any] = set()

    def prepare(self, what: str, function, config, weights, *args, **static) -> None:
        """Compiles a program ahead of its first use with arguments of these shapes."""
        key = (what, tuple(static.items()), tuple(x.shape for x in jax.tree.leaves(args)))
        if key not in self._compiled:
            compile_ahead(what, function, config, weights, *args, **static)
            self._compiled.add(key)

    @property
    def _on_cpu(self) -> bool:
        return self.mesh.devices.flat[0].platform == "cpu"

    @property
    def length_bucket(self) -> int:
        return self.settings.length_bucket or (16 if self._on_cpu else 64)

    @property
    def prefill_tokens(self) -> int:
        """Prompt tokens of one call in each replica; on a CPU a few hundred fill it, and the rest would be waste."""
        return self.settings.prefill_tokens or (512 if self._on_cpu else 2048)

    @functools.cached_property
    def budget(self) -> int:
        """Bytes for keys and values on each device."""
        if self.settings.cache_gib:
            return int(self.settings.cache_gib * 2**30)
        weights = bytes_on_device((self.weights, self.model.params))  # these stay, in the layout of training
        return default_budget(int(weights), self.mesh.devices.flat[0])

    def plan(self, requests: Sequence[Request], samples: int, new_tokens: int) -> CachePlan:
        """Sizes of the cache for these requests, each continued by at most `new_tokens` tokens."""
        prefix = shared_prefix(requests)
        return plan_cache(
            self.config,
            self.mesh,
            requests=len(requests),
            samples=samples,
            slots=self.settings.slots,
            prefix=prefix,
            padded_prompt=padded_length(max(len(r.prompt_ids) for r in requests) - prefix, self.length_bucket),
            own_limit=max(new_tokens, 1),
            dtype=self.cache_dtype,
            budget=self.budget,
        )

    def run(
        self,
        requests: Sequence[Request],
        samples: int,
        settings: SamplingSettings,
        *,
        seed: int,
        purpose: str = "",
        done: Set[tuple[str, int]] = frozenset(),
        reading: Reading | None = None,
        what: str = "prompt",
    ) -> Iterator[Completion]:
        """Continues each request `samples` times; yields completions as they finish.

        Args:
          purpose: what the samples are for and the model's hash; part of every random key.
          done: (request id, sample) that need not be made again. The others come out as if all were made.
          reading: what to read when a sample has ended.
          what: of the requests, for error messages.

        Raises:
          UserError: see `check_requests`, or the cache is too small; before anything is generated.
        """
        extra = reading.longest if reading else 0
        check_requests(requests, samples, settings, self.model.context, what, extra)
        plan = self.plan(requests, samples, settings.max_new_tokens + extra)
        # Longest first: memory is needed most at once, and compiled shapes only get smaller.
        ordered = sorted(requests, key=lambda r: (-len(r.prompt_ids), r.id))
        work = (
            [Sample(r, n, sample_key(seed, purpose, r.id, n)) for n in range(samples) if (r.id, n) not in done]
            for r in ordered
        )
        schedule = Schedule(self.replicas, plan.slots, plan.entries, samples, (w for w in work if w))
        run = EngineRun(self, plan, schedule, shared_prefix(requests), settings, reading)
        yield from run.completions(next(iter(requests)).prompt_ids)

    def read(
        self, requests: Sequence[Request], candidates: tuple[int, ...], *, done: Set[str] = frozenset()
    ) -> Iterator[tuple[Request, tuple[float, ...]]]:
        """Log-probabilities of the candidates as each request's next token: one prefill, no decoding."""
        settings = SamplingSettings(0.0, 1.0, 1)
        check_requests(requests, 1, settings, self.model.context, "prompt")
        plan = self.plan(requests, 1, 1)
        ordered = sorted(requests, key=lambda r: (-len(r.prompt_ids), r.id))
        work = ([Sample(r, 0, np.zeros(2, np.uint32))] for r in ordered if r.id not in done)
        schedule = Schedule(self.replicas, plan.slots, plan.entries, 1, work)
        run = EngineRun(self, plan, schedule, shared_prefix(requests), settings, None)
        yield from run.readings(next(iter(requests)).prompt_ids, candidates)
