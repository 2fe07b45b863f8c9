"""The closed forms of `flops` against counts read off explicit masks."""

import itertools
import time

import numpy as np
import pytest

from subq_jax.attention.mechanisms import MECHANISMS, ROUTED
from subq_jax.model import flops
from subq_jax.model.config import DecoderConfig

LENGTHS = (1, 2, 3, 4, 7, 8, 16, 29, 64, 65)


def decoder(**changes):
    shape = dict(vocab_size=11, num_layers=3, width=6, num_heads=4, num_kv_heads=2, head_dim=8, mlp_width=10,
                 layer_pattern=("local", "selective", "selective"), local_window=5, budget=16, block_size=4,
                 sink_blocks=1, local_blocks=2, router_dim=4, key_conv_width=3)
    return DecoderConfig(**shape | changes)


def candidates(config, length):
    """Boolean [T, NB]: the blocks each query may select, by the definition; the learned router's are single tokens."""
    scale = config.block_size if config.mechanism == "learned_router" else 1
    size = config.block_size // scale
    own, block = np.arange(length)[:, None] // size, np.arange(-(-length // size))[None]
    return (block >= config.sink_blocks * scale) & (block <= own - config.local_blocks * scale)


def mask(config, length):
    """Boolean [T, S]: what each query sees when the earliest candidates are selected."""
    position, key = np.arange(length)[:, None], np.arange(length)[None]
    if config.mechanism == "dense":
        return key <= position
    if config.mechanism == "sliding_window":
        return (key <= position) & (key > position - config.budget)
    if config.mechanism == "learned_router":
        chosen = candidates(config, length)
        sinks, local = (n * config.block_size for n in (config.sink_blocks, config.local_blocks))
        forced = (key < sinks) | (key > position - local)
        return (key <= position) & (forced | (chosen & (np.cumsum(chosen, axis=1) <= flops.selected_blocks(config))))
    block, own = key // config.block_size, position // config.block_size
    if config.mechanism == "global_token":  # keys and summaries side by side
        slots = config.budget // 2
        window = (key <= position) & (key > position - (config.budget - slots))
        summary = np.unique(block)[None]
        return np.concatenate([window, (summary < own) & (summary >= own - slots)], axis=1)
    chosen = candidates(config, length)
    chosen &= np.cumsum(chosen, axis=1) <= flops.selected_blocks(config)
    forced = (block < config.sink_blocks) | (block > own - config.local_blocks)
    return (key <= position) & (forced | chosen[:, block[0]])


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_visible_pairs_equal_the_mask(mechanism):
    grid = itertools.product((3, 4), (0, 1, 3), (1, 2, 3), (1, 2), LENGTHS)
    for block_size, sinks, local, selected, length in grid:
        config = decoder(mechanism=mechanism, block_size=block_size, sink_blocks=sinks, local_blocks=local,
                         budget=block_size * (sinks + local + selected))
        assert flops.visible_pairs(config, length) == mask(config, length).sum(), (config, length)
        assert flops.candidate_pairs(config, length) == candidates(config, length).sum(), (config, length)


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("length", LENGTHS)
def test_parts_equal_a_count_layer_by_layer(mechanism, length):
    config = decoder(mechanism=mechanism)
    local = decoder(mechanism="sliding_window", budget=config.local_window)
    matmul = lambda rows, inner, columns: 2 * rows * inner * columns
    attention = selection = projections = 0
    for kind in config.layer_kinds:
        visible = mask(local if kind == "local" else config, length).sum()
        attention += config.num_heads * 2 * matmul(1, config.head_dim, 1) * visible
        for columns in (32, 16, 16, 32):  # queries, keys, values, outputs
            projections += matmul(length, config.width, columns)
        projections += matmul(length, config.key_conv_width, 2 * 8)  # the keys' short convolution
        if kind == "selective" and mechanism in ROUTED:
            projections += matmul(length * (4 + 2), 8, 4)  # four features of each query and key head
            selection += matmul(candidates(config, length).sum(), 4, 2) + length * 2 * 4
        if kind == "selective" and mechanism == "block_mean":
            selection += matmul(candidates(config, length).sum(), 8, 2) + length * (4 + 2) * 8
        if kind == "selective" and mechanism == "learned_router":  # four index heads of width 1
            projections += matmul(length, 4 * 8, 4) + matmul(length, 4 * 8, 4) + matmul(length * 2, 8, 1)
            selection += (matmul(1, 1, 4) + 2 * 4) * 2 * candidates(config, length).sum()
        if kind == "selective" and mechanism == "global_token":  # a logit and two averages of every summary
            summarised = sum(min(4, length - 4 * b) + min(b, 8) for b in range(-(-length // 4)))
            selection += 2 * 3 * matmul(1, 8, 1) * summarised
        if kind == "selective" and mechanism == "oracle_topk":
            selection += matmul(np.tri(length).sum(), 8, 4)
    got = flops.forward_flops(config, length)
    assert got["attention"] == attention
    assert got["selection"] == selection
    assert got["projections"] == projections
    assert got["mlp"] == 3 * 3 * matmul(length, 6, 10)
    assert got["logits"] == matmul(length, 6, 11)
    assert got["total"] == sum(value for name, value in got.items() if name != "total")


def test_twelve_million_tokens_are_instant_and_sparse():
    shape = dict(num_heads=16, num_kv_heads=1, head_dim=128, router_dim=64, block_size=64, budget=2048)
    start = time.perf_counter()
    sparse = flops.forward_flops(decoder(mechanism="selective", **shape), 12_000_000)
    dense = flops.forward_flops(decoder(mechanism="dense", **shape), 12_000_000)
    assert time.perf_counter() - start < 0.1
    assert dense["attention"] > 1000 * sparse["attention"]
    half = flops.forward_flops(decoder(mechanism="selective", **shape), 6_000_000)
    assert sparse["attention"] / half["attention"] == pytest.approx(2, rel=1e-3)
    assert sparse["selection"] / half["selection"] == pytest.approx(4, rel=1e-2)  # flat selection grows with the square


def test_a_tree_is_counted_node_by_node():
    config = decoder(mechanism="selective", fanouts=(3, 2), beam_width=2)  # 65 tokens: 17 blocks, 6 nodes, 3 nodes
    scored = 3 + (2 + 2) * 2 + (2 + 2) * 3  # the top level; children of 2 kept and 2 partial nodes, twice
    got = flops.forward_flops(config, 65)["selection"]
    assert got == 2 * (2 * 4) * (65 + 17 + 6 + 2 * 65 * scored)  # two layers, two KV heads, four features
    long = decoder(mechanism="selective", fanouts=(64, 64), beam_width=32, budget=64)
    grown = [flops.forward_flops(long, length)["selection"] for length in (6_000_000, 12_000_000)]
    assert grown[1] / grown[0] == pytest.approx(2, rel=0.1)


def test_a_convolution_of_width_one_is_none():
    with_conv, without = decoder(key_conv_width=2), decoder(key_conv_width=1)
    difference = flops.forward_flops(with_conv, 5)["projections"] - flops.forward_flops(without, 5)["projections"]
    assert difference == 5 * 2 * 2 * 3 * 2 * 8  # three layers' keys


def test_refuses():
    with pytest.raises(ValueError, match="length must be >= 1, got 0"):
        flops.forward_flops(decoder(), 0)
    with pytest.raises(ValueError, match="mechanism must be one of .*selective.*, got 'magic'"):
        flops.forward_flops(decoder(mechanism="magic"), 8)
    with pytest.raises(ValueError, match="budget of selective must be a multiple of block_size=4"):
        flops.forward_flops(decoder(mechanism="selective", budget=15), 8)


def test_a_window_of_router_queries_costs_a_product_a_tap_and_channel():
    with_window, without = decoder(mechanism="selective", router_window=4), decoder(mechanism="selective")
    difference = flops.forward_flops(with_window, 5)["projections"] - flops.forward_flops(without, 5)["projections"]
    assert difference == 2 * 2 * 5 * 4 * 2 * 4  # layers, a product and a sum, tokens, taps, KV heads, channels
