"""Which mesh, micro-batch, rematerialisation and cache go fastest on a machine and fit.

All that a run could ask for is estimated by a few formulas, which need no compiler; the best of them are compiled,
and the compiler's numbers decide. The formulas follow "How to Scale Your Model" (Austin et al. 2025), chapters 5
and 7: a step is bound by its products, by the weights that are gathered, or by the activations that are summed.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh

from selfreward_jax.core.errors import UserError
from selfreward_jax.core.mesh import mesh_sizes
from selfreward_jax.engine.layout import REPLICA, TENSOR, sampling_config
from selfreward_jax.llama.config import LlamaConfig
from selfreward_jax.llama.lora import trained_specs
from selfreward_jax.llama.params import full_shape, is_spec, param_specs
from selfreward_jax.plan.compiled import Result
from selfreward_jax.plan.machines import Machine
from selfreward_jax.plan.shapes import Lengths
from selfreward_jax.stages.training import lora_settings, optimizer_settings
from selfreward_jax.training.optimizer import make_optimizer

SPARE = 0.85  # of the memory, at most, may be in use by the formulas
LATENCY = 5e-6  # seconds of a small collective operation
HEAD_CHUNK = {"tpu": 16384, "gpu": 8192, "cpu": 512}  # positions: below, the head's gradient is written too often


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A layout that could be.

    Attributes:
      changes: fields of the configuration.
      seconds: estimated, of all work of one step of training, or of a decode step a row.
      bytes: estimated, of a device's memory.
    """

    changes: dict[str, Any]
    seconds: float
    bytes: float


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of a model and what goes with it, all devices together.

    Attributes:
      layers, head: weights.
      cache_token: bytes of a token in the cache.
      parameters: bytes.
      state: bytes of what training keeps: parameters, adapter, optimiser, average.
      gradients: bytes.
      lora: whether an adapter is trained instead of the weights.
    """

    layers: float
    head: float
    cache_token: float
    parameters: float
    state: float
    gradients: float
    lora: bool

    @classmethod
    def of(cls, config: Any, model: LlamaConfig, section: Any) -> "Sizes":
        def shapes(specs, dtype):
            return jax.tree.map(lambda s: jax.ShapeDtypeStruct(full_shape(model, s), dtype), specs, is_leaf=is_spec)

        def size(tree) -> float:
            return float(sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree)))

        dtype, lora = jnp.dtype(config.model.param_dtype), lora_settings(config.lora)
        params = shapes(param_specs(model), dtype)
        trained = shapes(trained_specs(model, lora), jnp.dtype("float32") if lora else dtype)
        settings = optimizer_settings(config, section, 1000)
        state = size(params) + size(jax.eval_shape(make_optimizer(model, settings, lora).init, trained))
        state += size(trained) * (bool(lora) + bool(settings.ema_decay))
        layers = sum(math.prod(x.shape) for x in jax.tree.leaves(params["layers"]))
        cache_bytes = jnp.dtype(config.generation.cache_dtype or config.model.dtype).itemsize
        cache = 2 * model.num_layers * model.num_kv_heads * model.head_dim * cache_bytes
        head = model.vocab_size * model.hidden_size
        return cls(layers, head, cache, size(params), state, size(trained), bool(lora))


def _divisors(n: int) -> list[int]:
    return [k for k in range(1, n + 1) if n % k == 0]


def meshes(model: LlamaConfig, devices: int) -> Iterator[tuple[int, int, int]]:
    """(data, fsdp, tensor) that the weights can be split over; tensor groups stay small, as their devices talk most."""
    heads = math.gcd(model.num_heads, model.num_kv_heads)
    for tensor in _divisors(devices):
        fits = heads % tensor == 0 and model.intermediate_size % tensor == 0 and model.vocab_size % tensor == 0
        if not fits:
            continue
        for fsdp in _divisors(devices // tensor):
            if model.hidden_size % fsdp == 0:
                yield devices // tensor // fsdp, fsdp, tensor


def training(
    config: Any, model: LlamaConfig, machine: Machine, lengths: Lengths, stage: str = "dpo"
) -> list[Candidate]:
    """Layouts of a training step that should fit, fastest first."""
    section = config[stage]
    sizes = Sizes.of(config, model, section)
    kinds = 2 if stage == "dpo" else 1
    T = min(section.max_length, model.max_position_embeddings)
    if stage == "dpo":
        T = min(T, lengths.prompt + config.respond.max_new_tokens)
    found = []
    micro = [section.batch_size // n for n in _divisors(section.batch_size)]
    for (data, fsdp, tensor), rows, remat in itertools.product(
        meshes(model, machine.devices), micro, ("block", "dots")
    ):
        ways = data * fsdp
        filled = math.ceil(rows * kinds / ways) * ways
        seconds, size = _step(
            model, sizes, machine, data, fsdp, tensor, filled // ways, T, remat, rows < section.batch_size
        )
        if size > SPARE * machine.chip.hbm_gib * 2**30:
            continue
        changes = {
            "mesh.data": data, "mesh.fsdp": fsdp, "mesh.tensor": tensor,
            f"{stage}.micro_batch_size": 0 if rows == section.batch_size else rows,
            "training.remat": remat, "training.head_chunk": HEAD_CHUNK[machine.kind],
        }  # fmt: skip
        found.append(Candidate(changes, seconds * section.batch_size / rows, size))
    return sorted(found, key=lambda c: c.seconds)


def _step(
    model: LlamaConfig, sizes: Sizes, machine: Machine, data: int, fsdp: int, tensor: int, rows: int, T: int,
    remat: str, summed: bool,
) -> tuple[float, float]:  # fmt: skip
    """Seconds of a micro-batch and bytes of a device, for `rows` rows of T tokens on each device."""
    tokens, D, L = rows * T, model.hidden_size, model.num_layers
    # Forward, and twice that backward, or as much if the weights stand still; once more what isn't kept.
    passes = (2 if sizes.lora else 3) + (remat == "block")
    weights = sizes.layers / tensor
    flops = 2 * passes * tokens * (weights + sizes.head / tensor)
    flops += passes * 2 * L * model.num_heads * model.head_dim * T * tokens / tensor
    matrix = flops / (machine.chip.tflops * 1e12)
    summed_bytes = 0 if sizes.lora else 4 * weights  # an adapter's gradients are next to none
    gathered = 2 * 2 * weights + summed_bytes
    sent = gathered * (fsdp - 1) / fsdp + (summed_bytes / fsdp * 2 if data > 1 else 0)
    sent += 2 * (passes + 2) * L * tokens * D * 2 * (tensor - 1) / tensor
    state = (sizes.state + sizes.gradients * (2 if summed else 1)) / (fsdp * tensor)
    kept = L * tokens * D * 2
    if remat == "dots":
        wide = (model.num_heads + 2 * model.num_kv_heads) * model.head_dim + 2 * model.intermediate_size
        kept += L * tokens * (wide / tensor + 2 * D) * 2
    working = tokens * (6 * D + 4 * model.intermediate_size / tensor) * 2 + 3 * weights / L * 2
    head = 4 * sizes.head / tensor * 2
    # What is bound by one has the other beside it, though never quite.
    slow, fast = max(matrix, sent / _link(machine)), min(matrix, sent / _link(machine))
    return slow + 0.2 * fast, state + kept + working + head


def _link(machine: Machine) -> float:
    """Bytes a second that a device sends to its group, which lies along a ring."""
    return machine.chip.link_gbps * 1e9 * (2 if machine.chip.dimensions else 1)


def sampling(config: Any, model: LlamaConfig, machine: Machine, lengths: Lengths) -> list[Candidate]:
    """Sizes of a model's replica and of the cache that should fit beside the mesh's parameters, most tokens a second
    first.
    """
    sizes, mesh = Sizes.of(config, model, config.dpo), mesh_sizes(config.mesh, machine.devices, machine.name)
    answers = config.prompts.count * config.respond.n
    prompt, new = lengths.prompt, config.respond.max_new_tokens
    found = []
    for tensor in _divisors(machine.devices):
        if model.num_heads % tensor or model.intermediate_size % tensor or model.vocab_size % tensor:
            continue
        replicas = machine.devices // tensor
        held = sampling_config(model, AbstractMesh((1, tensor), (REPLICA, TENSOR))).num_kv_heads
        split = tensor if held % tensor == 0 else 1
        attention = 2 * model.num_layers * model.hidden_size * model.head_dim * (model.num_heads + held)
        others = sizes.layers + 2 * sizes.head
        others -= 2 * model.num_layers * model.hidden_size * model.head_dim * (model.num_heads + model.num_kv_heads)
        weights = 2 * (others / tensor + attention / split)
        resident = weights + sizes.parameters / (mesh["fsdp"] * mesh["tensor"])
        row = sizes.cache_token * held / model.num_kv_heads / split * (new + prompt / config.respond.n)
        most = (SPARE * machine.chip.hbm_gib * 2**30 - resident) / row
        for rows in (2**n for n in range(2, 11)):
            # So many at a time that the last ones, which wait for the longest answers, are a small part.
            if rows > most or rows * replicas > max(answers / 4, replicas * 4):
                continue
            moved = weights + rows * row / 2  # half of its tokens, on average
            flops = 2 * rows * (sizes.layers + sizes.head) / tensor
            sent = 2 * 2 * model.num_layers * rows * model.hidden_size * 2 * (tensor - 1) / tensor
            bounds = (
                moved / (machine.chip.hbm_gbps * 1e9), flops / (machine.chip.tflops * 1e12), sent / _link(machine)
            )  # fmt: skip
            step = max(bounds) + 0.2 * (sum(bounds) - max(bounds))
            step += 2 * model.num_layers * LATENCY if tensor > 1 else 0
            changes = {"generation.tensor": tensor, "generation.slots": rows * replicas}
            found.append(Candidate(changes, step / (rows * replicas), resident + rows * row))
    return sorted(found, key=lambda c: c.seconds)


def unlike(candidates: Sequence[Candidate], names: Sequence[str]) -> list[Candidate]:
    """The first of them that differ in at least one of these fields."""
    taken: dict[tuple, Candidate] = {}
    for c in candidates:
        taken.setdefault(tuple(c.changes.get(name) for name in names), c)
    return list(taken.values())


@dataclasses.dataclass(frozen=True)
class Tried:
    """A candidate with what the compiler found; `result` is None where its sizes can't be laid out, `why` says so."""

    candidate: Candidate
    result: Result | None
    why: str = ""

    @property
    def seconds(self) -> float:
        """A training step's or a decoded row's, at full speed; infinite where it does not fit."""
        if self.result is None or self.result.too_big or not self.result.seconds:
            return math.inf
        # The slowest bound, and a share of the others: of two that are bound alike the lighter one is to be had.
        others = sum(self.result.seconds.values()) - self.result.roofline
        return (self.result.roofline + 0.2 * others) * self.calls

    @property
    def calls(self) -> float:
        """Of the program, for the work that is compared."""
        p = self.result.planned if self.result else None
        return 1 / p.tokens if p and p.tokens else 1.0


def try_out(
    candidates: Sequence[Candidate], most: int, names: Sequence[str], compiled: Callable[[Mapping[str, Any]], Result]
) -> list[Tried]:
    """Compiles the first candidates, and while none of them fits others that should need a tenth less; best first.

    Args:
      candidates: fastest first.
      most: how many of the first.
      names: fields of which the first differ in one at least.
      compiled: from changes of the configuration to the program that counts.
    """
    tried: list[Tried] = []

    def try_one(candidate: Candidate) -> None:
        try:
            tried.append(Tried(candidate, compiled(candidate.changes)))
        except UserError as error:
            tried.append(Tried(candidate, None, str(error)))

    for candidate in unlike(candidates, names)[:most]:
        try_one(candidate)
    while all(t.seconds == math.inf for t in tried):
        smallest = min((t.candidate.bytes for t in tried), default=math.inf)
        smaller = next((c for c in candidates if c.bytes < 0.9 * smallest), None)
        if smaller is None:
            break
        try_one(smaller)
    return sorted(tried, key=lambda t: t.seconds)
