"""What the TPU's kernels move and multiply, and the least time that a chip's published rates leave for it.

Estimates: nothing here was measured. A tile of m queries reads the union of its queries' blocks; `overlap` is that
union's size over one query's choice, from 1 (all agree) to m (none do).
"""

import math
from typing import NamedTuple

from subq_jax.kernels.tpu.tile import SUBLANES, AttendSizes, Slots
from subq_jax.selection.config import SelectionConfig


class Chip(NamedTuple):
    """Published rates of a chip: dense bfloat16 FLOP/s, bytes/s of HBM, bytes of HBM, devices that JAX shows of it."""

    flops: float
    bandwidth: float
    memory: float
    devices: int = 1


# https://docs.cloud.google.com/tpu/docs/tpu7x and /v5e, read in November 2026.
CHIPS = {
    "v5e": Chip(197e12, 819e9, 16 * 2**30),
    "v5p": Chip(459e12, 2765e9, 95 * 2**30),
    "v6e": Chip(918e12, 1638e9, 32 * 2**30),
    "tpu7x": Chip(2307e12, 7380e9, 192 * 2**30, devices=2),
}


class Work(NamedTuple):
    """FLOPs done and bytes moved between HBM and a core."""

    flops: float
    bytes: float

    def seconds(self, chip: Chip) -> float:
        """The least time on a whole chip."""
        return max(self.flops / chip.flops, self.bytes / chip.bandwidth)


def kernel_work(config: SelectionConfig, length: int, heads: int, kv_heads: int, head_dim: int, router_dim: int,
                overlap: float, itemsize: int = 2) -> dict[str, Work]:
    """The work of each kernel for one causal sequence of `length` tokens, by kernel."""
    sizes, group, size = AttendSizes(), heads // kv_heads, config.block_size
    tokens, blocks = sizes.tokens(group), length // size
    rows, tiles = tokens * group, kv_heads * length // tokens
    always = config.sink_blocks + config.local_blocks
    visited = tiles * min(blocks / 2, overlap * config.num_blocks + always)
    product = 2.0 * rows * size * head_dim  # FLOPs of one product of a tile with a block
    row_bytes, key_bytes = rows * head_dim * itemsize, 2 * size * head_dim * itemsize
    line = 4 * tokens * Slots(config.num_blocks + always, always, router_dim).lanes
    choice = 8.0 * math.ceil(config.num_blocks / SUBLANES) * SUBLANES  # ids and scores of a query
    return {
        "choose": Work(kv_heads * length * blocks * router_dim, kv_heads * length * (router_dim * itemsize + choice)),
        "attend": Work(2 * product * visited, visited * key_bytes + tiles * (2 * row_bytes + line)),
        "backward queries": Work(3 * product * visited, visited * key_bytes + tiles * (3 * row_bytes + 2 * line)),
        "backward keys": Work(4 * product * visited, visited * (2 * row_bytes + line + 8 * rows)
                              + 2 * kv_heads * blocks * key_bytes),
    }


def dense_work(length: int, heads: int, head_dim: int, itemsize: int = 2, block: int = 1024) -> dict[str, Work]:
    """The work of dense causal attention whose tiles of `block` queries read all keys before them, head by head.

    The backward pass computes the logits and the gradient of the weights twice, for queries and for keys.
    """
    product = heads * length * length * head_dim  # FLOPs of one product of all queries with the keys before them
    once = heads * length * head_dim * itemsize
    reread = once * length / block  # keys and values of half the sequence for every tile
    return {"dense forward": Work(2.0 * product, reread + 2 * once),
            "dense backward": Work(7.0 * product, 2 * reread + 6 * once)}
