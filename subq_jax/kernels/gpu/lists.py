"""Which blocks the tokens of a tile see together, each listed once, with every token's gate for it."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from subq_jax.kernels.gpu.tile import STEP_KEYS, UNSEEN, WARPS, WORKERS, TileShape, for_each_item, stages_of
from subq_jax.kernels.xla.layout import repeat_heads
from subq_jax.kernels.xla.selective import local_ids, sink_ids
from subq_jax.selection.config import SelectionConfig
from subq_jax.selection.visibility import QueryPlace

RESIDENT = 16  # blocks of threads that share a multiprocessor, each waiting for memory most of the time
ALIKE = 8  # steps that a warp takes without asking whether any is left


class TokenLists(NamedTuple):
    """What every token sees: block ids descending, then -1, and their gates, [X, P, J] each."""

    ids: jax.Array
    gates: jax.Array


class TileLists(NamedTuple):
    """What the tokens of every tile see together.

    `entries` int32 [X, tiles] is how many blocks, a multiple of the blocks of a step; `blocks` int32 [X, tiles, room]
    names them, descending; `gates` float32 [X, tiles, room * tokens] is each token's gate for them, `UNSEEN` for none.
    `at` int32 [X, P, J] is where every block of a token stands in its tile's list. `steps` int32 [X, tiles, workers] is
    how many steps a worker takes, and `own` int32 [X, tiles, workers, room] which: those that one of its tokens lists,
    the first, and others so that no two are further apart than the forward
    pass allows.
    """

    entries: jax.Array
    blocks: jax.Array
    gates: jax.Array
    at: jax.Array
    steps: jax.Array
    own: jax.Array


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


def tile_lists(lists: TokenLists, tokens: int, block: int, num_blocks: int, ctas: int) -> TileLists:
    """Merges the lists of every `tokens` neighbours.

    Args:
      block: positions of a block. The last step is filled up with blocks that nobody sees.
      num_blocks: blocks that there are.
      ctas: blocks of threads.
    """
    (count, padded, slots), tiles = lists.ids.shape, lists.ids.shape[1] // tokens
    together, leap = TileShape(tokens, block, STEP_KEYS).together, stages_of(block) - 1
    steps = -(-min(tokens * slots, num_blocks) // (together * ALIKE)) * ALIKE
    room = steps * together
    results = [((count, tiles), jnp.int32), ((count, tiles, room), jnp.int32),
               ((count, tiles, room * tokens), jnp.float32), ((count, padded, slots), jnp.int32),
               ((count, tiles, WORKERS), jnp.int32), ((count, tiles, WORKERS, steps), jnp.int32)]
    ctas = min(ctas * RESIDENT, -(-count * tiles // WARPS))
    merge = plgpu.kernel(
        functools.partial(_merge, tokens=tokens, together=together, leap=leap, ctas=ctas),
        out_type=[jax.ShapeDtypeStruct(*x) for x in results], grid=(ctas,), grid_names=("cta",))
    return TileLists(*merge(*lists))


def gates_of_tokens(x, at, tokens: int):
    """Numbers that stand as `TileLists.gates` do, by token: [X, P, J] of x [X, tiles, room * tokens]."""
    rows, padded, slots = at.shape
    token = jnp.arange(padded, dtype=jnp.int32)[None, :, None] % tokens
    place = (at * tokens + token).reshape(rows, padded // tokens, tokens * slots)
    return jnp.take_along_axis(x, place, axis=2, mode="clip").reshape(at.shape)


def _merge(ids, gates, entries, blocks, tile_gates, at, steps, own, *, tokens: int, together: int, leap: int,
           ctas: int):
    """Every warp merges the sorted lists of its tiles' tokens as one thread would; a tile takes microseconds."""
    (slots, each), number = (ids.shape[2], tokens // WORKERS), jnp.int32

    def read(x, token, cursor):
        return jnp.where(cursor < slots, ids[x, token, jnp.minimum(cursor, slots - 1)], -1)

    def entry(x, tile, n, cursors, heads):
        """Writes the next block and its gates; -> the lists behind it, whether there was one, and for which tokens."""
        block = functools.reduce(jnp.maximum, heads)
        blocks[x, tile, n] = jnp.maximum(block, 0)
        some, theirs, after = block >= 0, [], []
        for j, (cursor, head) in enumerate(zip(cursors, heads, strict=True)):
            token, slot = tile * tokens + j, jnp.minimum(cursor, slots - 1)
            here = some & (head == block)
            tile_gates[x, tile, n * tokens + j] = jnp.where(here, gates[x, token, slot], jnp.float32(UNSEEN))

            @pl.when(here)
            def _(token=token, slot=slot):
                at[x, token, slot] = n

            theirs.append(here.astype(number))
            after.append(cursor + here.astype(number))
        heads = tuple(read(x, tile * tokens + j, cursor) for j, cursor in enumerate(after))
        return tuple(after), heads, some.astype(number), theirs

    def step(s, state, x, tile):
        cursors, heads, listed, last, taken = state
        alive, seen = number(0), [number(0)] * WORKERS
        for j in range(together):
            cursors, heads, some, theirs = entry(x, tile, s * together + j, cursors, heads)
            listed, alive = listed + some, alive | some
            seen = [functools.reduce(jnp.bitwise_or, theirs[w * each : (w + 1) * each], seen[w])
                    for w in range(WORKERS)]
        for w in range(WORKERS):
            own[x, tile, w, taken[w]] = s
        takes = [(seen[w] > 0) | (s == 0) | ((alive > 0) & (s - last[w] == leap)) for w in range(WORKERS)]
        last = tuple(jnp.where(mine, s, before) for mine, before in zip(takes, last, strict=True))
        taken = tuple(count + mine.astype(number) for mine, count in zip(takes, taken, strict=True))
        return cursors, heads, listed, last, taken

    def merge(x, tile, _, carry):
        def some_steps(i, state):
            left = functools.reduce(jnp.maximum, state[1]) >= 0
            first, here = i * ALIKE, jnp.where(left | (i == 0), number(ALIKE), number(0))
            return lax.fori_loop(first, first + here, functools.partial(step, x=x, tile=tile), state)

        zeros = lambda n: (number(0),) * n
        heads = tuple(read(x, tile * tokens + j, number(0)) for j in range(tokens))
        start = zeros(tokens), heads, number(0), zeros(WORKERS), zeros(WORKERS)
        _, _, listed, _, taken = lax.fori_loop(0, own.shape[3] // ALIKE, some_steps, start)
        entries[x, tile] = lax.div(jnp.maximum(listed, 1) + (together - 1), number(together)) * together
        for w in range(WORKERS):
            steps[x, tile, w] = taken[w]
        return carry

    plgpu.warp_map(lambda warp: for_each_item(*entries.shape, ctas, merge, None, warp) and None)
