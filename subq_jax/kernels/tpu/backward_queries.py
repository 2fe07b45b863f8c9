"""Gradients of queries and gates on the TPU: a tile of queries walks over its list once more, as in `attend.py`.

Weights come from the saved log-sum-exp, so that no running maximum is needed:

    weights = exp(logits - lse)     d_logits = weights * (values . d_out - delta)

    dq^T [H, rows]  +=  keys^T . d_logits / sqrt(H)              turned once, at the end
    d_gates [m, J]  +=  d_logits summed over a block's keys and a token's heads, in the slot that lists the block

Blocks are added one at a time, in ascending order, so that a row's bits do not depend on its neighbours' choices.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from subq_jax.kernels.tpu.attend import specs_of_tile, tile_of
from subq_jax.kernels.tpu.tile import (
    PARALLEL,
    AttendSizes,
    ListedBlocks,
    Slots,
    TileOfQueries,
    beside_each_other,
    product,
)


def backward_queries(q, d_out, stats, blocks, seen, lists, offset, slots: Slots, sizes: AttendSizes):
    """Gradients of the queries and of the gates in `seen`.

    Args:
      q: [X, P, G, H]; d_out: its like.
      stats: float32 [X, tiles, 2, m * G], log-sum-exp and delta of every row.
      blocks, seen, lists, offset, slots, sizes: as in `attend_forward`.

    Returns:
      dq [X, P, G, H] in `q`'s dtype, d_gates float32 [X, P, J].
    """
    (rows, padded, group, head_dim), size, tiles = q.shape, blocks.shape[3], lists.shape[1]
    tokens = padded // tiles
    width, keys = tokens * group, sizes.step(size) * size
    tile = tile_of(width, head_dim)
    whole = lambda x: x.reshape(rows, padded * group, head_dim)
    dq, d_gates = pl.pallas_call(
        functools.partial(_kernel, group=group, slots=slots, kv_heads=rows // offset.shape[0]),
        grid=(rows, tiles),
        in_specs=[*specs_of_tile(lists, tokens, slots), tile, tile,
                  pl.BlockSpec((1, 1, 2, width), lambda x, t: (x, t, 0, 0)), pl.BlockSpec(memory_space=pl.ANY)],
        out_specs=[tile, tile_of(tokens, slots.count)],
        out_shape=[jax.ShapeDtypeStruct((rows, padded * group, head_dim), q.dtype),
                   jax.ShapeDtypeStruct((rows, padded, slots.count), jnp.float32)],
        scratch_shapes=[
            pltpu.VMEM((sizes.depth, 2, keys, head_dim), q.dtype),
            pltpu.VMEM((head_dim, width), jnp.float32),
            pltpu.SemaphoreType.DMA((sizes.depth,))],
        compiler_params=PARALLEL,
        name="backward_queries",
    )(lists, offset, seen, whole(q), whole(d_out), stats, blocks)
    return dq.reshape(q.shape), d_gates


def _kernel(list_ref, offset_ref, seen_ref, q_ref, d_out_ref, stats_ref, blocks_ref, dq_ref, d_gates_ref, ring, acc,
            arrived, *, group: int, slots: Slots, kv_heads: int):
    x, t = pl.program_id(0), pl.program_id(1)
    tokens, head_dim = seen_ref.shape[1], q_ref.shape[2]
    tile = TileOfQueries(seen_ref[0], offset_ref[x // kv_heads], t * tokens, group, slots)
    listed = ListedBlocks(list_ref, ring, arrived, *beside_each_other(blocks_ref.at[x]))
    lse, delta = stats_ref[0, 0, 0:1], stats_ref[0, 0, 1:2]
    acc[...] = jnp.zeros_like(acc)

    def body(blocks, keys, values, d_gates):
        products, d_weights = product(keys, q_ref[0], (1, 1)), product(values, d_out_ref[0], (1, 1))
        dq = acc[...]
        for n, block in enumerate(blocks):
            part = listed.part(n)
            weights = jnp.exp(tile.logits(products[part], block, head_dim) - lse)
            d_logits = weights * (d_weights[part] - delta)
            dq += product(keys[part], (d_logits * head_dim**-0.5).astype(keys.dtype), (0, 0))
            d_gate = tile.over_heads(jnp.sum(d_logits, axis=0, keepdims=True))
            d_gates += jnp.where(tile.lists(block), d_gate, 0.0)
        acc[...] = dq
        return d_gates

    d_gates_ref[0] = listed.run(body, jnp.zeros((tokens, slots.count)))
    dq_ref[0] = acc[...].T.astype(dq_ref.dtype)
