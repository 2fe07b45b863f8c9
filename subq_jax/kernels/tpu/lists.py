"""Which blocks the queries of a tile see together: each block is then loaded once for the tile."""

import jax.numpy as jnp

NONE = jnp.iinfo(jnp.int32).max


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
