"""Each mechanism stands in for `nnx.MultiHeadAttention` in a model that knows nothing of this package."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from subq_jax.model.attention_modules import (
    BlockMeanAttention,
    DenseAttention,
    GlobalTokenAttention,
    LearnedRouterAttention,
    OracleTopkAttention,
    RandomBlocksAttention,
    SelectiveAttention,
    SlidingWindowAttention,
)
from subq_jax.selection.config import SelectionConfig

SELECTION = SelectionConfig(block_size=4, num_blocks=1, local_blocks=1, sink_blocks=1)
CLASSES = {
    "dense": (DenseAttention, {}),
    "sliding_window": (SlidingWindowAttention, {"window": 6}),
    "global_token": (GlobalTokenAttention, {"window": 5, "num_slots": 2, "block_size": 4}),
    "block_mean": (BlockMeanAttention, {"selection": SELECTION}),
    "gated_mean": (SelectiveAttention, {"selection": dataclasses.replace(SELECTION, pooling="mean"), "router_dim": 4}),
    "selective": (SelectiveAttention, {"selection": SELECTION, "router_dim": 4}),
    "learned_router": (LearnedRouterAttention, {"selection": SelectionConfig(1, 4, 4, 4), "router_dim": 8}),
    "random_blocks": (RandomBlocksAttention, {"selection": SELECTION}),
    "oracle_topk": (OracleTopkAttention, {"selection": SELECTION}),
}
WIDTH, LENGTH = 16, 20
TOLERANCE = 1e-4  # float32, summed in other orders
every_class = pytest.mark.parametrize("name", CLASSES)


def build(name, **options):
    """The module with 4 heads and 2 KV heads in a model of width 16."""
    cls, needed = CLASSES[name]
    return cls(**{"num_heads": 4, "in_features": WIDTH, "num_kv_heads": 2, "rngs": nnx.Rngs(0)} | needed | options)


def activations(*lead, length=LENGTH, seed=0):
    return jax.random.normal(jax.random.key(seed), (*lead, length, WIDTH))


class PlainBlock(nnx.Module):
    """A stranger's layer, which calls its attention as `nnx.MultiHeadAttention` is called."""

    def __init__(self, attention, **options):
        self.norm = nnx.LayerNorm(WIDTH, rngs=nnx.Rngs(1))
        self.attention = attention(4, WIDTH, 24, WIDTH, 2, use_bias=False, decode=False, rngs=nnx.Rngs(2), **options)

    def __call__(self, x):
        return x + self.attention(self.norm(x), deterministic=True)


def shapes(module):
    return {"/".join(map(str, path)): leaf.shape for path, leaf in nnx.to_flat_state(nnx.state(module, nnx.Param))}


@every_class
def test_it_takes_the_place_of_multi_head_attention(name):
    cls, needed = CLASSES[name]
    plain, ours = PlainBlock(nnx.MultiHeadAttention), PlainBlock(cls, **needed)
    expected, found = shapes(plain), shapes(ours)
    assert expected.items() <= found.items()
    assert {path.split("/")[1] for path in found.keys() - expected.keys()} <= {"router", "indexer", "slot_query"}

    graph, state = nnx.split(ours)
    x = activations(2, 3)
    grads = jax.jit(jax.grad(lambda state: jnp.square(nnx.merge(graph, state)(x)).sum()))(state)
    for path, grad in nnx.to_flat_state(grads):
        assert jnp.isfinite(grad[...]).all(), path
        assert grad[...].any() != ("indexer" in path), path  # it learns by its own loss alone


@pytest.mark.parametrize("options", [
    {}, {"num_kv_heads": 2, "normalize_qk": True}, {"num_kv_heads": 1, "qkv_features": 8, "out_features": 5}])
def test_dense_equals_multi_head_attention_under_a_causal_mask(options):
    theirs = nnx.MultiHeadAttention(4, WIDTH, rngs=nnx.Rngs(0), bias_init=nnx.initializers.normal(), decode=False,
                                    **options)
    ours = DenseAttention(4, WIDTH, rngs=nnx.Rngs(7), bias_init=nnx.initializers.normal(), **options)
    x = activations(2)
    run = nnx.jit(lambda module, x, **where: module(x, **where))
    expected = run(theirs, x, mask=nnx.make_causal_mask(x[..., 0]))
    assert jnp.abs(run(ours, x) - expected).max() > 0.1
    nnx.update(ours, nnx.state(theirs, nnx.Param))
    np.testing.assert_allclose(run(ours, x), expected, atol=TOLERANCE, rtol=0)


@every_class
def test_decoding_step_by_step_equals_the_full_call(name):
    module = build(name, key_conv_width=3, rope_base=100.0, normalize_qk=True)
    x = activations(2, 2)
    expected = nnx.jit(lambda module, x: module(x))(module, x)
    step = nnx.jit(lambda module, x: module(x, decode=True))
    for _ in range(2):  # init_cache begins anew
        module.init_cache(x.shape)
        outs = [step(module, x[..., t : t + 1, :]) for t in range(LENGTH)]
        np.testing.assert_allclose(jnp.concatenate(outs, axis=-2), expected, atol=TOLERANCE, rtol=0)


def test_the_window_cache_holds_no_more_than_the_window():
    module = build("sliding_window")
    module.init_cache((1, 10**6, WIDTH))
    assert module.cached_key.shape == (1, 6, 2, 4)


def test_any_leading_axes_with_and_without_segment_ids():
    module = build("selective", key_conv_width=3)
    x, ids = activations(2, 2), jnp.array([[[0] * 12 + [1] * 8, [0] * 20], [[0] * 20, [3] * 9 + [-1] * 11]])
    out = nnx.jit(lambda module, x, ids: module(x, segment_ids=ids))(module, x, ids)
    alone = nnx.jit(lambda module, x: module(x))
    np.testing.assert_allclose(out[0, 0, 12:], alone(module, x[0, 0, 12:]), atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(out[0, 1], alone(module, x[0, 1]), atol=TOLERANCE, rtol=0)


def test_linen_models_use_the_bridge():
    class LinenBlock(linen.Module):
        @linen.compact
        def __call__(self, x):
            attention = nnx.bridge.to_linen(
                SelectiveAttention, num_heads=4, in_features=WIDTH, num_kv_heads=2, selection=SELECTION, router_dim=4,
                name="attention")
            return x + attention(linen.LayerNorm()(x))

    block, x = LinenBlock(), activations(2)
    variables = jax.jit(block.init)(jax.random.key(0), x)
    assert {"query", "key", "value", "out", "router"} <= variables["params"]["attention"].keys()
    loss = lambda params: jnp.square(block.apply({**variables, "params": params}, x)).mean()
    value, grads = jax.jit(jax.value_and_grad(loss))(variables["params"])
    assert jnp.isfinite(value)
    assert all(grad.any() for grad in jax.tree.leaves(grads["attention"]["router"]))


@pytest.mark.parametrize(("options", "message"), [
    ({"dropout_rate": 0.1}, "dropout_rate must be 0 .*, got 0.1"),
    ({"attention_fn": nnx.dot_product_attention}, "attention_fn cannot be set"),
    ({"in_kv_features": 8}, "in_kv_features must equal in_features=16, got 8"),
    ({"num_kv_heads": 3}, "num_kv_heads"),
    ({"key_conv_width": 0}, "key_conv_width must be an integer >= 1, got 0"),
])
@every_class
def test_options_that_are_not_causal_self_attention_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        build(name, **options)


def test_options_of_one_class_are_checked():
    with pytest.raises(ValueError, match="window must be an integer >= 1, got 0"):
        build("sliding_window", window=0)
    with pytest.raises(ValueError, match="router_dim must be an integer >= 1, got 0"):
        build("selective", router_dim=0)
    with pytest.raises(ValueError, match="router_window must be an integer >= 1, got 0"):
        build("selective", router_window=0)
    with pytest.raises(ValueError, match=r"router_share must be in \[0, 1\], got 1.5"):
        build("selective", router_window=2, router_share=1.5)
    for wrong in ({"router_window": 1}, {"router_window": 2, "router_share": 0}):
        with pytest.raises(ValueError, match="router_learns_window needs router_window > 1 and router_share > 0, got"):
            build("selective", router_learns_window=True, **wrong)
    with pytest.raises(ValueError, match="router_dim must be a multiple of 4 index heads, got 6"):
        build("learned_router", router_dim=6)
    with pytest.raises(TypeError, match="phase"):
        build("dense")(activations(1), phase="gated")
    for name in ("selective", "learned_router", "oracle_topk"):
        with pytest.raises(ValueError, match=r"phase must be one of \('dense', 'gated', 'sparse'\), got 'warm'"):
            build(name)(activations(1), phase="warm")


@pytest.mark.parametrize(("arguments", "message"), [
    ({"inputs_k": activations(1, seed=1)}, "inputs_k and inputs_v must be None or inputs_q"),
    ({"inputs_v": activations(1, seed=1)}, "inputs_k and inputs_v must be None or inputs_q"),
    ({"mask": jnp.ones((1, 4, LENGTH, LENGTH), bool)}, "mask must be None"),
    ({"sow_weights": True}, "sow_weights False"),
    ({"is_causal": False}, "is_causal True"),
    ({"decode": True}, "decode=True needs a cache: call init_cache"),
    ({"decode": True, "segment_ids": jnp.zeros((1, LENGTH), jnp.int32)}, "segment_ids must be None with decode=True"),
    ({"segment_ids": jnp.zeros((LENGTH,), jnp.int32)}, r"segment_ids must have shape .* = \(1, 20\), got \(20,\)"),
])
@pytest.mark.parametrize("name", ["dense", "selective"])
def test_calls_that_are_not_causal_self_attention_are_refused(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        build(name, key_conv_width=3)(activations(1), **arguments)


@pytest.mark.parametrize("arguments", [{"phase": "dense"}, {"phase": "gated"}, {"distil": True}])
@pytest.mark.parametrize("name", ["selective", "learned_router", "oracle_topk"])
def test_a_phase_of_training_does_not_decode(name, arguments):
    module = build(name)
    module.init_cache((1, LENGTH, WIDTH))
    with pytest.raises(ValueError, match="decode must be False in training: .*, got {'(phase|distil)': "):
        module(activations(1), decode=True, **arguments)


def test_activations_of_another_width_are_refused():
    with pytest.raises(ValueError, match="inputs_q must have in_features=16 features"):
        build("dense")(jnp.zeros((1, 4, 8)))


@pytest.mark.parametrize(("name", "capacity"), [
    ("dense", 8), ("block_mean", 8), ("selective", 8), ("sliding_window", 5)])
def test_a_full_cache_refuses_further_tokens_and_stays_as_it_was(name, capacity):
    module = build(name, key_conv_width=3)
    module.init_cache((1, capacity, WIDTH))
    step = nnx.jit(lambda module, x: module(x, decode=True))
    step(module, activations(1, length=capacity - 1))
    before = jax.tree.map(jnp.copy, nnx.state(module, nnx.Cache))
    with pytest.raises(ValueError, match=rf"the cache holds {capacity} tokens, got {capacity - 1} \+ 2"):
        module(activations(1, length=2), decode=True)
    with pytest.raises(ValueError, match="the cache holds 1 sequences, got 2"):
        module(activations(2, length=1), decode=True)
    for old, new in zip(*(jax.tree.leaves(s) for s in (before, nnx.state(module, nnx.Cache))), strict=True):
        np.testing.assert_array_equal(old, new)
