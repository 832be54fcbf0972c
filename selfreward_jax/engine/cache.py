"""Where keys and values lie while a model generates, and how many slots a memory budget allows.

Three regions: the prefix that all requests share, once; an entry for each prompt in flight, read by all its samples;
and the tokens that each slot has generated. Every region is a list of layers, each in blocks, in a form that suits what
reads it (`regions.py`).
"""

import dataclasses
import math
import os
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from selfreward_jax.core.errors import UserError
from selfreward_jax.engine.layout import TENSOR, splits_kv
from selfreward_jax.engine.regions import Attention, Region, region_shapes
from selfreward_jax.llama.config import LlamaConfig

OWN_BLOCK = 128  # positions of a block of generated tokens
PROMPT_BLOCK = 256  # and of prompt tokens; where all are shorter, one block holds a prompt
CACHE_SHARE = 0.9  # of what the weights leave of an accelerator's memory; the rest is for what programs hold meanwhile


def round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def bucket(blocks: int) -> int:
    """The smallest of 1, 2, 3, 4, 6, 8, 12, 16, ... that is at least `blocks`: few shapes, a third of waste at most."""
    power = 1 << max(blocks - 1, 0).bit_length()
    return next(n for n in (power // 2, power * 3 // 4, power) if n >= blocks) if power > 2 else power


@dataclasses.dataclass(frozen=True)
class CachePlan:
    """Sizes of the cache in one replica, and of its pieces.

    Attributes:
      slots: rows that decode at a time.
      entries: prompts in flight.
      prefix: tokens of the shared prefix, padded.
      prompt_block, own_block: positions of a block.
      own_limit: positions that a slot may need: generated tokens and those fed to it.
      bytes_per_token: keys and values of all layers on one device.
    """

    slots: int
    entries: int
    prefix: int
    prompt_block: int
    prompt_limit: int
    own_block: int
    own_limit: int
    bytes_per_token: int

    def total_bytes(self) -> int:
        """On each device when every region is as large as it may become."""
        prompts = self.entries * bucket(-(-self.prompt_limit // self.prompt_block)) * self.prompt_block
        own = self.slots * bucket(-(-self.own_limit // self.own_block)) * self.own_block
        return (self.prefix + prompts + own) * self.bytes_per_token


def entries_for(slots: int, samples: int) -> int:
    """Prompts in flight: half as many again as fill the slots, for those with few samples left or yet to begin."""
    full = -(-slots // samples)
    return full + -(-full // 2)


def plan_cache(
    config: LlamaConfig,
    mesh: Mesh,
    *,
    requests: int,
    samples: int,
    slots: int,
    prefix: int,
    padded_prompt: int,
    own_limit: int,
    dtype,
    budget: int,
) -> CachePlan:
    """As many slots as are asked for, as there is work, and as fit the budget.

    Args:
      requests: how many there are, on all replicas together.
      slots: the most rows that may decode at a time, on all replicas together.
      prefix: tokens of the shared prefix.
      padded_prompt: tokens of the longest prompt after the prefix, with its padding.
      budget: bytes for the cache on each device.

    Raises:
      UserError: not even one row fits.
    """
    replicas = mesh.size // mesh.shape[TENSOR]
    heads = config.num_kv_heads // (mesh.shape[TENSOR] if splits_kv(config, mesh) else 1)
    per_token = 2 * config.num_layers * heads * config.head_dim * jnp.dtype(dtype).itemsize
    most_requests = -(-requests // replicas)
    wanted = max(1, min(-(-slots // replicas), most_requests * samples))
    own_block = min(OWN_BLOCK, round_up(own_limit, 16))

    def plan(rows: int) -> CachePlan:
        return CachePlan(
            slots=rows,
            entries=min(most_requests, entries_for(rows, samples)),
            prefix=round_up(prefix, 64),
            prompt_block=min(PROMPT_BLOCK, round_up(padded_prompt, 16)),
            prompt_limit=padded_prompt,
            own_block=own_block,
            own_limit=own_limit,
            bytes_per_token=per_token,
        )

    fitting = next((p for p in map(plan, range(wanted, 0, -1)) if p.total_bytes() <= budget), None)
    if fitting is None:
        one = plan(1)
        raise UserError(
            f"config.generation.cache_gib: one row of {prefix + padded_prompt} prompt tokens, with padding, and"
            f" {own_limit} new ones needs {one.total_bytes() / 2**30:.3f} GiB of cache on each device,"
            f" {budget / 2**30:.3f} GiB are allowed; raise it, shorten the prompts or lower max_new_tokens."
        )
    return fitting


def default_budget(weight_bytes: int, device: Any) -> int:
    """Nine tenths of what the weights leave of an accelerator's memory; a quarter of a CPU machine's.

    It follows from sizes alone, never from what happens to be free, so that a run that goes on plans as it did.
    """
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and stats.get("bytes_limit"):
        return int(CACHE_SHARE * (stats["bytes_limit"] - weight_bytes))
    return machine_bytes() // 4


def machine_bytes() -> int:
    """Of memory in this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def empty_region(
    config: LlamaConfig, mesh: Mesh, *, blocks: int, rows: int, width: int, dtype, attention: Attention = "xla"
) -> list[Region]:
    """A region of zeros; see `regions.region_shapes`."""
    shapes = region_shapes(config, mesh, blocks=blocks, rows=rows, width=width, dtype=dtype, attention=attention)
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype, device=x.sharding), shapes)


def _resize(x: jax.Array, blocks: int) -> jax.Array:
    return x[:blocks] if blocks <= x.shape[0] else jnp.pad(x, ((0, blocks - x.shape[0]), *[(0, 0)] * (x.ndim - 1)))


_resize_jit = jax.jit(_resize, static_argnames="blocks")


def resize(region: list[Region], blocks: int) -> list[Region]:
    """The region with more blocks, or fewer; array by array, so that little exists twice at a time."""
    made = []
    while region:
        kv = region.pop(0)
        k = _resize_jit(kv.k, blocks)
        v = _resize_jit(kv.v, blocks)
        made.append(type(kv)(k, v))
        del kv
    return made


def padded_length(length: int, multiple: int) -> int:
    """What a prompt is padded to: the next multiple, and from eight of them on in steps of an eighth or less."""
    units = -(-length // multiple)
    step = 1 << max(units.bit_length() - 4, 0)
    return round_up(units, step) * multiple


def blocks_for(positions: int, width: int) -> int:
    return bucket(max(1, math.ceil(positions / width)))
