"""The GPU's kernels on a GPU: `JAX_PLATFORMS=cuda python -m pytest -m gpu tests/attention`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import MILD, NAMES, arrays, assert_equally_good, error, value_and_grads, with_grads
from streams import STREAMS, assert_chosen, stream

from subq_jax import SelectionConfig, selective_attention
from subq_jax.attention import dense_attention
from subq_jax.kernels.gpu.choose import best_blocks
from subq_jax.kernels.gpu.limits import decodes_densely

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings('error:implementation="gpu" falls back')]

CASES = {
    "production": ((1, 2048, 2048, 1, 16), {"head_dim": 128}, {"block_size": 64, "num_blocks": 13}, jnp.bfloat16, {}),
    "four KV heads": ((1, 1024, 2048, 4, 8), {"head_dim": 128}, {"block_size": 64, "num_blocks": 29}, jnp.bfloat16, {}),
    "small": ((2, 1000, 1500, 2, 5), {"head_dim": 64}, {"block_size": 32, "num_blocks": 7}, jnp.float16,
              {"q_offset": jnp.array([3, 431]), "kv_length": jnp.array([1200, 1500])}),
    "large blocks": ((1, 1500, 3000, 1, 32), {"head_dim": 128}, {"block_size": 128, "num_blocks": 5}, jnp.bfloat16, {}),
    "many blocks": ((1, 1024, 8192, 1, 16), {"head_dim": 128}, {"block_size": 32, "num_blocks": 125}, jnp.bfloat16, {}),
    "wide router": ((1, 700, 1300, 1, 8), {"head_dim": 64, "router_dim": 256}, {"block_size": 32, "num_blocks": 9},
                    jnp.bfloat16, {}),
}


@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_the_kernels_equal_the_reference(case, gate):
    sizes, widths, selection, dtype, where = CASES[case]
    values = arrays(5, *sizes, dtype=dtype, router_scale=MILD, **({"router_dim": 64} | widths))
    config = SelectionConfig(local_blocks=2, sink_blocks=1, **selection)
    kernels = with_grads(config, "gpu", gate, **where)
    out, chosen, grads = kernels(*values)
    again = kernels(*values)
    for first, second in zip(jax.tree.leaves((out, chosen, grads)), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(first, second, err_msg="the same bits every time")

    _, expected_chosen, _ = value_and_grads(values, config, "reference", gate, **where)
    assert_equally_good(chosen, expected_chosen, values, config)
    exact = tuple(x.astype(jnp.float32) for x in values)
    expected, _, expected_grads = value_and_grads(exact, config, "reference", gate, selection=chosen, **where)
    assert error(out, expected) < 1e-2
    for name, grad, wanted in zip(NAMES, grads, expected_grads, strict=True):
        assert error(grad, wanted) < 2e-2, name


@pytest.mark.parametrize("scale", [0.05, -0.5])
def test_gradients_of_the_router_where_gates_are_closed(scale):
    config = SelectionConfig(block_size=64, num_blocks=13, local_blocks=2, sink_blocks=1)
    values = arrays(5, 1, 512, 2048, 1, 16, head_dim=128, router_dim=64, dtype=jnp.bfloat16)
    values = (*values[:3], values[3] * scale, values[4])
    _, chosen, grads = value_and_grads(values, config, "gpu", True)
    exact = tuple(x.astype(jnp.float32) for x in values)
    _, _, expected = value_and_grads(exact, config, "reference", True, selection=chosen)
    for grad, wanted in zip(grads[3:], expected[3:], strict=True):
        assert error(grad, wanted) < 2e-2


@pytest.mark.parametrize("blocks", [1152, 16384, 40960])  # the first reading of the last skips every other tile
@pytest.mark.parametrize("name", STREAMS)
def test_the_best_of_long_streams_are_chosen(name, blocks):
    router_q, summaries, low, high, count = stream(name, blocks)
    choose = jax.jit(lambda *x: best_blocks(*x, count, ctas=1))
    chosen = choose(router_q, summaries, low, high)
    assert_chosen(chosen, router_q, summaries, low, high, count)
    for first, second in zip(chosen, choose(router_q, summaries, low, high), strict=True):
        np.testing.assert_array_equal(first, second, err_msg="the same bits every time")


DECODING = {  # batch, queries, length, KV heads, group; head dim; block, chosen
    "one token": ((1, 1, 8192, 1, 16), 128, 64, 29, jnp.bfloat16),
    "a few tokens": ((2, 3, 4096, 2, 5), 64, 32, 7, jnp.float16),
    "large blocks": ((1, 2, 4096, 1, 32), 128, 128, 5, jnp.bfloat16),
    "many sequences": ((40, 1, 2048, 4, 8), 128, 64, 13, jnp.bfloat16),
}


@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("case", DECODING)
def test_decoding_equals_the_reference(case, gate):
    sizes, head_dim, block, chosen, dtype = DECODING[case]
    config = SelectionConfig(block_size=block, num_blocks=chosen, local_blocks=2, sink_blocks=1)
    q, k, v, router_q, router_k = arrays(
        6, *sizes, head_dim=head_dim, router_dim=64, dtype=dtype, router_scale=MILD)
    present = jnp.arange(sizes[0]) * 17 % 900 + sizes[2] - 900
    absent = (jnp.arange(sizes[2])[None] >= present[:, None])[..., None, None]
    k, v = (jnp.where(absent, jnp.nan, x) for x in (k, v))
    run = lambda implementation, *x: jax.jit(functools.partial(
        selective_attention, config=config, gate=gate, implementation=implementation, return_selection=True))(
            *x, kv_length=present)
    out, selection = run("gpu", q, k, v, router_q, router_k)
    np.testing.assert_array_equal(out, run("gpu", q, k, v, router_q, router_k)[0], err_msg="the same bits every time")
    expected_selection = run("reference", q, k, v, router_q, router_k)[1]
    assert_equally_good(selection, expected_selection, (q, k, v, router_q, router_k), config)
    exact = [x.astype(jnp.float32) for x in (q, k, v, router_q, router_k)]
    expected = selective_attention(
        *exact, config, gate=gate, kv_length=present, selection=selection, implementation="reference")
    assert error(out, expected) < 1e-2


@pytest.mark.parametrize("case", DECODING)
def test_dense_decoding_equals_float32(case):
    (batch, _, *sizes), head_dim, _, _, dtype = DECODING[case]
    q, k, v, *_ = arrays(7, batch, 1, *sizes, head_dim=head_dim, dtype=dtype)
    present = jnp.arange(batch) * 17 % 900 + sizes[0] - 900
    absent = (jnp.arange(sizes[0])[None] >= present[:, None])[..., None, None]
    k, v = (jnp.where(absent, jnp.nan, x) for x in (k, v))
    run = lambda *x: jax.jit(dense_attention)(*x, kv_length=present)
    assert decodes_densely(q, k)
    out = run(q, k, v)
    np.testing.assert_array_equal(out, run(q, k, v), err_msg="the same bits every time")
    assert error(out, run(*(x.astype(jnp.float32) for x in (q, k, v)))) < 1e-2
