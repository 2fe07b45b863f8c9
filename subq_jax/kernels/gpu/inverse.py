"""Which tokens see a block: the inverse of the tokens' lists, cut into pieces of bounded work."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from subq_jax.kernels.gpu.lists import TokenLists

MIN_PIECE, MAX_PIECE = 512, 4096  # pairs of a full piece
PIECES_EACH = 4  # of a block of threads at least, where pieces hold more than the least


class InverseLists(NamedTuple):
    """Tokens of block 0, of block 1, ..., ascending for each.

    `tokens` int32, `gates` and `weights` float32 [X, P * J] are pairs of a token and a block it sees. `pieces` int32
    [X, pieces, 4] are (block, begin, edge, end): the pairs `begin` to `end` belong to `block`, and only those before
    `edge` may stand in it. `first` int32 [X, NB + 1] is the first piece of every block, and the number of pieces.
    """

    tokens: jax.Array
    gates: jax.Array
    weights: jax.Array
    pieces: jax.Array
    first: jax.Array


def inverse_lists(lists: TokenLists, weights, num_blocks: int, block: int, ctas: int) -> InverseLists:
    """Sorts the pairs of a token and a block it sees by block.

    A block that every token sees is many pieces, so that none dominates; short contexts are cut into smaller ones, so
    that all blocks of threads have some.

    Args:
      lists: what every token sees.
      weights: float32 [X, P, J], any number for each of them, carried along.
      num_blocks: blocks that there are.
      block: positions of a block.
      ctas: blocks of threads that share the pieces.
    """
    rows, padded, slots = lists.ids.shape
    piece_size = min(1 << max(MIN_PIECE, lists.ids.size // (PIECES_EACH * ctas)).bit_length() - 1, MAX_PIECE)
    flat = lambda x: x.reshape(rows, padded * slots)
    pairs = jnp.broadcast_to(jnp.arange(padded * slots, dtype=jnp.int32)[None], (rows, padded * slots))
    key, pairs = jax.lax.sort(
        (flat(jnp.where(lists.ids < 0, num_blocks, lists.ids)), pairs), num_keys=1, is_stable=True)
    search = functools.partial(jnp.searchsorted, method="scan_unrolled")  # one program, not one for every halving
    bounds = jax.vmap(lambda key: search(key, jnp.arange(num_blocks + 1)))(key).astype(jnp.int32)
    begin, end = bounds[:, :-1], bounds[:, 1:]
    first = jnp.pad(jnp.cumsum(-(-(end - begin) // piece_size), axis=1, dtype=jnp.int32), ((0, 0), (1, 0)))

    number = jnp.arange(num_blocks + padded * slots // piece_size, dtype=jnp.int32)
    owner = jax.vmap(lambda first: search(first, number, side="right"))(first).astype(jnp.int32) - 1
    owner = jnp.minimum(owner, num_blocks - 1)
    of_owner = lambda x: jnp.take_along_axis(x, owner, axis=1)
    last = of_owner(end)
    # Numbers go on behind the last piece; counted in `piece_size` pairs each, they would overflow.
    nth = jnp.minimum(number[None] - of_owner(first[:, :-1]), of_owner(jnp.diff(first, axis=1)))
    start = jnp.minimum(of_owner(begin) + nth * piece_size, last)
    stop = jnp.minimum(start + piece_size, last)
    edge = jnp.clip(of_owner(begin) + block, start, stop)  # tokens ascend, and at most `block` of them stand in it
    take = lambda x: jnp.take_along_axis(flat(x), pairs, axis=1)
    return InverseLists(pairs // slots, take(lists.gates), take(weights),
                        jnp.stack([owner, start, edge, stop], axis=-1), first)
