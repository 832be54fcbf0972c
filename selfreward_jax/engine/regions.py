"""A region of the cache in either of its forms: `KV`, which XLA reads, or `TokenKV`, which the TPU kernels read.

Programs follow the form of the regions that they are given: what was chosen when these were made holds for them all.
"""

from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from selfreward_jax.core.mesh import platform
from selfreward_jax.engine import pallas_decode, pallas_prefill
from selfreward_jax.engine.attention import KV, Partial, attend
from selfreward_jax.engine.layout import REPLICA, TENSOR, splits_kv
from selfreward_jax.engine.pallas_decode import TokenKV
from selfreward_jax.llama.config import LlamaConfig

Attention = Literal["xla", "pallas"]
Region = KV | TokenKV  # one layer's
Form = TypeVar("Form", bound=Region)


def choose_attention(name: str, platform: str) -> Attention:
    """What `auto` means on a platform: the kernels on TPU, plain XLA elsewhere."""
    if name == "auto":
        return "pallas" if platform == "tpu" else "xla"
    return "pallas" if name == "pallas" else "xla"


def _spec(config: LlamaConfig, mesh: Mesh | AbstractMesh, form: type, *, shared: bool = False) -> PartitionSpec:
    """Rows are split over the replicas unless all read the same, heads over the tensor devices where they divide."""
    rows, heads = None if shared else REPLICA, TENSOR if splits_kv(config, mesh) else None
    return PartitionSpec(None, rows, None, heads) if form is TokenKV else PartitionSpec(None, rows, heads)


def region_shapes(
    config: LlamaConfig,
    mesh: Mesh,
    *,
    blocks: int,
    rows: int,
    width: int,
    dtype,
    attention: Attention = "xla",
    shared: bool = False,
) -> list[Region]:
    """Shapes and shardings of a region: `rows` rows in all of `blocks` blocks of `width` positions, layer by layer."""
    K, E = config.num_kv_heads, config.head_dim
    form = TokenKV if attention == "pallas" else KV
    k, v = ((width, K * E),) * 2 if form is TokenKV else ((K, E, width), (K, width, E))
    sharding = NamedSharding(mesh, _spec(config, mesh, form, shared=shared))

    def shape(last) -> Any:
        return jax.ShapeDtypeStruct((blocks, rows, *last), dtype, sharding=sharding)

    return [form(shape(k), shape(v)) for _ in range(config.num_layers)]


def constrain(region: Form, config: LlamaConfig, *, shared: bool = False) -> Form:
    """Keeps a region laid out over the mesh as it was made, where one is set."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return region
    spec = _spec(config, mesh, type(region), shared=shared)
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, spec), region)


def store(region: Region, made: KV, entries_DP: jax.Array) -> Region:
    """Puts new prompts [1, D * P, ...] into the entries of their replicas; an entry out of range is left out."""
    if isinstance(region, KV):
        return KV(_store(region.k, made.k, entries_DP, 4), _store(region.v, made.v, entries_DP, 3))
    k, v = jnp.moveaxis(made.k, 4, 2), jnp.moveaxis(made.v, 3, 2)
    k, v = (x.reshape(*x.shape[:3], -1) for x in (k, v))
    return TokenKV(_store(region.k, k, entries_DP, 2), _store(region.v, v, entries_DP, 2))


def _store(region: jax.Array, made: jax.Array, entries_DP: jax.Array, axis: int) -> jax.Array:
    D = entries_DP.shape[0]
    B, X, width = region.shape[0], region.shape[1], region.shape[axis]
    made = made[0]
    fill = B * width - made.shape[axis - 1]
    made = jnp.pad(made, [(0, fill if n == axis - 1 else 0) for n in range(made.ndim)])
    # Split the positions into the region's blocks: [P, K, ., B, W, .] to [B, P, K, ...].
    made = made.reshape(*made.shape[: axis - 1], B, width, *made.shape[axis:])
    made = jnp.moveaxis(made, axis - 1, 0).reshape(B, D, -1, *region.shape[2:])
    put = jax.vmap(lambda old, new, at: old.at[:, at].set(new, mode="drop"), in_axes=(1, 1, 0), out_axes=1)
    return put(region.reshape(B, D, X // D, *region.shape[2:]), made, entries_DP).reshape(region.shape)


@jax.named_scope("attention")
def attend_prompts(
    config: LlamaConfig,
    q_PTKGE: jax.Array,
    k_PTKE: jax.Array,
    v_PTKE: jax.Array,
    prefix: KV | None,
    prefix_length: jax.Array,
    *,
    shared: bool,
) -> jax.Array:
    """`pallas_prefill.attend_prompts` on every device for its own prompts, or for all where they are `shared`."""

    def local(*arrays):
        return pallas_prefill.attend_prompts(*arrays, interpret=_interpreted())

    arrays = q_PTKGE, k_PTKE, v_PTKE, prefix, prefix_length
    if not (mesh := _shared_by()):
        return local(*arrays)
    before = _spec(config, mesh, KV, shared=True)
    split = PartitionSpec(None if shared else REPLICA, None, before[2])
    specs = split, split, split, before, PartitionSpec()
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=split, check_vma=False)(*arrays)


@jax.named_scope("attention")
def attend_rows(config: LlamaConfig, q_XQKGE: jax.Array, region: Region, lengths_X: jax.Array) -> Partial:
    """Attention of queries over the first `lengths_X` positions of their row; leaves are [X, Q, K, G, .]."""
    if isinstance(region, KV):
        return attend(q_XQKGE, region, lengths_X)

    def local(q, region, lengths):
        return pallas_decode.attend_used(q, region, lengths, interpret=_interpreted())

    if not (mesh := _shared_by()):
        return local(q_XQKGE, region, lengths_X)
    kv, rows = _spec(config, mesh, TokenKV), PartitionSpec(REPLICA)
    heads = PartitionSpec(REPLICA, None, kv[3])
    run = jax.shard_map(local, mesh=mesh, in_specs=(heads, kv, rows), out_specs=heads, check_vma=False)
    return run(q_XQKGE, region, lengths_X)


@jax.named_scope("attention")
def append_and_attend(
    config: LlamaConfig,
    q_RKGE: jax.Array,
    k_RKE: jax.Array,
    v_RKE: jax.Array,
    region: Region,
    count_R: jax.Array,
    going_R: jax.Array,
) -> tuple[Region, Partial]:
    """Writes each slot's newest token, its `count_R`-th, and attends over all of them; leaves are [R, K, G, .].

    Args:
      going_R: whether the slot goes on; of one that doesn't, nobody reads the result, nor what follows its tokens.
    """
    place_R = count_R - 1
    if isinstance(region, KV):
        blocks, width = region.k.shape[0], region.k.shape[4]
        # A slot that has ended writes past the end of the array, where nothing is kept.
        at, offset_R = jnp.where(going_R, place_R // width, blocks), place_R % width
        rows = jnp.arange(len(count_R))
        mine = KV(
            region.k.at[at, rows, :, :, offset_R].set(k_RKE.astype(region.k.dtype), mode="drop"),
            region.v.at[at, rows, :, offset_R].set(v_RKE.astype(region.v.dtype), mode="drop"),
        )
        mine = constrain(mine, config)
        return mine, jax.tree.map(lambda x: x[:, 0], attend(q_RKGE[:, None], mine, count_R))

    def local(q, k, v, region, place):
        return pallas_decode.append_and_attend(q, k, v, region, place, interpret=_interpreted())

    if not (mesh := _shared_by()):
        return local(q_RKGE, k_RKE, v_RKE, region, place_R)
    kv, rows = _spec(config, mesh, TokenKV), PartitionSpec(REPLICA)
    heads = PartitionSpec(REPLICA, kv[3])
    run = jax.shard_map(
        local, mesh=mesh, in_specs=(heads, heads, heads, kv, rows), out_specs=(kv, heads), check_vma=False
    )
    return run(q_RKGE, k_RKE, v_RKE, region, place_R)


def _shared_by() -> AbstractMesh | None:
    """The mesh whose devices each need their part of a kernel's arrays, which the compiler can't divide."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.size == 1 else mesh


def _interpreted() -> bool:
    """Whether a kernel must be interpreted, as anywhere but on TPU."""
    return platform() != "tpu"
