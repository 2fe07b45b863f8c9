"""Attention of a few queries to the blocks that they see, straight from the caches of keys and values, on Hopper.

A block of threads takes some of one token's blocks and softmaxes over them alone; what the blocks of threads of a token
found is merged by log-sum-exp. One token spreads over as many multiprocessors as it sees blocks, many tokens keep all
of their blocks together:

    token 0   | own | local | chosen ... | sink |        splits of `each` blocks
    token 1   | own | local | chosen ... | sink |

Nothing is laid out beforehand: the kernel works out from a token's place and choice which block is next, and copies it
from where it is cached. Split softmaxes are Flash-Decoding's (Dao et al. 2023).
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from subq_jax.kernels.gpu import tensor_core
from subq_jax.kernels.gpu.limits import DENSE_BLOCK, MULTIPROCESSORS
from subq_jax.kernels.gpu.persistent import PRODUCT_ROWS, matrix
from subq_jax.kernels.gpu.registers import by_row
from subq_jax.kernels.gpu.softmax import LOG2E, hide_later, softmax_end, softmax_start, softmax_step
from subq_jax.kernels.xla.dense import whole_attention
from subq_jax.kernels.xla.layout import fold, fold_queries, repeat_heads, unfold_queries
from subq_jax.kernels.xla.tile import NO_KEYS, merge_two
from subq_jax.selection.config import SelectionConfig
from subq_jax.selection.visibility import QueryPlace, clear_absent_keys

STAGES, RESIDENT = 2, 2  # blocks in shared memory; blocks of threads that then fit a multiprocessor


def attend_cache(q, k, v, chosen, scores, place: QueryPlace, config: SelectionConfig, multiprocessors: int):
    """One softmax over the sinks, the local and the chosen blocks of every query.

    Args:
      q: [B, T, N, H].
      k, v: the caches [B, S, K, H], S whole blocks; absent keys may hold anything.
      chosen: int32 [B, K, T, M], candidates in any order, -1 for none.
      scores: float32 [B, K, T, M], their gates.
      place: where the queries stand; fields [B, T].
      config: of the blocks.
      multiprocessors: of the GPU.

    Returns:
      float32 [X, T, G, H]; 0 for queries that see nothing.
    """
    (batch, length, kv_heads, head_dim), queries = k.shape, q.shape[1]
    rows = fold_queries(q, kv_heads)
    count, group = rows.shape[0] * queries, rows.shape[2]
    rows = jnp.pad(rows, ((0, 0), (0, 0), (0, -group % 8), (0, 0))).reshape(count, -1, head_dim)
    where = jnp.stack([place.position, place.first_block, place.exists.astype(jnp.int32)], axis=-1)
    where = repeat_heads(where, kv_heads).reshape(count, 3)

    slots = config.local_blocks + config.num_blocks + config.sink_blocks
    each = -(-slots // max(1, min(slots, RESIDENT * multiprocessors // count)))
    splits = -(-slots // each)
    scratch = {
        "q_buffer": matrix(PRODUCT_ROWS, head_dim, dtype=q.dtype),
        "k_ring": matrix(STAGES, config.block_size, head_dim, dtype=q.dtype),
        "v_ring": matrix(STAGES, config.block_size, head_dim, dtype=q.dtype),
        "out_buffer": matrix(PRODUCT_ROWS, head_dim, dtype=jnp.float32),
        "lse_buffer": plgpu.SMEM((PRODUCT_ROWS,), jnp.float32),
        "q_full": plgpu.Barrier(),
        "full": plgpu.Barrier(num_arrivals=2, num_barriers=STAGES),
        "free": plgpu.Barrier(num_barriers=STAGES),
    }
    kernel = functools.partial(_kernel, config=config, each=each, queries=queries)
    of_split = count, splits, rows.shape[1]
    out, lse = plgpu.kernel(
        lambda *refs: pl.run_scoped(functools.partial(kernel, *refs), **scratch),
        out_type=[jax.ShapeDtypeStruct((*of_split, head_dim), jnp.float32),
                  jax.ShapeDtypeStruct(of_split, jnp.float32)],
        grid=(count * splits,), grid_names=("part",),
        compiler_params=plgpu.CompilerParams(approx_math=True, unsafe_no_auto_barriers=True),
    )(rows, *(x.reshape(batch, length, -1) for x in (k, v)), *(fold(x).reshape(count, -1) for x in (chosen, scores)),
      where)
    return _merge_splits(out, lse)[:, :group].reshape(-1, queries, group, head_dim)


def _merge_splits(out, lse):
    """What the splits [X, splits, G, H] of a token found, as one: [X, G, H], by one reduction, that is one program."""
    parts, nothing = (out, jnp.broadcast_to(lse[..., None], out.shape)), (jnp.float32(0), jnp.float32(NO_KEYS))
    return lax.reduce(parts, nothing, merge_two, dimensions=(1,))[0]


def _kernel(q, k, v, chosen, scores, where, out, lse, *, q_buffer, k_ring, v_ring, out_buffer, lse_buffer, q_full, full,
            free, config: SelectionConfig, each: int, queries: int):
    row, split = _divide(lax.axis_index("part"), out.shape[1])
    (group, head_dim), size = q.shape[1:], config.block_size
    sequence, head = _divide(lax.div(row, jnp.int32(queries)), k.shape[2] // head_dim)
    position, scale = where[row, 0], LOG2E / math.sqrt(head_dim)
    blocks = _BlocksOfQuery(row, position, where[row, 1], where[row, 2], chosen, scores, config)

    def fetch(j):
        block, _ = blocks.at(split * each + j)

        @pl.when(block >= 0)
        def _():
            keys, slot = pl.ds(block * size, size), lax.rem(j, jnp.int32(STAGES))
            for source, ring in ((k, k_ring), (v, v_ring)):
                cached = source.at[sequence, keys, pl.ds(head * head_dim, head_dim)]
                plgpu.copy_gmem_to_smem(cached, ring.at[slot], full.at[slot])

    def step(j, state):
        (block, gate), slot = blocks.at(split * each + j), lax.rem(j, jnp.int32(STAGES))

        def look(state):
            sums, top, norm = state
            plgpu.barrier_wait(full.at[slot])
            first, is_own = block * size, block == blocks.own_block
            logits = tensor_core.warp_scores(q_buffer, k_ring.at[slot])
            logits = lax.cond(is_own, lambda x: hide_later(x, position, first), lambda x: x, logits)
            weights, shrink, top, norm = softmax_step(logits, scale, gate, top, norm)
            sums, weights, values = sums * by_row(shrink, sums), weights.astype(q.dtype), v_ring.at[slot]
            sums = lax.cond(
                is_own,  # behind the query's own position may stand anything
                lambda sums: tensor_core.add_warp_product(sums, weights, values, position + 1 - first),
                lambda sums: tensor_core.add_warp_product(sums, weights, values), sums)
            return sums, top, norm

        state = lax.cond(block >= 0, look, lambda state: state, state)

        @pl.when(j + STAGES < each)
        def _():
            plgpu.barrier_arrive(free.at[slot])
            plgpu.barrier_wait(free.at[slot])  # every warp has read what is there
            fetch(j + STAGES)

        return state

    plgpu.copy_gmem_to_smem(q.at[row], q_buffer.at[pl.ds(0, group)], q_full)
    for j in range(min(STAGES, each)):
        fetch(jnp.int32(j))
    plgpu.barrier_wait(q_full)
    state = lax.fori_loop(jnp.int32(0), jnp.int32(each), step, softmax_start(PRODUCT_ROWS, head_dim))
    out_buffer[...], lse_buffer[...] = softmax_end(*state)
    plgpu.commit_smem()
    rows = pl.ds(0, group)
    plgpu.copy_smem_to_gmem(out_buffer.at[rows], out.at[row, split])
    plgpu.copy_smem_to_gmem(lse_buffer.at[rows], lse.at[row, split])
    plgpu.wait_smem_to_gmem(0)


@jax.custom_vjp
def dense_attention_of_one(q, k, v, place: QueryPlace, present):
    """Dense attention of one query a sequence, q [B, 1, N, H], to caches of whole `DENSE_BLOCK`s: in `q`'s dtype.

    No documents are packed. Every block is a local one. Nothing is copied, not even to clear absent keys.
    """
    config = SelectionConfig(DENSE_BLOCK, num_blocks=1, local_blocks=k.shape[1] // DENSE_BLOCK, sink_blocks=0)
    none = jnp.full((q.shape[0], k.shape[2], 1, 1), -1, jnp.int32)
    out = attend_cache(q, k, v, none, jnp.zeros(none.shape), place, config, MULTIPROCESSORS)
    return unfold_queries(out, q.shape[0]).astype(q.dtype)


def _dense_forward(*arrays):
    return dense_attention_of_one(*arrays), arrays


def _dense_backward(arrays, d_out):
    q, k, v, place, present = arrays
    k, v = clear_absent_keys(k, present), clear_absent_keys(v, present)
    return *jax.vjp(lambda q, k, v: whole_attention(q, place, k, v), q, k, v)[1](d_out), None, None


dense_attention_of_one.defvjp(_dense_forward, _dense_backward)


class _BlocksOfQuery:
    """What one query sees: its own block and the local ones before it, then the chosen ones, then the sinks."""

    def __init__(self, row, position, first_block, exists, chosen, scores, config: SelectionConfig):
        self.own_block = lax.div(position, jnp.int32(config.block_size))
        self._row, self._first, self._exists, self._config = row, first_block, exists > 0, config
        self._chosen, self._scores = chosen, scores

    def at(self, slot):
        """The block at a place of this list, -1 for none, and its gate as a power of 2."""
        local, chosen = self._config.local_blocks, self._config.num_blocks
        number = slot - local
        is_local, is_chosen = slot < local, (slot >= local) & (number < chosen)
        near, far = self.own_block - slot, self._first + number - chosen
        near = jnp.where(near >= self._first, near, -1)
        far = jnp.where((number < chosen + self._config.sink_blocks) & (far <= self.own_block - local), far, -1)
        inside = jnp.clip(number, 0, chosen - 1)
        block = jnp.where(is_local, near, jnp.where(is_chosen, self._chosen[self._row, inside], far))
        gate = jnp.where(is_chosen, self._scores[self._row, inside], jnp.float32(0))
        return jnp.where(self._exists, block, -1), gate * LOG2E


def _divide(number, by: int):
    return lax.div(number, jnp.int32(by)), lax.rem(number, jnp.int32(by))
