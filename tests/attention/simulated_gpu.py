"""The GPU's kernels on a CPU: copies and barriers simulated, products and what a warp does by itself computed directly.

    NPROC=16 python tests/attention/simulated_gpu.py PROBLEM

The simulator's threads wait for each other inside jax's pool of threads, whose size `NPROC` fixes when jax starts: with
as many as there are cores they may wait for ever, so that problems run in processes of their own. Its detector of races
takes the plain reads of the products below for reads that a later copy could overtake, as a tensor core's cannot be; it
is off.
"""

import contextlib
import dataclasses
import functools
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu
from problems import MILD, arrays, assert_close, assert_equals_reference, error, value_and_grads, weight_of_kinds
from streams import STREAMS, assert_chosen, stream

from subq_jax import SelectionConfig, selective_attention
from subq_jax.attention import dense_attention
from subq_jax.attention.checks import locate
from subq_jax.kernels.gpu import append, choose, lanes, selective, tensor_core, warps
from subq_jax.kernels.gpu.decode import dense_attention_of_one
from subq_jax.kernels.gpu.lists import tile_blocks
from subq_jax.kernels.gpu.warps import COMPUTING_WARPS, WARP_ROWS, WarpTile

mild = functools.partial(arrays, router_scale=MILD)


def scores(left, right):
    return lax.dot_general(left[...], right[...], (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)


def two_scores(left, right, other_left, other_right):
    return scores(left, right), scores(other_left, other_right)


def add_two_products(total, weights, values, other_total, other_weights, other_values):
    return add_warp_product(total, weights, values), add_warp_product(other_total, other_weights, other_values)


def largest_of_warp(numbers):
    return numbers.max()


def fmax(numbers, others):
    return jnp.fmax(numbers, others)


def load_in_lanes(table, first, number):
    return lax.dynamic_slice(table[...], (0, first), (table.shape[0], number))[:, order_of(number)]


def order_of(number):
    return lanes.place_in_order(jnp.arange(number), number)


def rounded_product(numbers, factor):
    """numbers * factor, and what rounding took away from it: Dekker's product (doi:10.1007/BF01397083)."""
    def halves(x):
        high = 4097 * x - (4097 * x - x)
        return high, x - high

    product, (a, b), (c, d) = numbers * factor, halves(numbers), halves(factor)
    return product, ((a * c - product) + a * d + b * c) + b * d


def append_better(scores, scale, ids, bounds, places, kept_scores, kept_ids, *, equals=None, backward=False):
    columns, step, bounds = jnp.argsort(order_of(scores.shape[1])), -1 if backward else 1, bounds[:, None]
    ids = ids[:, columns] if ids.ndim else ids + jnp.arange(scores.shape[1])
    scores, lost = rounded_product(scores[:, columns], jnp.float32(scale))
    better = (scores > bounds) | ((scores == bounds) & (lost > 0))  # the kernel's sign is that of the exact product
    if equals is not None:
        equal = scores == bounds
        better |= equal & (jnp.cumsum(equal, axis=1) <= equals[:, None])
    slots = jnp.where(better, places[:, None] + step * (jnp.cumsum(better, axis=1) - 1), kept_ids.shape[1])
    rows = jnp.arange(scores.shape[0])[:, None]
    for kept, new in ((kept_scores, scores), (kept_ids, jnp.broadcast_to(ids, scores.shape))):
        kept[...] = kept[...].at[rows, slots].set(new, mode="drop")
    return places + step * better.sum(axis=1, dtype=jnp.int32)


def warp_scores(left, right):
    return scores(left, right)


def add_warp_product(total, weights, values, present=None):
    rows = values[...]
    if present is not None:
        rows = jnp.where(jnp.arange(rows.shape[0])[:, None] < present, rows, 0)
    return total + lax.dot_general(weights, rows, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)


def add_product(total, weights, values):
    return add_warp_product(total, weights, values)


def warp_of_thread():
    return jnp.int32(0)


def enough(warps, warpgroup, min_warps):
    """Every other warpgroup of one warp makes all products at once, those of blocks that it does not see as well."""
    return (lax.rem(warpgroup, jnp.int32(2)) == 1) | (min_warps == 1)


def sums_of_warp(numbers, count):
    return tuple(numbers[i * (16 // count) : (i + 1) * (16 // count)].sum() for i in range(count))


@contextlib.contextmanager
def simulated_gpu(multiprocessors: int = 2):
    """`implementation="gpu"` runs simulated inside, at any size, on so many multiprocessors."""
    replaced = [scores, two_scores, add_product, add_two_products, largest_of_warp, warp_scores, add_warp_product,
                warp_of_thread, sums_of_warp, fmax]
    plain = mock.patch.multiple(tensor_core, **{function.__name__: function for function in replaced})
    loads = mock.patch.object(lanes, "load_in_lanes", load_in_lanes)
    appends = mock.patch.object(append, "append_better", append_better)
    sizes = mock.patch.multiple(selective, MULTIPROCESSORS=multiprocessors, unsupported=lambda *_: None)
    # one warp for a thread, for a thread's branches cannot part here
    apart = mock.patch.multiple(warps, WARPS_AT_ONCE=1, enough=enough)
    simulator = plgpu.force_gpu_interpret_mode(plgpu.InterpretGPUParams(uninitialized_memory="nan"))
    with plain, loads, appends, sizes, apart, simulator:
        yield


def packed_documents():
    """Queries that start inside a block, documents with padding behind, two KV heads, groups that are filled up."""
    config = SelectionConfig(block_size=64, num_blocks=1, local_blocks=2, sink_blocks=1)
    documents = jnp.array([[0] * 310 + [-1] * 10 + [1] * 40])
    return mild(1, 1, 40, 360, 2, 4, head_dim=64, router_dim=64), config, True, {
        "segment_ids": documents, "q_offset": jnp.array([290])}


def one_head_for_all():
    """16 heads on one, several tiles of blocks to choose from, keys beyond the last query, a partial last block."""
    config = SelectionConfig(block_size=32, num_blocks=3, local_blocks=1, sink_blocks=2)
    return mild(2, 1, 40, 470, 1, 16, head_dim=64, router_dim=64), config, True, {
        "q_offset": jnp.array([413]), "kv_length": jnp.array([459])}


def large_blocks():
    """Blocks of 128, which two warpgroups share in the backward pass; two sequences, no gate."""
    config = SelectionConfig(block_size=128, num_blocks=1, local_blocks=1, sink_blocks=1)
    return mild(3, 2, 24, 600, 1, 16, head_dim=64, router_dim=64), config, False, {
        "q_offset": jnp.array([500, 576])}


def middle_blocks():
    """Blocks of 64 and head dimension 128, as in production; a tree chooses, so that the kernel that chooses rests."""
    config = SelectionConfig(block_size=64, num_blocks=2, local_blocks=2, sink_blocks=1, fanouts=(2,), beam_width=4)
    return mild(4, 1, 24, 640, 1, 8, head_dim=128, router_dim=64), config, True, {}


def many_queries():
    """More queries than a block has positions: the first ones of a block stand in it, the later ones behind it."""
    config = SelectionConfig(block_size=64, num_blocks=1, local_blocks=1, sink_blocks=1)
    return mild(27, 1, 140, 200, 1, 8, head_dim=64, router_dim=64), config, True, {}


def shared_tokens():
    """Groups filled up to 32, so that two warps share a token; parts of blocks; fewer queries than two tiles."""
    config = SelectionConfig(block_size=128, num_blocks=2, local_blocks=2, sink_blocks=1)
    return mild(11, 2, 13, 900, 1, 20, head_dim=64, router_dim=64), config, True, {
        "q_offset": jnp.array([600, 871]), "kv_length": jnp.array([640, 884])}


def few_blocks():
    """Fewer candidates than are to be chosen, no sinks, a last tile that begins at the second token of a pair."""
    config = SelectionConfig(block_size=32, num_blocks=20, local_blocks=1, sink_blocks=0)
    return mild(13, 1, 49, 49, 1, 5, head_dim=64, router_dim=64), config, True, {}


def a_few_queries():
    """Decoding: two KV heads, padding, the first blocks of a document, and caches that hold anything behind."""
    config = SelectionConfig(block_size=32, num_blocks=3, local_blocks=2, sink_blocks=1)
    values = mild(17, 3, 2, 480, 2, 5, head_dim=64, router_dim=64)
    documents = jnp.array([[0] * 400 + [-1] * 80, *[[0] * 96 + [1] * 384] * 2])
    poisoned = without(values[1:3], jnp.array([400, 400, 129]))
    return (*values[:1], *poisoned, *values[3:]), config, True, {
        "q_offset": jnp.array([399, 300, 127]), "kv_length": jnp.array([480, 400, 129]), "segment_ids": documents}


def one_query():
    """Decoding one token: its blocks spread over all multiprocessors, fewer candidates than are chosen."""
    config = SelectionConfig(block_size=64, num_blocks=6, local_blocks=2, sink_blocks=2)
    q, k, v, router_q, router_k = mild(18, 1, 1, 640, 1, 16, head_dim=128, router_dim=64)
    return (q, *without((k, v), 330), router_q, router_k), config, False, {
        "q_offset": jnp.array([329]), "kv_length": jnp.array([330])}


def early_queries():
    """Decoding where caches begin: sinks that are local too or not there, nothing to choose, and a late query."""
    config = SelectionConfig(block_size=32, num_blocks=3, local_blocks=2, sink_blocks=2)
    q, k, v, router_q, router_k = mild(21, 4, 1, 640, 2, 3, head_dim=64, router_dim=64)
    positions = jnp.array([0, 40, 100, 300])
    return (q, *without((k, v), positions + 1), router_q, *without((router_k,), positions + 1)), config, True, {
        "q_offset": positions, "kv_length": positions + 1}


def first_of_documents():
    """Decoding in packed documents, soon after one starts and long after: nothing of the one before is seen."""
    config = SelectionConfig(block_size=32, num_blocks=2, local_blocks=3, sink_blocks=1)
    documents = jnp.array([[0] * 320 + [1] * 320, [0] * 64 + [2] * 26 + [-1] * 6 + [3] * 544, [0] * 600 + [-1] * 40])
    return mild(22, 3, 2, 640, 1, 9, head_dim=64, router_dim=64), config, True, {
        "q_offset": jnp.array([330, 96, 599]), "segment_ids": documents}


def without(caches, lengths):
    """Caches with no numbers from a position on, the same for all sequences or one for each."""
    of_sequence = jnp.broadcast_to(jnp.asarray(lengths), caches[0].shape[:1])
    absent = (jnp.arange(caches[0].shape[1])[None] >= of_sequence[:, None])[..., None, None]
    return tuple(jnp.where(absent, jnp.nan, cache) for cache in caches)


def dense_decoding():
    """One query of each of two caches, dense: all of what stands before it, and nothing behind."""
    values = arrays(19, 2, 1, 320, 2, 3, head_dim=64)[:3]
    poisoned = values[0], *without(values[1:], 256)
    where = {"q_offset": jnp.array([250, 63]), "kv_length": jnp.array([251, 80])}
    place, present = locate(*values[:2], *where.values(), None, 1)
    loss = lambda attend, *x: (attend(*x).sum(), attend(*x))
    run = lambda attend, *x: jax.jit(jax.grad(functools.partial(loss, attend), argnums=range(3), has_aux=True))(*x)
    with simulated_gpu():
        grads, out = jax.block_until_ready(run(lambda *x: dense_attention_of_one(*x, place, present), *poisoned))
    wanted_grads, wanted = run(functools.partial(dense_attention, **where), *poisoned)
    for found, expected in zip((out, *grads), (wanted, *wanted_grads), strict=True):
        assert_close(found, expected, "dense")
    print("equal")


def closed_gates():
    """In bfloat16, where gates leave chosen blocks no weight or nearly all: gradients of the router are right."""
    config = SelectionConfig(block_size=32, num_blocks=10, local_blocks=2, sink_blocks=1)
    values = arrays(2, 1, 36, 480, 1, 16, head_dim=64, router_dim=64, dtype=jnp.bfloat16)
    for scale in (0.05, -0.5):
        scaled = (*values[:3], values[3] * scale, values[4])
        with simulated_gpu():
            _, selection, grads = jax.block_until_ready(value_and_grads(scaled, config, "gpu", True))
        exact = tuple(x.astype(jnp.float32) for x in scaled)
        _, _, expected = value_and_grads(exact, config, "reference", True, selection=selection)
        for grad, wanted in zip(grads[3:], expected[3:], strict=True):
            off = error(grad, wanted)
            assert off < 6e-3, (scale, off)  # a mean taken off every block is 1.7e-1 off, nothing 9e-3
    print("equal")


def overflowing_gates():
    """A token whose gates overflow, though all that it has is finite, leaves the earlier ones of its warp alone."""
    config = SelectionConfig(block_size=32, num_blocks=3, local_blocks=1, sink_blocks=1)
    values = mild(25, 1, 24, 384, 1, 8, head_dim=64, router_dim=64, dtype=jnp.bfloat16)
    values = *values[:4], values[4].at[0, 192].set(1e20)
    of_token = values[3].at[0, 7]
    cases = [(config, values, of_token.set(1e19), None), (config, values, of_token.set(-1e19), None)]
    means = dataclasses.replace(config, pooling="mean")  # the mean of block 6 is infinite, and 0 times it no number
    values = *values[:4], values[4].at[0, 192:224].set(3e38)
    only_block_6 = jnp.full((1, 24, 1, 3), -1).at[..., 0].set(6)
    cases.append((means, values, of_token.set(values[3][0, 7].at[:, 5].set(0)), only_block_6))
    for config, values, router_q, selection in cases:
        attend = jax.jit(functools.partial(selective_attention, config=config, implementation="gpu"))
        with simulated_gpu():
            before = jax.block_until_ready(attend(*values, selection=selection))
            after = jax.block_until_ready(attend(*values[:3], router_q, values[4], selection=selection))
        np.testing.assert_array_equal(after[:, :7], before[:, :7])
        assert bool(jnp.isfinite(after.astype(jnp.float32)).all())
    print("equal")


def lists_of_tiles():
    """The blocks that a tile's tokens list, once each and descending, with a bit for every warp that sees one."""
    for group, tokens in ((8, 31), (16, 30), (32, 7)):
        shape = WarpTile(group, 64)
        drawn = jax.random.randint(jax.random.key(group), (2, tokens, 5), -1, 12)
        ids = np.array(-jnp.sort(-drawn, axis=-1))
        ids[..., 1:][ids[..., 1:] == ids[..., :-1]] = -1
        ids = -np.sort(-ids, axis=-1)
        ids[1, 3] = -1  # a token that sees nothing
        with simulated_gpu():
            entries, blocks = map(np.asarray, jax.block_until_ready(tile_blocks(jnp.array(ids), shape, 12, 2)))
        for x, tile in np.ndindex(entries.shape):
            start = min(tile * shape.tokens, tokens - shape.tokens)
            seen = {}
            for row in range(COMPUTING_WARPS * WARP_ROWS):
                for block in ids[x, start + row // group]:
                    seen[block] = seen.get(block, 0) | 1 << row // WARP_ROWS
            seen.pop(-1, None)
            expected = [block << 12 | seen[block] for block in sorted(seen, reverse=True)]
            np.testing.assert_array_equal(blocks[x, tile, : entries[x, tile]], expected)
    print("equal")


def parts():
    """The parts that are timed one by one add up to the whole: attention's output is the reference's."""
    from experiments import gpu_parts

    config = SelectionConfig(block_size=32, num_blocks=2, local_blocks=2, sink_blocks=1)
    values = mild(6, 1, 160, 160, 1, 16, head_dim=64, router_dim=64)
    with simulated_gpu(), mock.patch.object(gpu_parts, "MULTIPROCESSORS", 2):
        made = gpu_parts.gpu_parts(values, config, uniform=False)
        out, _ = jax.block_until_ready(jax.jit(made["attention"].function)(*made["attention"].arguments))
    assert tuple(made) == gpu_parts.PARTS and made["attention"].facts["union"] > 1
    assert_close(out.reshape(values[0].shape), selective_attention(*values, config, implementation="reference"), "out")
    print("equal")


def long_streams():
    """So many blocks that they are read twice, and lists that fill up again and again: the ids are the contract's."""
    for far in (choose.FAR, 4):  # the latter: the first reading skips every other tile
        with mock.patch.object(choose, "FAR", far):
            for name in STREAMS:
                router_q, summaries, low, high, count = stream(name, blocks=1152)
                with simulated_gpu():
                    chosen = jax.block_until_ready(choose.best_blocks(router_q, summaries, low, high, count, ctas=1))
                assert_chosen(chosen, router_q, summaries, low, high, count)
    print("equal")


def main(name: str):
    """Compares outputs, selection and gradients of a problem with the reference.

    Every kind of block weighs at least 3 of 100 with those that see all kinds: an error in one is no rounding.
    """
    values, config, gate, where = PROBLEMS[name]()
    with simulated_gpu(SPREAD.get(name, 2)):
        found = jax.block_until_ready(value_and_grads(values, config, "gpu", gate, **where))
    assert_equals_reference(found, values, config, gate, **where)
    weights = weight_of_kinds(values, found[1], config, gate, **where)
    assert min(weights) > 0.03, weights
    print("equal")


PROBLEMS = {problem.__name__: problem for problem in (
    packed_documents, one_head_for_all, large_blocks, middle_blocks, shared_tokens, few_blocks, a_few_queries,
    many_queries, one_query, early_queries, first_of_documents)}
OTHERS = {run.__name__: run for run in (
    dense_decoding, closed_gates, overflowing_gates, lists_of_tiles, parts, long_streams)}
SPREAD = {"a_few_queries": 12}  # multiprocessors, so that two blocks of threads share the blocks of each token

if __name__ == "__main__":
    problem = sys.argv[1]
    if problem in OTHERS:
        OTHERS[problem]()
    else:
        main(problem)
