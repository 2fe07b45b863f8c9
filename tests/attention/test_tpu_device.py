"""The TPU's kernels on a TPU: `JAX_PLATFORMS=tpu python -m pytest -m tpu tests/attention/test_tpu_device.py`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import NAMES, arrays, assert_equally_good, error, value_and_grads

from subq_jax import SelectionConfig

pytestmark = [pytest.mark.tpu, pytest.mark.filterwarnings('error:implementation="tpu" falls back')]

DOCUMENTS = np.repeat([0, 1, -1, 2], [640, 379, 5, 896])[None]
CASES = {
    "production": ((1, 1024, 8192, 1, 16), {}, {"block_size": 64, "num_blocks": 29}, jnp.bfloat16, {}),
    "four KV heads": ((1, 1024, 2048, 4, 8), {}, {"block_size": 64, "num_blocks": 13}, jnp.bfloat16, {}),
    "offsets and lengths": ((2, 1000, 1500, 2, 4), {}, {"block_size": 32, "num_blocks": 7}, jnp.bfloat16,
                            {"q_offset": np.array([3, 431]), "kv_length": np.array([1200, 1500])}),
    "documents": ((1, DOCUMENTS.size, DOCUMENTS.size, 1, 16), {}, {"block_size": 64, "num_blocks": 5}, jnp.bfloat16,
                  {"segment_ids": DOCUMENTS}),
    "small blocks": ((1, 512, 8192, 1, 16), {}, {"block_size": 16, "num_blocks": 29}, jnp.bfloat16, {}),
    "large blocks": ((1, 1500, 3000, 1, 32), {}, {"block_size": 128, "num_blocks": 5}, jnp.bfloat16, {}),
    "wide": ((1, 700, 1300, 1, 8), {"head_dim": 256, "router_dim": 128}, {"block_size": 32, "num_blocks": 9},
             jnp.bfloat16, {}),
    "float32": ((1, 700, 1300, 1, 8), {}, {"block_size": 8, "num_blocks": 29}, jnp.float32, {}),
    "decoding": ((2, 2, 8192, 2, 8), {}, {"block_size": 64, "num_blocks": 13}, jnp.bfloat16,
                 {"kv_length": np.array([5000, 8192])}),
}


@pytest.fixture(autouse=True)
def on_a_tpu():
    if jax.default_backend() != "tpu":
        pytest.skip(f"needs a TPU and JAX_PLATFORMS=tpu, got {jax.default_backend()}")


@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_the_kernels_equal_the_reference(case, gate):
    sizes, widths, selection, dtype, where = CASES[case]
    values = arrays(5, *sizes, dtype=dtype, **({"head_dim": 128, "router_dim": 64} | widths))
    config = SelectionConfig(local_blocks=2, sink_blocks=1, **selection)
    where = {name: jnp.asarray(x, jnp.int32) for name, x in where.items()}
    assert_the_kernels_equal_the_reference(values, config, gate, where)


def assert_the_kernels_equal_the_reference(values, config, gate, where):
    """The same bits twice, near the reference's, and nothing of the NaN that stand behind `kv_length`."""
    length = values[1].shape[1]
    absent = jnp.arange(length)[None, :, None, None] >= jnp.reshape(where.get("kv_length", length), (-1, 1, 1, 1))
    poisoned = [jnp.where(absent, jnp.nan, x) if n in (1, 2, 4) else x for n, x in enumerate(values)]
    out, chosen, grads = value_and_grads(poisoned, config, "tpu", gate, **where)
    again = value_and_grads(poisoned, config, "tpu", gate, **where)
    for first, second in zip(jax.tree.leaves((out, chosen, grads)), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(first, second, err_msg="the same bits every time")

    _, expected_chosen, _ = value_and_grads(values, config, "reference", gate, **where)
    assert_equally_good(chosen, expected_chosen, values, config)
    exact = tuple(x.astype(jnp.float32) for x in values)
    expected, _, expected_grads = value_and_grads(exact, config, "reference", gate, selection=chosen, **where)
    near = 1e-2 if values[0].dtype == jnp.bfloat16 else 1e-4
    assert error(out, expected) < near
    for name, grad, wanted in zip(NAMES, grads, expected_grads, strict=True):
        assert error(grad, wanted) < 2 * near, name
