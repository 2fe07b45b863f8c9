"""What a decoding step costs: attention of one new token a sequence against caches, which it is appended to.

`STEPS` tokens follow one another in one program, as in generation, so that what a step costs is the device's time and
not that of starting it. Caches are full of random numbers: a step's work does not depend on them but for which blocks
are chosen.
"""

import jax
import jax.numpy as jnp

from experiments.benchmark import DTYPE, HEAD_DIM, HEADS, KV_HEADS, REPEATS, ROUTER_DIM
from experiments.timing import compiled_cost
from subq_jax import SelectionConfig, selective_attention
from subq_jax.attention import dense_attention
from subq_jax.selection.tree import build_tree, update_tree

STEPS = 64


def decode_cost(length: int, batch: int, config: SelectionConfig | None, implementation: str | None = None):
    """What a step costs.

    Args:
      length: positions of the caches, of which the last `STEPS` are written.
      batch: sequences.
      config: of selective attention; None for dense.
      implementation: of selective attention.

    Returns:
      `seconds` of one step, `temp_bytes` of the program of `STEPS`, and `batch`.

    Raises:
      NotImplementedError: for fewer than 2 * `STEPS` positions.
    """
    if length < 2 * STEPS:
        raise NotImplementedError(f"decoding is timed at {2 * STEPS} tokens at least, got {length}")
    kv, router = (batch, length, KV_HEADS.value, HEAD_DIM.value), (batch, length, KV_HEADS.value, ROUTER_DIM.value)
    caches = [_random(0, kv), _random(1, kv)]
    new = [_random(2, (STEPS, batch, 1, HEADS.value, HEAD_DIM.value)),
           *(_random(3 + i, (STEPS, *cache[:1], 1, *cache[2:])) for i, cache in enumerate((kv, kv)))]
    if config is not None:
        features = [jax.nn.softplus(_random(5 + i, shape)) for i, shape in enumerate(
            (router, (STEPS, batch, 1, *router[2:]), (STEPS, batch, 1, *router[2:])))]
        caches += [features[0], jax.jit(lambda x: build_tree(x, config))(features[0])]
        new += features[1:]

    def step(caches, new):
        position, q, k_new, v_new, *router_new = new
        append = lambda cache, x: jax.lax.dynamic_update_slice_in_dim(cache, x, position, axis=1)
        k, v = append(caches[0], k_new), append(caches[1], v_new)
        place = {"q_offset": position, "kv_length": position + 1}
        if config is None:
            return (k, v), dense_attention(q, k, v, **place)
        router_q, router_k = router_new[0], append(caches[2], router_new[1])
        tree = update_tree(caches[3], router_k, config, position, 1)
        out = selective_attention(
            q, k, v, router_q, router_k, config, tree=tree, implementation=implementation, **place)
        return (k, v, router_k, tree), out

    def steps(state, new):
        positions = length - STEPS + jnp.arange(STEPS, dtype=jnp.int32)
        return jax.lax.scan(step, state[0], (positions, *new))

    # A call is given what the one before returned, outputs included; the first one gets empty ones.
    empty = jnp.zeros((STEPS, batch, 1, HEADS.value, HEAD_DIM.value), DTYPE.value)
    cost = compiled_cost(steps, (tuple(caches), empty), tuple(new), repeats=REPEATS.value, carried=True)
    return cost | {"seconds": cost["seconds"] / STEPS, "batch": batch}


def _random(seed: int, shape):
    return jax.jit(lambda: jax.random.normal(jax.random.key(seed), shape, jnp.dtype(DTYPE.value)))()
