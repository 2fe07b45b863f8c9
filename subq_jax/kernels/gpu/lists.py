"""Which blocks the tokens of a tile see together, each listed once, with every token's gate for it."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from subq_jax.kernels.gpu.tile import UNSEEN, for_each_item
from subq_jax.kernels.xla.layout import repeat_heads
from subq_jax.kernels.xla.selective import local_ids, sink_ids
from subq_jax.selection.config import SelectionConfig
from subq_jax.selection.visibility import QueryPlace


class TokenLists(NamedTuple):
    """What every token sees: block ids descending, then -1, and their gates, [X, P, J] each."""

    ids: jax.Array
    gates: jax.Array


class TileLists(NamedTuple):
    """What the tokens of every tile see together.

    `entries` int32 [X, tiles] is how many blocks, a multiple of the blocks of a step; `blocks` int32 [X, tiles, room]
    names them, descending; `gates` float32 [X, tiles, room * tokens] is each token's gate for them, `UNSEEN` for none.
    `at` int32 [X, P, J] is where every block of a token stands in its tile's list.
    """

    entries: jax.Array
    blocks: jax.Array
    gates: jax.Array
    at: jax.Array


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


def tile_lists(lists: TokenLists, tokens: int, together: int, num_blocks: int, ctas: int) -> TileLists:
    """Merges the lists of every `tokens` neighbours.

    Args:
      together: entries come in multiples of it; the last are filled up with a block that nobody sees.
      num_blocks: blocks that there are.
      ctas: blocks of threads.
    """
    (count, padded, slots), tiles = lists.ids.shape, lists.ids.shape[1] // tokens
    room = -(-min(tokens * slots, num_blocks) // together) * together
    results = [((count, tiles), jnp.int32), ((count, tiles, room), jnp.int32),
               ((count, tiles, room * tokens), jnp.float32), ((count, padded, slots), jnp.int32)]
    ctas = min(ctas, count * tiles)
    merge = plgpu.kernel(
        functools.partial(_merge, tokens=tokens, together=together, ctas=ctas),
        out_type=[jax.ShapeDtypeStruct(*x) for x in results], grid=(ctas,), grid_names=("cta",))
    return TileLists(*merge(*lists))


def gates_of_tokens(x, at, tokens: int):
    """Numbers that stand as `TileLists.gates` do, by token: [X, P, J] of x [X, tiles, room * tokens]."""
    rows, padded, slots = at.shape
    token = jnp.arange(padded, dtype=jnp.int32)[None, :, None] % tokens
    place = (at * tokens + token).reshape(rows, padded // tokens, tokens * slots)
    return jnp.take_along_axis(x, place, axis=2, mode="clip").reshape(at.shape)


def _merge(ids, gates, entries, blocks, tile_gates, at, *, tokens: int, together: int, ctas: int):
    """One warpgroup merges the sorted lists of a tile's tokens as one thread would; a tile takes microseconds."""
    slots = ids.shape[2]

    def head(x, token, cursor):
        inside = cursor < slots
        return jnp.where(inside, ids[x, token, jnp.minimum(cursor, slots - 1)], -1)

    def merge(x, tile, _, carry):
        mine = [tile * tokens + j for j in range(tokens)]

        def step(state):
            n, cursors, heads = state
            block = functools.reduce(jnp.maximum, heads)
            blocks[x, tile, n] = block
            later = []
            for j, (token, cursor, own) in enumerate(zip(mine, cursors, heads, strict=True)):
                seen = own == block
                slot = jnp.minimum(cursor, slots - 1)
                tile_gates[x, tile, n * tokens + j] = jnp.where(seen, gates[x, token, slot], jnp.float32(UNSEEN))

                @pl.when(seen)
                def _(token=token, slot=slot, n=n):
                    at[x, token, slot] = n

                later.append(cursor + seen.astype(jnp.int32))
            return n + 1, tuple(later), tuple(head(x, t, c) for t, c in zip(mine, later, strict=True))

        start = tuple(jnp.int32(0) for _ in mine)
        n, _, _ = lax.while_loop(lambda s: functools.reduce(jnp.maximum, s[2]) >= 0, step,
                                 (jnp.int32(0), start, tuple(head(x, token, jnp.int32(0)) for token in mine)))
        whole = lax.div(jnp.maximum(n, 1) + (together - 1), jnp.int32(together)) * together

        def fill(n, carry):
            blocks[x, tile, n] = jnp.int32(0)
            for j in range(tokens):
                tile_gates[x, tile, n * tokens + j] = jnp.float32(UNSEEN)
            return carry

        lax.fori_loop(n, whole, fill, None)
        entries[x, tile] = whole
        return carry

    for_each_item(*entries.shape, ctas, merge, None)
