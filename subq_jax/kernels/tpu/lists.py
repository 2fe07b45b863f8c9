"""Which blocks the queries of a tile see together, each loaded once for the tile; and which tiles see a block."""

import jax
import jax.numpy as jnp

NONE = jnp.iinfo(jnp.int32).max
NAMES = 128  # tiles' names that are read at a time


def tile_lists(ids, tokens: int, step: int):
    """The union of the blocks of every `tokens` neighbouring queries.

    Args:
      ids: int32 [X, P, J], the blocks that each query sees, -1 for none, in any order and with repeats.
      tokens: queries of a tile.
      step: the lists' room is a multiple of it.

    Returns:
      int32 [X, tiles, 1, 1 + room]: how many blocks, then their ids ascending, then -1.
    """
    rows, padded, slots = ids.shape
    ids = ids.reshape(rows, padded // tokens, slots * tokens)
    ids = jnp.sort(jnp.where(ids < 0, NONE, ids), axis=-1)
    repeat = jnp.pad(ids[..., 1:] == ids[..., :-1], ((0, 0), (0, 0), (1, 0)))
    ids = jnp.sort(jnp.where(repeat, NONE, ids), axis=-1)
    count = (ids != NONE).sum(axis=-1, dtype=jnp.int32)
    ids = jnp.where(ids == NONE, -1, ids)
    ids = jnp.pad(ids, ((0, 0), (0, 0), (0, -ids.shape[-1] % step)), constant_values=-1)
    return jnp.concatenate([count[..., None], ids], axis=-1)[:, :, None]


def tiles_of_blocks(lists, num_blocks: int):
    """The inverse of `tile_lists`.

    Returns:
      runs int32 [X, NB, 1, 2], where each block's tiles begin and end among the names, and
      names int32 [X, pages, 1, NAMES], the tiles of block 0, of block 1, ..., ascending for each.
    """
    ids = lists[:, :, 0, 1:]
    tile = jax.lax.broadcasted_iota(jnp.int32, ids.shape, 1)
    flat = lambda x: x.reshape(x.shape[0], -1)
    block, tile = jax.lax.sort((flat(jnp.where(ids < 0, num_blocks, ids)), flat(tile)), num_keys=1, is_stable=True)
    bounds = jax.vmap(lambda block: jnp.searchsorted(block, jnp.arange(num_blocks + 1)))(block).astype(jnp.int32)
    names = jnp.pad(tile, ((0, 0), (0, -tile.shape[1] % NAMES)))
    runs = jnp.stack([bounds[:, :-1], bounds[:, 1:]], axis=-1)
    return runs[:, :, None], names.reshape(names.shape[0], -1, 1, NAMES)
