"""Attention inside of a `jax.shard_map` of the caller's: run by `test_callers_shards.py` in a process of its own."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, PartitionSpec
from problems import arrays

from subq_jax import SelectionConfig, selective_attention
from subq_jax.attention import (
    block_mean_attention,
    dense_attention,
    global_token_attention,
    learned_router_attention,
    sliding_window_attention,
)
from subq_jax.attention.distillation import router_divergence
from subq_jax.attention.learned_router import Index
from subq_jax.kernels.xla import grain

CONFIG = SelectionConfig(block_size=4, num_blocks=2, local_blocks=1, sink_blocks=1)
TREE = dataclasses.replace(CONFIG, fanouts=(3, 2), beam_width=2)
TOKENS = dataclasses.replace(CONFIG, block_size=1, num_blocks=5)
SLOTS = jax.random.normal(jax.random.key(0), (4, 2, 8))


def xla(config):
    return lambda *values: selective_attention(*values, config, implementation="xla")


def learned_router(q, k, v, router_q, router_k):
    index = Index(jnp.stack([router_q, router_q[..., ::-1]], axis=3), router_q[..., :2], router_k)
    return learned_router_attention(q, k, v, index, TOKENS)


MANY, FEW, LONG = (  # T and S
    arrays(0, 2, queries, length, 2, 2) for queries, length in ((80, 80), (1, 200), (1, 300)))
CASES = {
    "xla": (xla(CONFIG), MANY),
    "xla with a tree": (xla(TREE), MANY),
    "xla, few queries": (xla(CONFIG), FEW),
    "block_mean": (lambda q, k, v, *_: block_mean_attention(q, k, v, CONFIG), MANY),
    "dense, few queries": (lambda q, k, v, *_: dense_attention(q, k, v), LONG),
    "sliding_window": (lambda q, k, v, *_: sliding_window_attention(q, k, v, 9), MANY),
    "learned_router": (learned_router, MANY),
    "global_token": (lambda q, k, v, *_: global_token_attention(q, k, v, SLOTS, 9, 4), MANY),
    "distillation": (lambda q, k, _, *router: router_divergence(q, k, *router, CONFIG)[None], MANY),
}


def of_shards(function, mesh, specs, check_vma: bool):
    """A function of the arrays: the sum of squares of what the shards give, and its gradients."""
    sharded = jax.shard_map(
        lambda *values: function(*values), mesh=mesh, in_specs=specs, out_specs=PartitionSpec("data"),
        check_vma=check_vma)
    return jax.jit(jax.value_and_grad(lambda *values: (sharded(*values) ** 2).sum(), argnums=range(5)))


def main(compared):
    """Traces all, for types are told then; `compared` names those that are computed too."""
    assert set(compared) <= set(CASES)
    grain.CPU_GRAIN = grain.CPU_GRAIN._replace(step=256, chunk=1, keys=64)  # several steps of several chunks
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    cut, whole = PartitionSpec("data"), PartitionSpec()
    for name, (function, values) in CASES.items():
        one = tuple(x[:1] if i in (1, 4) else x for i, x in enumerate(values))  # k and router_k of one sequence
        for arguments, specs in ((values, (cut,) * 5), (one, (cut, whole, cut, cut, whole))):
            checked = of_shards(function, mesh, specs, True)
            if name not in compared:
                checked.trace(*arguments)
                continue
            wanted = jax.tree.leaves(of_shards(function, mesh, specs, False)(*arguments))
            for number, expected in zip(jax.tree.leaves(checked(*arguments)), wanted, strict=True):
                if arguments is values:
                    np.testing.assert_array_equal(number, expected, err_msg=name)
                else:  # what devices find of a shared array's gradient may be added up in another order
                    np.testing.assert_allclose(number, expected, rtol=1e-5, atol=1e-5, err_msg=name)
            assert any(np.abs(x).max() > 0 for x in wanted[1:]), f"{name}: no gradient to compare"


if __name__ == "__main__":
    main(sys.argv[1:] or CASES)
