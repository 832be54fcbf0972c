"""Every program of a run as it will be compiled: its arguments' shapes, types and layouts, and no array anywhere."""

import dataclasses
import functools
import math
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from selfreward_jax.core.errors import UserError
from selfreward_jax.core.losses import loss_settings
from selfreward_jax.core.mesh import bytes_on_device, make_rules, replicated, row_ways
from selfreward_jax.engine import programs
from selfreward_jax.engine.cache import (
    CACHE_SHARE,
    CachePlan,
    blocks_for,
    machine_bytes,
    padded_length,
    plan_cache,
    round_up,
)
from selfreward_jax.engine.layout import REPLICA, reshard, sampling_config, sampling_mesh, sampling_weights
from selfreward_jax.engine.regions import Attention, Region, choose_attention, region_shapes
from selfreward_jax.engine.run import STEPS, STEPS_WITH_STOP, prefill_width
from selfreward_jax.engine.sampling import REDRAWN, Law
from selfreward_jax.engine.schedule import Schedule
from selfreward_jax.engine.score import score
from selfreward_jax.llama.attention import choose_backend
from selfreward_jax.llama.config import LlamaConfig
from selfreward_jax.llama.lora import trained_specs
from selfreward_jax.llama.params import full_shape, is_spec, param_specs, shardings
from selfreward_jax.stages.judge import needs_sampling
from selfreward_jax.stages.training import lora_settings, optimizer_settings
from selfreward_jax.training import step
from selfreward_jax.training.batches import Example, TrainRow, make_batch
from selfreward_jax.training.objectives import SFT, make_objective
from selfreward_jax.training.optimizer import make_optimizer, state_shardings
from selfreward_jax.training.packing import Layout, micro_batches, plan_micro_batches
from selfreward_jax.training.throughput import train_flops


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Tokens of the longest texts that are planned for.

    Attributes:
      prompt: of a prompt.
      judge_prompt: of the judge's prompt beside the prompt and the answer in it: its instructions, shared by all.
    """

    prompt: int
    judge_prompt: int


@dataclasses.dataclass(frozen=True)
class Planned:
    """One program.

    Attributes:
      name: for people, unlike any other's.
      function: the jitted function.
      arguments, static: what it is called with; arrays are `jax.ShapeDtypeStruct`s.
      kinds: bytes on each device of its arguments and of all that lies beside them, by kind.
      tokens: that one call gets done, on all devices together.
      model_flops: what the mathematics of them needs; 0 where nobody counts.
      mesh: that it runs under.
      rounds: of loops that go on as long as the data asks, by the name of the operation they come from.
      texts: that one call gets done where each has a row of its own; 0 elsewhere.
      notes: what is expected rather than read from the program.
      too_big: why there is nothing to compile, as its arguments alone don't fit; "" if they do.
    """

    name: str
    function: Any
    arguments: tuple
    static: dict[str, Any]
    kinds: dict[str, float]
    tokens: int
    model_flops: float
    mesh: Mesh
    rounds: dict[str, int] = dataclasses.field(default_factory=dict)
    texts: int = 0
    notes: tuple[str, ...] = ()
    too_big: str = ""

    def trace(self):
        with jax.set_mesh(self.mesh):
            return self.function.trace(*self.arguments, **self.static)

    def lower(self):
        with jax.set_mesh(self.mesh):
            return self.function.lower(*self.arguments, **self.static)


def described(x, sharding) -> Any:  # stands where an array would
    return jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=sharding)


class Plans:
    """The programs of a run on a mesh of described devices.

    Args:
      config: the whole configuration.
      model: the model's shape.
      mesh: over the machine's devices.
      platform: `tpu`, `gpu` or `cpu`.
      hbm: bytes of a device.
    """

    def __init__(self, config: Any, model: LlamaConfig, mesh: Mesh, platform: str, hbm: float, lengths: Lengths):
        self.config, self.model, self.mesh, self.platform, self.hbm = config, model, mesh, platform, hbm
        self.lengths, self.rules = lengths, make_rules(config.mesh.rules.to_dict())
        self.dtype = jnp.dtype(config.model.dtype)
        self.lora = lora_settings(config.lora)
        # A GPU's own kernel is not to be had where its program is a CPU's.
        self.attention = choose_backend(config.training.attention, "tpu" if platform == "tpu" else "cpu", self.dtype)
        self.attention = "blocks" if self.attention == "cudnn" else self.attention
        dtype = jnp.dtype(config.model.param_dtype)
        self.params = self._weights(param_specs(model), dtype)
        trained = jnp.dtype("float32") if self.lora else dtype
        self.trained = self._weights(trained_specs(model, self.lora), trained)
        self.sampling = sampling_mesh(mesh, config.generation.tensor)
        self.replicas = self.sampling.shape[REPLICA]
        self.sampled = sampling_config(model, self.sampling)

    def _weights(self, specs, dtype):
        layouts = shardings(self.model, self.mesh, specs, self.rules)
        one = lambda spec, lay: jax.ShapeDtypeStruct(full_shape(self.model, spec), dtype, sharding=lay)  # noqa: E731
        return jax.tree.map(one, specs, layouts, is_leaf=is_spec)

    # Training.

    def _rows(self, tree):
        """As `core.mesh.put_rows` lays them out."""
        ways = row_ways(self.mesh, self.rules)
        split = NamedSharding(self.mesh, PartitionSpec(dict(self.rules)["batch"]))
        return jax.tree.map(lambda x: described(x, replicated(self.mesh) if x.shape[0] % ways else split), tree)

    def _whole(self, tree):
        return jax.tree.map(lambda x: described(np.asarray(x), replicated(self.mesh)), tree)

    def _forward(self, section) -> step.ForwardSettings:
        c = self.config.training
        return step.ForwardSettings(
            self.config.model.dtype, c.head_chunk, c.remat, section.dropout, self.attention, self.rules, self.lora
        )

    def training(self, stage: str) -> Iterator[Planned]:
        """The programs of `sft` or `dpo`: gradients of a micro-batch, the sum of two of them, and an update."""
        c = self.config
        sft = stage == "sft" or c.dpo.data == "positives"
        section = c.sft if sft else c.dpo
        longest = min(section.max_length, self.model.max_position_embeddings)
        objective = SFT() if sft else make_objective(loss_settings(c.dpo))
        answer = min(c.respond.max_new_tokens, longest - 1)
        example = Example((1,) * min(self.lengths.prompt, longest - answer), (1,) * answer)
        if sft or c.training.pack:
            example = Example((1,) * (longest - answer), (1,) * answer)
        count = len(example)
        examples = (example,) if sft else (example, dataclasses.replace(example, response_ids=(2,) * answer))
        rows = [TrainRow(examples, () if sft else (0.0,) * len(examples))] * section.batch_size
        layout = Layout(
            section.micro_batch_size or (0 if c.training.pack else section.batch_size),
            c.training.length_bucket, c.training.pack, c.training.share_prompt, row_ways(self.mesh, self.rules),
        )  # fmt: skip
        parts = micro_batches(rows, layout)
        # The first is the largest; the last has what is left of a step, though it is filled up to as many rows.
        done = len(plan_micro_batches(rows, layout)[0].rows) * len(examples)
        batch, arrays = parts[0]
        counts = {name: jax.ShapeDtypeStruct((), np.float32) for name in objective.counts(rows)}
        key = described(jax.eval_shape(lambda: jax.random.key(0)), replicated(self.mesh))
        settings, frozen = self._forward(section), self.params if self.lora else None
        optimizer = optimizer_settings(c, section, 1000)
        state = self._state(optimizer)
        beside = {"parameters": bytes_on_device(self.params), "optimizer": bytes_on_device(state.resumable)}
        if self.lora:
            beside["adapter"] = bytes_on_device(state.params)
        elif state.ema is not None:
            beside["optimizer"] -= bytes_on_device(state.params)  # that is the weights once more
        grads = bytes_on_device(self.trained)
        summed = {"summed gradients": grads} if len(parts) > 1 else {}
        yield Planned(
            f"{stage} gradients",
            step.gradients,
            (
                self.model,
                objective,
                settings,
                self.trained,
                self._rows(batch),
                self._whole(arrays),
                counts,
                key,
                frozen,
            ),
            {},
            beside | summed | {"batch": bytes_on_device(self._rows(batch))},
            done * count,
            train_flops(self.model, [example] * done, self.lora),
            self.mesh,
            texts=0 if c.training.pack else done,
        )
        pair = (self.trained, described(np.zeros((), np.float32), replicated(self.mesh)))
        if len(parts) > 1:
            yield Planned(
                f"{stage} sum", step.add, (pair, pair), {}, beside | {"gradients": 2 * grads}, 0, 0, self.mesh
            )
        yield Planned(
            f"{stage} update", step.update, (self.model, optimizer, state, self.trained, self.lora), {},
            beside | {"gradients": grads}, 0, 0, self.mesh,
        )  # fmt: skip

    def _state(self, settings) -> step.TrainState:
        optimizer = make_optimizer(self.model, settings, self.lora)
        shapes = jax.eval_shape(optimizer.init, self.trained)
        layouts = state_shardings(optimizer, self.trained, trained_specs(self.model, self.lora))
        opt_state = jax.tree.map(described, shapes, layouts)
        average = jax.tree.map(lambda x: x, self.trained) if settings.ema_decay else None
        return step.TrainState(described(np.zeros((), np.int32), None), self.trained, opt_state, average)

    def reference(self) -> Iterator[Planned]:
        """Log-probabilities of answers under the reference."""
        c = self.config
        if c.dpo.data == "positives" or not loss_settings(c.dpo).needs_reference:
            return
        longest = min(c.dpo.max_length, self.model.max_position_embeddings)
        answer = min(c.respond.max_new_tokens, longest - 1)
        example = Example((1,) * min(self.lengths.prompt, longest - answer), (1,) * answer)
        rows = round_up(c.generation.score_rows, row_ways(self.mesh, self.rules))
        batch = self._rows(make_batch([example] * rows, rows=rows, bucket=c.training.length_bucket))
        static = {
            "dtype": self.dtype, "head_chunk": c.training.head_chunk, "attention": self.attention, "rules": self.rules,
        }  # fmt: skip
        starts, alpha = None, loss_settings(c.dpo).ld_alpha
        if alpha != 1:
            starts, static["tail_weight"] = self._rows(np.zeros(rows, np.int32)), alpha
        yield Planned(
            "reference scores", score, (self.model, self.params, batch, starts), static,
            {"parameters": bytes_on_device(self.params), "batch": bytes_on_device(batch)},
            rows * len(example), train_flops(self.model, [example] * rows) / 3, self.mesh, texts=rows,
        )  # fmt: skip

    # Sampling.

    @functools.cached_property
    def weights(self):
        """The sampling layout's."""
        return sampling_weights(self.sampled, self.params, self.sampling, self.dtype)

    def resharding(self) -> Iterator[Planned]:
        """From the training layout to the sampling layout: what is in no layer, and a layer when all else is there."""
        outside, layer = reshard(self.sampled, self.params, self.sampling, self.dtype)
        beside = {"parameters": bytes_on_device(self.params)}
        yield Planned("reshard, embeddings", outside, (self.params,), {}, beside, 0, 0, self.mesh)
        made = {"sampling weights": bytes_on_device(self.weights) - bytes_on_device(self.weights["layers"][0])}
        number = jax.ShapeDtypeStruct((), np.int32)
        yield Planned("reshard, a layer", layer, (self.params["layers"], number), {}, beside | made, 0, 0, self.mesh)

    def stage(self, name: str) -> "SamplingStage":
        """`respond` or `judge`."""
        return SamplingStage(self, name)


class SamplingStage:
    """The programs of answers or of judgements, with the cache that fits."""

    def __init__(self, plans: Plans, name: str):
        c, self.plans, self.name = plans.config, plans, name
        section, g = c[name], c.generation
        self.law = Law(section.temperature, section.top_p, section.top_k, section.min_p)
        self.new_tokens = section.max_new_tokens
        answer, prompt = c.respond.max_new_tokens, plans.lengths.prompt
        self.prefix = plans.lengths.judge_prompt if name == "judge" else 0
        self.prompt = prompt + answer if name == "judge" else prompt
        # A score read where the judgement would begin takes a prefill alone.
        self.reads = name == "judge" and not needs_sampling(section.method, section.rationale)
        self.steps = STEPS_WITH_STOP if section.get("stop") else STEPS
        self.samples = c.judge.samples if name == "judge" else c.respond.n
        if self.reads:
            self.samples = self.new_tokens = 1
        requests = c.prompts.count * (c.respond.n if name == "judge" else 1)
        self.attention: Attention = choose_attention(g.attention, plans.platform)
        self.cache_dtype = jnp.dtype(g.cache_dtype or c.model.dtype)
        bucket = g.length_bucket or (16 if plans.platform == "cpu" else 64)
        self.weights = plans.weights
        resident = bytes_on_device(plans.params) + bytes_on_device(self.weights)
        free = machine_bytes() // 4 if plans.platform == "cpu" else int(CACHE_SHARE * (plans.hbm - resident))
        budget = int(g.cache_gib * 2**30) if g.cache_gib else max(free, 0)
        self.padded = padded_length(self.prompt, bucket)
        planned = functools.partial(
            plan_cache, plans.sampled, plans.sampling, requests=requests, samples=self.samples, prefix=self.prefix,
            padded_prompt=self.padded, own_limit=self.new_tokens, dtype=self.cache_dtype,
        )  # fmt: skip
        self.too_big = ""
        try:
            self.cache: CachePlan = planned(slots=g.slots, budget=budget)
        except UserError:
            if g.cache_gib:
                raise
            self.cache = planned(slots=1, budget=sys.maxsize)
            self.too_big = (
                f"parameters and sampling weights take {resident / 2**30:.2f} GiB of {plans.hbm / 2**30:.2f} GiB, and a"
                f" row of the cache would need {self.cache.total_bytes() / 2**30:.2f} GiB"
            )
        tokens = g.prefill_tokens or (512 if plans.platform == "cpu" else 2048)
        self.width = prefill_width(tokens, self.padded, self.cache.entries)
        self.rows = plans.replicas * self.cache.slots
        self.kinds = {
            "parameters": bytes_on_device(plans.params), "sampling weights": bytes_on_device(self.weights),
            "KV cache": bytes_on_device((self._prefix(), self._prompts(), self._own())),
        }  # fmt: skip

    def _region(self, blocks: int, rows: int, width: int) -> list[Region]:
        return region_shapes(
            self.plans.sampled, self.plans.sampling, blocks=blocks, rows=rows, width=width, dtype=self.cache_dtype,
            attention=self.attention,
        )  # fmt: skip

    def _prefix(self) -> list[Any]:
        m, width = self.plans.sampled, self.cache.prefix
        shapes = functools.partial(region_shapes, m, self.plans.sampling, dtype=self.cache_dtype, shared=True)
        return shapes(blocks=1, rows=1, width=width) if self.prefix else []

    def _prompts(self) -> list[Region]:
        c = self.cache
        if self.reads:
            return []
        return self._region(blocks_for(self.padded, c.prompt_block), self.plans.replicas * c.entries, c.prompt_block)

    def _own(self) -> list[Region]:
        c = self.cache
        if self.reads:
            return []
        return self._region(blocks_for(self.new_tokens, c.own_block), self.rows, c.own_block)

    def _put(self, x, *axes) -> Any:
        return described(x, NamedSharding(self.plans.sampling, PartitionSpec(*axes)))

    def programs(self) -> Iterator[Planned]:
        """Prefill of prompts, and decoding."""
        p, what = self.plans, {"respond": "answers", "judge": "judgements"}[self.name]
        if self.too_big:
            yield Planned(
                f"decode, {what}", None, (self.weights,), {}, self.kinds, 0, 0, p.sampling, too_big=self.too_big
            )
            return
        P, T = p.replicas * self.width, self.padded
        on_rows = lambda x: self._put(x, REPLICA)  # noqa: E731
        length = self._put(np.zeros((), np.int32))
        forward = 2.0 * sum(math.prod(x.shape) for x in jax.tree.leaves(p.params["layers"]))
        yield Planned(
            f"prefill, {what}", programs.prefill,
            (
                p.sampled, self.weights, self._prefix(), length, self._prompts(), on_rows(np.zeros((P, T), np.int32)),
                on_rows(np.zeros(P, np.int32)), on_rows(np.zeros((p.replicas, self.width), np.int32)),
            ),
            {"dtype": p.dtype, "attention": self.attention}, self.kinds, P * T, forward * P * T, p.sampling,
        )  # fmt: skip
        if self.reads:
            return
        again = self.redraws()
        told = f"at top_p={self.law.top_p} some rows draw again, {again} times a step, {REDRAWN} of a replica at a time"
        slots, seats = Schedule(p.replicas, self.cache.slots, self.cache.entries, self.samples, []).arrays(0, 1)
        yield Planned(
            f"decode, {what}", programs.decode,
            (
                p.sampled, self.weights, self._prefix(), length, self._prompts(), self._own(),
                programs.Slots(**{name: on_rows(x) for name, x in slots.items()}),
                programs.Seats(**{name: on_rows(x) for name, x in seats.items()}),
                self._put(np.zeros(0, np.int32)), self._put(np.zeros(4, np.int32)),
            ),
            {"law": self.law, "steps": self.steps, "eos_ids": p.model.eos_token_ids or (2,), "dtype": p.dtype},
            self.kinds, self.rows, forward * self.rows, p.sampling,
            {"jit(decode)/while": 1, "jit(decode)/while/body/sample/while": again}, notes=(told,) if again else (),
        )  # fmt: skip

    def redraws(self) -> int:
        """Rounds that a decode step is expected to take until all rows' tokens lie in the nucleus, at most."""
        if self.law.temperature == 0:
            return 0
        return math.ceil((1 / self.law.top_p - 1) * self.rows / self.plans.replicas / REDRAWN)
