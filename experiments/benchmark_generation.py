"""What generating n tokens costs: `python -m experiments.benchmark_generation --workdir=runs/generation`.

One decoder with random weights, one sequence, greedy tokens. `dense_uncached` runs the whole prefix through the model
for every token; every other arm runs one token against its caches, as `generate` does. Timed is one step at each length
n: a full forward of n tokens, or the median of the last `--steps` steps that fill caches of capacity n, compiled and
warm, caches updated in place. The cumulative seconds of tokens 1..n are *not* a run of n steps: they are the integral
of the measured steps, by trapezoids between the lengths and with the shortest length's step before it. A program that
really went without a cache would also compile anew as the prefix grows, which is not counted.

Caches hold random numbers: a step's work does not depend on them but for which blocks are chosen, and random ones are
the worst case for locality. Writes `results.jsonl`, `report.json` with the machine and the fitted slopes, and log-log
plots. With `--fanouts` the arms with a router choose through a tree. A length whose step an arm cannot finish within
`--max_seconds` (judged from the one before) is left out and said so.
"""

import jax
import jax.numpy as jnp
from absl import flags
from flax import nnx

from experiments.benchmark import (
    BEAM,
    BLOCK,
    BUDGET,
    DTYPE,
    HEAD_DIM,
    HEADS,
    KV_HEADS,
    LOCAL_BLOCKS,
    REPEATS,
    ROUTER_DIM,
    SINK_BLOCKS,
    Case,
    check_numbers,
    fanouts,
    run_cases,
    start,
)
from experiments.program import run
from experiments.timing import compiled_cost
from subq_jax.attention.mechanisms import MECHANISMS
from subq_jax.inference.generate import extend, split_for_decoding
from subq_jax.model.config import DecoderConfig
from subq_jax.model.decoder import Decoder

UNCACHED = "dense_uncached"
ARMS = (UNCACHED, *MECHANISMS)

_WORKDIR = flags.DEFINE_string("workdir", "runs/generation", "Folder for the results.")
_LENGTHS = flags.DEFINE_list("lengths", [str(256 << i) for i in range(9)], "Lengths to time a step at, in tokens.")
_MECHANISMS = flags.DEFINE_list("mechanisms", [UNCACHED, "dense", "selective"], f"Some of {ARMS}.")
_LAYERS = flags.DEFINE_integer("num_layers", 2, "Layers, in turn local and of the mechanism.", lower_bound=1)
_WIDTH = flags.DEFINE_integer("width", 256, "Model width; the MLP is four times as wide.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 64, "Timed steps of arms with caches; the median counts.", lower_bound=1)

METRICS = {"seconds": "seconds of one token", "cumulative_seconds": "seconds of all tokens so far (integral)",
           "temp_bytes": "temporaries of one token (bytes)"}
VOCABULARY = 256


def config(name: str) -> DecoderConfig:
    """The decoder as the flags ask for it; raises ValueError for shapes that are none."""
    return DecoderConfig(
        vocab_size=VOCABULARY, num_layers=_LAYERS.value, width=_WIDTH.value, num_heads=HEADS.value,
        num_kv_heads=KV_HEADS.value, head_dim=HEAD_DIM.value, mlp_width=4 * _WIDTH.value,
        mechanism="dense" if name == UNCACHED else name, budget=BUDGET.value, block_size=BLOCK.value,
        sink_blocks=SINK_BLOCKS, local_blocks=LOCAL_BLOCKS, fanouts=fanouts(), beam_width=BEAM.value,
        router_dim=ROUTER_DIM.value, dtype=DTYPE.value)


def generation(name: str) -> Case:
    """The case of an arm, which adds its measured steps up as the lengths go by."""
    model, points = Decoder(config(name), rngs=nnx.Rngs(0)), []

    def cost(length: int):
        step = (uncached_step if name == UNCACHED else cached_step)(model, length)
        points.append((length, step["seconds"]))
        return step | {"cumulative_seconds": integral(points)}

    return Case("generation", name, None if name in (UNCACHED, "dense") else BUDGET.value, cost)


def uncached_step(model: Decoder, length: int):
    """The cost of the token after a prefix of `length` tokens, which the model reads whole."""
    graph, weights = nnx.split(model)

    def step(weights, tokens):
        return nnx.merge(graph, weights)(tokens)[:, -1].argmax(axis=-1).astype(jnp.int32)

    tokens = jax.random.randint(jax.random.key(length), (1, length), 0, VOCABULARY, jnp.int32)
    return compiled_cost(step, weights, tokens, repeats=REPEATS.value)


def cached_step(model: Decoder, length: int):
    """The cost of one of the last tokens that caches of capacity `length` take."""
    graph, cache, weights = split_for_decoding(model, 1, length)
    held = length - _STEPS.value - 1  # one step warms up

    def fill(x):
        if jnp.issubdtype(x.dtype, jnp.integer):
            return jnp.full(x.shape, held, x.dtype)  # the next position
        return jax.random.normal(jax.random.key(x.size), x.shape, x.dtype)

    def step(state, weights):
        cache, token = state
        cache, logits = extend(graph, cache, weights, token[:, None])
        return cache, logits.argmax(axis=-1).astype(jnp.int32)

    state = jax.tree.map(fill, cache), jnp.zeros((1,), jnp.int32)
    return compiled_cost(step, state, weights, repeats=_STEPS.value, carried=True)


def integral(points: list[tuple[int, float]]) -> float:
    """Seconds of tokens 1 .. n from the measured steps (length, seconds), ascending, the last at n."""
    total = points[0][0] * points[0][1]
    for (low, before), (high, after) in zip(points, points[1:], strict=False):
        total += (high - low) * (before + after) / 2
    return total


def check_flags() -> None:
    """Raises UsageError for lengths and fan-outs that are none, ValueError for arms and shapes that are none."""
    check_numbers(_LENGTHS.value)
    if min(int(x) for x in _LENGTHS.value) <= _STEPS.value:
        raise ValueError(f"--lengths must be above --steps={_STEPS.value}, got {_LENGTHS.value}")
    for name in _MECHANISMS.value:
        if name not in ARMS:
            raise ValueError(f"--mechanisms must be some of {ARMS}, got {name!r}")
        config(name)


def main(argv: list[str]) -> None:
    """Runs the benchmark and writes its results."""
    workdir = start(argv, _WORKDIR.value, check_flags)
    cases = [generation(name) for name in _MECHANISMS.value]
    run_cases(workdir, [int(x) for x in _LENGTHS.value], cases, METRICS,
              ["lengths", "mechanisms", "num_layers", "width", "steps", "max_seconds"], compared="cumulative_seconds")


if __name__ == "__main__":
    run(main)
