"""Which blocks every token sees, with their gates, and which those of a tile see together."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu

from subq_jax.kernels.gpu.persistent import WARPS, for_each_item
from subq_jax.kernels.gpu.warps import WarpTile, pack_block
from subq_jax.kernels.xla.layout import repeat_heads
from subq_jax.selection.config import SelectionConfig
from subq_jax.selection.visibility import QueryPlace, local_ids, sink_ids

RESIDENT = 16  # blocks of threads that share a multiprocessor, each waiting for memory most of the time
UNROLLED = 8  # entries that a warp makes without asking whether any is left


class TokenLists(NamedTuple):
    """What every token sees: block ids descending, then -1, and their gates, [X, P, J] each."""

    ids: jax.Array
    gates: jax.Array


class TileBlocks(NamedTuple):
    """What the tokens of every tile see together: `entries` int32 [X, tiles] says how many blocks, at least 1, and
    `blocks` int32 [X, tiles, room] names them, descending, each with the warps that see it, see `pack_block`."""

    entries: jax.Array
    blocks: jax.Array


def token_lists(ids, scores, place: QueryPlace, config: SelectionConfig, kv_heads: int) -> TokenLists:
    """Local blocks, chosen ones and sinks in one list.

    Args:
      ids: int32 [X, P, M], the chosen blocks descending, then -1.
      scores: float32 [X, P, M], their gates.
      place: where the tokens stand; fields [B, P].
    """
    local, sinks = config.local_blocks, config.sink_blocks
    ids = jnp.where(repeat_heads(place.exists, kv_heads)[..., None], ids, -1)
    near = repeat_heads(local_ids(place, config), kv_heads)
    chosen = (ids >= 0).sum(axis=-1, keepdims=True, dtype=jnp.int32)
    far = jnp.full((*ids.shape[:2], sinks), -1, jnp.int32)
    listed = jnp.concatenate([near, ids, far], axis=-1)
    gates = jnp.concatenate([jnp.zeros(near.shape), jnp.where(ids >= 0, scores, 0.0), jnp.zeros(far.shape)], axis=-1)
    slot = jnp.arange(listed.shape[-1], dtype=jnp.int32)[None, None]
    apart = repeat_heads(sink_ids(place, config), kv_heads)  # ascending; where one is -1, so are the later ones
    known = (apart >= 0).sum(axis=-1, keepdims=True, dtype=jnp.int32)
    for j in range(sinks):
        listed = jnp.where((slot == local + chosen + known - 1 - j) & (j < known), apart[..., j : j + 1], listed)
    return TokenLists(listed, gates)


def tile_blocks(ids, shape: WarpTile, num_blocks: int, ctas: int) -> TileBlocks:
    """Merges the lists of a tile's tokens.

    Args:
      ids: int32 [X, P, J], every token's blocks, descending, then -1.
      shape: of the tiles.
      num_blocks: blocks that there are.
      ctas: blocks of threads.
    """
    count, tiles, slots = ids.shape[0], -(-ids.shape[1] // shape.tokens), ids.shape[2]
    room = -(-min(shape.tokens * slots, num_blocks) // UNROLLED) * UNROLLED
    results = [jax.ShapeDtypeStruct((count, tiles), jnp.int32), jax.ShapeDtypeStruct((count, tiles, room), jnp.int32)]
    ctas = min(ctas * RESIDENT, -(-count * tiles // WARPS))
    merge = plgpu.kernel(functools.partial(_unite, shape=shape, ctas=ctas), out_type=results, grid=(ctas,),
                         grid_names=("cta",))
    return TileBlocks(*merge(ids))


def _unite(ids, entries, blocks, *, shape: WarpTile, ctas: int):
    """Every warp merges the sorted lists of its tiles' tokens as one thread would."""
    (padded, slots), number = ids.shape[1:], jnp.int32

    def merge(x, tile, _, carry):
        start = shape.start(tile, padded)

        def read(j, cursor):
            return jnp.where(cursor < slots, ids[x, start + j, jnp.minimum(cursor, slots - 1)], -1)

        def entry(n, state):
            cursors, heads, listed = state
            block = functools.reduce(jnp.maximum, heads)
            some = block >= 0
            sees = [(head == block) & some for head in heads]
            warps = [jnp.where(seen, number(shape.warps_of(j)), 0) for j, seen in enumerate(sees)]
            blocks[x, tile, n] = pack_block(jnp.maximum(block, 0), functools.reduce(jnp.bitwise_or, warps))
            cursors = tuple(cursor + seen.astype(number) for cursor, seen in zip(cursors, sees, strict=True))
            return cursors, tuple(read(j, cursor) for j, cursor in enumerate(cursors)), listed + some.astype(number)

        def some_entries(i, state):
            left = (functools.reduce(jnp.maximum, state[1]) >= 0) | (i == 0)
            begin = i * UNROLLED
            return lax.fori_loop(begin, begin + jnp.where(left, number(UNROLLED), number(0)), entry, state)

        cursors = (number(0),) * shape.tokens
        state = cursors, tuple(read(j, cursor) for j, cursor in enumerate(cursors)), number(0)
        entries[x, tile] = jnp.maximum(lax.fori_loop(0, blocks.shape[2] // UNROLLED, some_entries, state)[2], 1)
        return carry

    plgpu.warp_map(lambda warp: for_each_item(*entries.shape, ctas, merge, None, warp) and None)
