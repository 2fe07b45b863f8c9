"""Greedy and sampled generation with the model's own caches."""

import functools
import math
import numbers

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from subq_jax.axes import Logits, Tokens
from subq_jax.checks import check_integer
from subq_jax.model.decoder import Decoder


def generate(
    model: Decoder,
    prompt: Tokens,
    num_tokens: int,
    *,
    temperature: float = 0.0,
    key: jax.Array | None = None,
) -> tuple[Tokens, Logits]:
    """Continues each prompt by `num_tokens` tokens; the model itself is left as it was.

    Args:
      model: the decoder.
      prompt: int32 [B, T], T >= 1, one document per row.
      num_tokens: tokens to add, >= 1.
      temperature: 0 for greedy decoding, else the softmax temperature of sampling.
      key: a `jax.random.key`, needed when `temperature` is above 0.

    Returns:
      the new tokens int32 [B, num_tokens] and the logits float32 [B, num_tokens, V] each was chosen from.

    Raises:
      ValueError: for an empty or misshapen prompt, and numbers out of range.
    """
    prompt = jnp.asarray(prompt)
    if prompt.ndim != 2 or 0 in prompt.shape or not jnp.issubdtype(prompt.dtype, jnp.integer):
        raise ValueError(f"prompt must be a non-empty int array [B, T], got {prompt.dtype}{list(prompt.shape)}")
    if (unknown := np.asarray(prompt)[(prompt < 0) | (prompt >= model.config.vocab_size)]).size:
        raise ValueError(f"prompt must hold ids in [0, vocab_size={model.config.vocab_size}), got {unknown[0]}")
    check_integer("num_tokens", num_tokens, 1)
    if not isinstance(temperature, numbers.Real) or not math.isfinite(temperature) or temperature < 0:
        raise ValueError(f"temperature must be finite and >= 0, got {temperature!r}")
    if temperature > 0 and key is None:
        raise ValueError(f"key must be given to sample at temperature={temperature}")
    graph, cache, weights = split_for_decoding(model, prompt.shape[0], prompt.shape[1] + num_tokens)
    keys = jax.random.split(jax.random.key(0) if key is None else key, num_tokens)
    return _generate(graph, bool(temperature > 0), cache, weights, prompt.astype(jnp.int32), keys, temperature)


def split_for_decoding(model: Decoder, batch: int, length: int) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """The model's graph, empty caches for `batch` sequences of up to `length` tokens, and its weights.

    The model itself is left as it was; its weights are shared, not copied.
    """
    model, size = nnx.clone(model), model.config.block_size
    model.init_cache(batch, -(-length // size) * size)  # kernels decode from whole blocks
    return nnx.split(model, nnx.Cache, ...)


def extend(graph: nnx.GraphDef, cache: nnx.State, weights: nnx.State, tokens: Tokens) -> tuple[nnx.State, jax.Array]:
    """Appends tokens [B, T] to the sequences in the cache: the cache after them, the last one's logits [B, V].

    To be jitted: donate `cache`, or it is copied.
    """
    model = nnx.merge(graph, cache, weights)
    logits = model(tokens, decode=True)[:, -1]
    return nnx.state(model, nnx.Cache), logits


@functools.partial(jax.jit, static_argnums=(0, 1))
def _generate(graph, sample: bool, cache, weights, prompt, keys, temperature):
    def pick(logits, key):
        if sample:
            return jax.random.categorical(key, logits / temperature).astype(jnp.int32)
        return logits.argmax(axis=-1).astype(jnp.int32)

    def step(carry, key):
        cache, token = carry
        cache, logits = extend(graph, cache, weights, token[:, None])
        token = pick(logits, key)
        return (cache, token), (token, logits)

    cache, first_logits = extend(graph, cache, weights, prompt)
    first = pick(first_logits, keys[0])
    _, (tokens, logits) = jax.lax.scan(step, (cache, first), keys[1:])
    join = lambda head, tail: jnp.concatenate([head[:, None], tail.swapaxes(0, 1)], axis=1)
    return join(first, tokens), join(first_logits, logits)
