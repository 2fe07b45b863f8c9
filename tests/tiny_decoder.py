"""The smallest decoder that has everything: blocks of 4, a local window of 6, a budget of 3 blocks or 12 tokens."""

import functools

import pytest
from flax import nnx

from subq_jax.attention.mechanisms import MECHANISMS
from subq_jax.model.config import DecoderConfig
from subq_jax.model.decoder import Decoder

SHAPE = {
    "vocab_size": 40, "num_layers": 2, "width": 16, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8,
    "mlp_width": 16, "local_window": 6, "budget": 12, "block_size": 4, "sink_blocks": 1, "local_blocks": 1,
    "router_dim": 4, "key_conv_width": 3, "dtype": "float32"}


# These share with `selective` or `block_mean` all but how they choose, which has tests of its own.
CHOOSING_OTHERWISE = ("gated_mean", "random_blocks", "oracle_topk")
ARMS = [pytest.param(name, marks=pytest.mark.slow) if name in CHOOSING_OTHERWISE else name for name in MECHANISMS]


@functools.cache
def decoder(mechanism, **changes):
    """A decoder of `SHAPE`, made once for all tests."""
    return Decoder(DecoderConfig(mechanism=mechanism, **SHAPE | changes), rngs=nnx.Rngs(0))
