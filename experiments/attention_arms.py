"""The functions that the benchmark of attention times: every mechanism, its choosing alone, its gradients."""

import functools

import jax
import jax.numpy as jnp
from absl import flags

from experiments.benchmark import BLOCK, HEAD_DIM, KV_HEADS, arm
from experiments.dense_kernels import dense_kernel
from subq_jax import selective_attention
from subq_jax.attention import (
    block_mean_attention,
    global_token_attention,
    learned_router_attention,
    oracle_topk_attention,
    random_blocks_attention,
    sliding_window_attention,
)
from subq_jax.attention.api import default_implementation
from subq_jax.attention.block_mean import group_mean
from subq_jax.attention.checks import locate
from subq_jax.attention.learned_router import Index, choose_tokens
from subq_jax.attention.mechanisms import ROUTED
from subq_jax.attention.oracle_topk import oracle_selection
from subq_jax.attention.random_blocks import random_selection
from subq_jax.kernels.gpu.limits import HALF_PRECISION
from subq_jax.kernels.gpu.selective import choose_flat
from subq_jax.kernels.tpu.choose import ChoiceSizes, best_blocks
from subq_jax.kernels.tpu.roofline import CHIPS
from subq_jax.kernels.xla.selective import choose
from subq_jax.model.indexer import INDEX_HEADS
from subq_jax.selection.tree import build_tree

IMPLEMENTATION = flags.DEFINE_enum("implementation", None, ["xla", "gpu", "tpu"], "Of selective attention.")
ESTIMATE_FOR = flags.DEFINE_enum("estimate_for", None, list(CHIPS), "Compile for this TPU and estimate, run nothing.")

STAGES = ("choosing", "forward", "forward_backward")


def platform() -> str:
    """Where the arms run: the default backend, or the TPU that they are compiled for."""
    return "tpu" if ESTIMATE_FOR.value else jax.default_backend()


def arm_function(name: str):
    """The arm as a function of q, k, v, router_q, router_k; arms without a router ignore the last two."""
    mechanism = arm(name)
    match name:
        case "dense":
            attend = dense_kernel(platform(), HEAD_DIM.value)[1]
            return lambda q, k, v, *router: attend(q, k, v)
        case "sliding_window":
            return lambda q, k, v, *router: sliding_window_attention(q, k, v, mechanism.budget)
        case "global_token":
            slots = mechanism.num_slots
            slot_query = jax.random.normal(jax.random.key(0), (slots, KV_HEADS.value, HEAD_DIM.value))
            return lambda q, k, v, *router: global_token_attention(
                q, k, v, slot_query, mechanism.budget - slots, BLOCK.value)
    config = mechanism.selection_config()
    if name in ROUTED:
        return functools.partial(selective_attention, config=config, implementation=implementation())
    if name == "learned_router":
        return lambda q, k, v, *router: learned_router_attention(q, k, v, make_index(*router), config)
    attend = {"block_mean": block_mean_attention, "random_blocks": random_blocks_attention,
              "oracle_topk": oracle_topk_attention}[name]
    return lambda q, k, v, *router: attend(q, k, v, config)


def implementation() -> str:
    """The implementation of selective attention that is timed."""
    return IMPLEMENTATION.value or ("tpu" if platform() == "tpu" else default_implementation())


def choosing_function(name: str):
    """What the arm does before it attends, as a function of the same arguments: the selection."""
    config = arm(name).selection_config()

    def choose_for(q, k, v, router_q, router_k):
        place, _ = locate(q, k, None, None, None, config.block_size)
        match name:
            case "learned_router":
                return choose_tokens(make_index(router_q, router_k), place, config)
            case "oracle_topk":
                return oracle_selection(q, k, place, config)
            case "random_blocks":
                return random_selection(place, config, k.shape[2])
            case "block_mean":
                router_q, router_k = group_mean(q, k.shape[2]), k
        tree = build_tree(router_k, config)
        if implementation() == "tpu" and name in ROUTED and not config.fanouts:
            return best_blocks(router_q, tree.levels[0], place, config, ChoiceSizes())
        if implementation() == "gpu" and name in ROUTED and not config.fanouts and router_q.dtype in HALF_PRECISION:
            return choose_flat(router_q, tree.levels[0], place, config)
        return choose(router_q, tree, place, config)

    return choose_for


def make_index(router_q: jax.Array, router_k: jax.Array) -> Index:
    """An index as wide as the router, of the router's features."""
    width = router_q.shape[-1] // INDEX_HEADS
    query = router_q[..., : INDEX_HEADS * width].reshape(*router_q.shape[:-1], INDEX_HEADS, width)
    return Index(query, router_q[..., :INDEX_HEADS], router_k[..., :width])


def with_gradients(function, used: int):
    """The function's gradients with respect to its first `used` arguments."""
    return jax.grad(lambda *values: function(*values).astype(jnp.float32).sum(), argnums=range(used))


def stage_function(name: str, stage: str):
    """What is timed: the arm, its choosing alone, or its gradients with respect to everything that it reads."""
    if stage == "choosing":
        return choosing_function(name)
    function = arm_function(name)
    return function if stage == "forward" else with_gradients(function, used=5 if name in ROUTED else 3)
