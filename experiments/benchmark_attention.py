"""Times attention alone, choosing included: `python -m experiments.benchmark_attention --workdir=runs/benchmark`.

One layer's attention on random inputs, forward and forward + backward, every mechanism at every length; of those that
choose also the choosing alone, summaries included. Writes `results.jsonl`, `report.json` with the machine and the
fitted slopes, and log-log plots. With `--fanouts` the arms with a router choose through a tree. Selective attention is
checked at the shortest length against the float32 reference before anything is timed. A length that an arm cannot
finish within `--max_seconds` (judged from the one before) is left out and said so. `--decode_batches=1,64` adds a
decoding step of dense and selective attention, one new token of so many sequences against caches of each length.

Neighbouring queries of `--inputs=random` have nothing in common. With `walk` 16 of them share most of their router's
query, somewhat as a text's do. `trained` are what the selective layer `--layer` of the run in `--trained_run` reads of
held-out text, and the report tells how its queries use the blocks. `uniform` is for `--parts`, which times the parts of
the GPU's implementation one by one: attention gets blocks drawn at random, of which neighbours share none on purpose.
`--implementation` times another than the default, `gpu` or `xla`.

On a GPU `--mechanisms=flash_attention_2` times PyTorch's FlashAttention-2 as well, where PyTorch is installed; both
frameworks then share the GPU's memory, of which JAX takes less with `XLA_PYTHON_CLIENT_MEM_FRACTION=0.6`.

On a TPU `dense` is JAX's splash attention, and selective attention runs its kernels there if the shapes are theirs:
`--head_dim=128 --dtype=bfloat16`. Without a TPU `--estimate_for=v5e` compiles both for one and prints what they need
and the roofline of each kernel, in place of times; the kernels' shapes are needed there too.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import app, flags

from experiments.benchmark import (
    BLOCK,
    BUDGET,
    DTYPE,
    FANOUTS,
    HEAD_DIM,
    HEADS,
    KV_HEADS,
    REPEATS,
    ROUTER_DIM,
    Case,
    arm,
    check_numbers,
    check_positive,
    run,
    start,
)
from experiments.decode_step import decode_cost
from experiments.dense_kernels import LANES, dense_kernel
from experiments.gpu_parts import PARTS, gpu_parts
from experiments.timing import compiled_cost
from experiments.torch_flash import FLASH, flash_cost
from experiments.tpu_estimates import Program, estimate
from experiments.tpu_programs import why_not
from experiments.trained_inputs import trained_inputs
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
from subq_jax.attention.mechanisms import MECHANISMS, ROUTED, SELECTING
from subq_jax.attention.oracle_topk import oracle_selection
from subq_jax.attention.random_blocks import random_selection
from subq_jax.evaluation.routing import usage
from subq_jax.kernels.gpu.limits import CAPABILITY, on_hopper
from subq_jax.kernels.gpu.selective import choose_flat
from subq_jax.kernels.tpu.choose import ChoiceSizes, best_blocks
from subq_jax.kernels.tpu.roofline import CHIPS, dense_work, kernel_work
from subq_jax.kernels.xla.selective import choose
from subq_jax.model.indexer import INDEX_HEADS
from subq_jax.selection.tree import build_tree

_WORKDIR = flags.DEFINE_string("workdir", "runs/benchmark", "Folder for the results.")
_LENGTHS = flags.DEFINE_list("lengths", ["4096", "8192", "16384", "32768", "65536"], "Context lengths, in tokens.")
_MECHANISMS = flags.DEFINE_list("mechanisms", list(MECHANISMS), f"Some of {(*MECHANISMS, FLASH)}.")
_IMPLEMENTATION = flags.DEFINE_enum("implementation", None, ["xla", "gpu", "tpu"], "Of selective attention.")
_PARTS = flags.DEFINE_bool("parts", False, "Also the parts of the GPU's implementation, one by one.")
_DECODE_BATCHES = flags.DEFINE_list("decode_batches", [], "Also decoding steps, of so many sequences each.")
_INPUTS = flags.DEFINE_enum("inputs", "random", ["random", "walk", "trained", "uniform"], "What attention is given.")
_TRAINED_RUN = flags.DEFINE_string("trained_run", None, "Folder of a finished training run, for --inputs=trained.")
_LAYER = flags.DEFINE_integer("layer", -1, "Which of its selective layers, -1 for the last.")
_ESTIMATE_FOR = flags.DEFINE_enum("estimate_for", None, list(CHIPS), "Compile for this TPU and estimate, run nothing.")

WITH_KERNELS = DECODED = ("dense", "selective")  # of their own, on a TPU; in decoding steps
WITHOUT_BUDGET = ("dense", FLASH)
OVERLAPS = (1.0, 3.0, 8.0)  # all neighbours agree, as trained routers showed, none of a tile's 8 tokens agrees
MAX_CHECKED, MAX_PAIRS = 256, 1 << 28  # queries compared with the reference, and queries times positions
PIECE = 1 << 20  # tokens drawn at a time
SHARING = 16  # neighbours who share most of their router's query in a walk
STAGES = ("choosing", "forward", "forward_backward")
METRICS = {"seconds": "seconds", "temp_bytes": "temporaries (bytes)"}


def platform() -> str:
    """Where the arms run: the default backend, or the TPU that they are compiled for."""
    return "tpu" if _ESTIMATE_FOR.value else jax.default_backend()


def input_shapes(length: int) -> list[tuple[int, ...]]:
    """Shapes of q, k, v, router_q, router_k of one sequence."""
    heads = (HEADS.value, KV_HEADS.value, KV_HEADS.value, KV_HEADS.value, KV_HEADS.value)
    widths = (HEAD_DIM.value,) * 3 + (ROUTER_DIM.value,) * 2
    return [(1, length, n, width) for n, width in zip(heads, widths, strict=True)]


@functools.lru_cache(maxsize=1)
def make_inputs(length: int) -> tuple[jax.Array, ...]:
    """q, k, v, router_q, router_k as `--inputs` says; random router features are non-negative as a trained model's.

    Raises:
      ValueError: for a trained run that has no such inputs, or in other shapes than the flags'.
    """
    if _INPUTS.value == "trained":
        values = trained_inputs(Path(_TRAINED_RUN.value), length, _LAYER.value)
        found = [(x.shape, x.dtype.name) for x in values]
        if found != (wanted := [(shape, DTYPE.value) for shape in input_shapes(length)]):
            raise ValueError(f"--trained_run has inputs {found}, and the flags ask for {wanted}")
        return values
    keys = jax.random.split(jax.random.key(length), 5)
    values = list(map(_normal, keys, input_shapes(length)))
    if _INPUTS.value == "walk":
        shared = jax.random.normal(jax.random.key(0), (1, -(-length // SHARING), *values[3].shape[2:]))
        values[3] += 2 * jnp.repeat(shared, SHARING, axis=1)[:, :length].astype(values[3].dtype)
    return *values[:3], *map(jax.nn.softplus, values[3:])


@functools.partial(jax.jit, static_argnums=1)
def _normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Random numbers [1, T, ...], drawn piece by piece: the generator's temporaries of 12 million would not fit."""
    if shape[1] <= PIECE:
        return jax.random.normal(key, shape, jnp.dtype(DTYPE.value))
    drawn = jax.lax.map(lambda key: _normal(key, (1, PIECE, *shape[2:])), jax.random.split(key, -(-shape[1] // PIECE)))
    return drawn.reshape(1, -1, *shape[2:])[:, : shape[1]]


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
    return _IMPLEMENTATION.value or ("tpu" if platform() == "tpu" else default_implementation())


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
        if implementation() == "gpu" and name in ROUTED and not config.fanouts:
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


def selective_error(values) -> float:
    """Relative error of what is timed against the float32 reference given the same selection."""
    config = arm("selective").selection_config()
    out, selection = jax.jit(lambda *x: selective_attention(
        *x, config, implementation=implementation(), return_selection=True))(*values)
    # the last queries see the most; the reference holds T x S
    rows = slice(-min(MAX_CHECKED, max(1, MAX_PAIRS // out.shape[1]), out.shape[1]), None)
    q, k, v, router_q, router_k = values
    exact = [x.astype(jnp.float32) for x in (q[:, rows], k, v, router_q[:, rows], router_k)]
    expected = jax.jit(lambda ids, *x: selective_attention(
        *x, config, selection=ids, implementation="reference"))(selection[:, rows], *exact)
    difference = jnp.linalg.norm((out[:, rows].astype(jnp.float32) - expected).ravel())
    return float(difference / jnp.linalg.norm(expected.ravel()))


@jax.jit
def choices(values) -> dict[str, jax.Array]:
    """How selective attention's queries use the blocks, see `usage`."""
    _, selection = selective_attention(
        *values, arm("selective").selection_config(), implementation=implementation(), return_selection=True)
    return usage(selection, -(-values[1].shape[1] // BLOCK.value))


def stage_cost(name: str, stage: str, length: int) -> dict[str, float | None]:
    """What one call costs at a length."""
    return compiled_cost(stage_function(name, stage), *make_inputs(length), repeats=REPEATS.value)


def decode_step(name: str, batch: int, length: int) -> dict[str, float | None]:
    """What a decoding step of `batch` sequences costs with caches of a length."""
    config = None if name == "dense" else arm(name).selection_config()
    return decode_cost(length, batch, config, implementation())


@functools.lru_cache(maxsize=1)
def parts(length: int):
    """The parts of the GPU's implementation at a length."""
    return gpu_parts(make_inputs(length), arm("selective").selection_config(), uniform=_INPUTS.value == "uniform")


def part_cost(name: str, length: int) -> dict[str, float | None]:
    """What a part costs at a length, with the facts that belong to it."""
    part = parts(length)[name]
    return compiled_cost(part.function, *part.arguments, repeats=REPEATS.value) | part.facts


def stage_function(name: str, stage: str):
    """What is timed: the arm, its choosing alone, or its gradients with respect to everything that it reads."""
    if stage == "choosing":
        return choosing_function(name)
    function = arm_function(name)
    return function if stage == "forward" else with_gradients(function, used=5 if name in ROUTED else 3)


def programs_to_estimate(lengths: list[int]) -> list[Program]:
    """The arms that have kernels of their own, forward and with gradients."""
    programs = []
    for length in lengths:
        for name in (name for name in _MECHANISMS.value if name in WITH_KERNELS):
            for stage in STAGES[1:]:
                work = {overlap: _work(name, stage, length, overlap) for overlap in OVERLAPS}
                used = 3 if name == "dense" else 5
                programs.append(Program(name, stage, length, stage_function(name, stage), input_shapes(length)[:used],
                                        work))
    return programs


def _work(name: str, stage: str, length: int, overlap: float):
    """The work of a stage's kernels by name; a backward stage's includes the forward pass."""
    if name == "dense":
        work, count = dense_work(length, HEADS.value, HEAD_DIM.value), 1
    else:
        work = kernel_work(arm(name).selection_config(), length, HEADS.value, KV_HEADS.value, HEAD_DIM.value,
                           ROUTER_DIM.value, overlap, jnp.dtype(DTYPE.value).itemsize)
        count = 2
    return work if stage == "forward_backward" else dict(list(work.items())[:count])


def check_flags() -> None:
    """Checks the flags that belong together.

    Raises:
      UsageError: for lengths and fan-outs that are none, heads that make no groups, or estimates that cannot be made.
      ValueError: for arms that cannot spend the budget.
    """
    check_numbers(_LENGTHS.value)
    check_positive("decode_batches", _DECODE_BATCHES.value)
    if HEADS.value % KV_HEADS.value:
        raise app.UsageError(f"--num_heads must be a multiple of --num_kv_heads={KV_HEADS.value}, got {HEADS.value}")
    if _ESTIMATE_FOR.value:
        if why_not():
            raise app.UsageError(f"--estimate_for={_ESTIMATE_FOR.value} compiles with libtpu: {why_not()}")
        if FANOUTS.value or not set(_MECHANISMS.value) & set(WITH_KERNELS):
            raise app.UsageError(f"--estimate_for knows {WITH_KERNELS} without --fanouts, got --mechanisms="
                                 f"{','.join(_MECHANISMS.value)} --fanouts={','.join(FANOUTS.value)}")
        if HEAD_DIM.value % LANES:
            raise app.UsageError(f"--estimate_for needs --head_dim that is a multiple of {LANES}, as the kernels do "
                                 f"(--head_dim=128 --dtype=bfloat16), got {HEAD_DIM.value}")
        if _IMPLEMENTATION.value not in (None, "tpu"):
            raise app.UsageError("--estimate_for compiles --implementation=tpu, got --implementation="
                                 f"{_IMPLEMENTATION.value}")
    if (_INPUTS.value == "trained") != bool(_TRAINED_RUN.value):
        raise app.UsageError(f"--inputs=trained and --trained_run go together, got --inputs={_INPUTS.value} "
                             f"--trained_run={_TRAINED_RUN.value}")
    if _INPUTS.value == "trained":
        make_inputs(max(map(int, _LENGTHS.value)))
    if _INPUTS.value == "uniform" and not _PARTS.value:
        raise app.UsageError("--inputs=uniform is what attention is given with --parts, got --noparts")
    if _PARTS.value and not on_hopper():
        raise app.UsageError(f"--parts needs a GPU of compute capability {CAPABILITY}, got {jax.devices()[0]}")
    for name in _MECHANISMS.value:
        if name != FLASH:
            arm_function(name)


def main(argv: list[str]) -> None:
    """Runs the benchmark and writes its results."""
    if _ESTIMATE_FOR.value:
        jax.config.update("jax_platforms", "cpu")  # libtpu compiles, and must not look for chips
    workdir = start(argv, _WORKDIR.value, check_flags)
    lengths = [int(x) for x in _LENGTHS.value]
    if _ESTIMATE_FOR.value:
        estimate(workdir / "estimates.jsonl", _ESTIMATE_FOR.value, programs_to_estimate(sorted(lengths)), DTYPE.value)
        return
    facts = {"dense": dense_kernel(platform(), HEAD_DIM.value)[0]}
    if "selective" in _MECHANISMS.value:
        error = selective_error(make_inputs(min(lengths)))
        facts["selective_relative_error"] = error
        print(f"selective against the float32 reference: relative error {error:.1e}")
        if _INPUTS.value == "trained":
            facts["choices"] = {length: jax.tree.map(float, choices(make_inputs(length))) for length in lengths}
    cases = [Case(stage, name, None if name in WITHOUT_BUDGET else BUDGET.value, functools.partial(
                 *((flash_cost,) if name == FLASH else (stage_cost, name)), stage))
             for name in _MECHANISMS.value for stage in (STAGES if name in SELECTING else STAGES[1:])]
    cases += [Case(f"decode_{batch}", name, None if name == "dense" else BUDGET.value,
                   functools.partial(decode_step, name, int(batch)))
              for batch in _DECODE_BATCHES.value for name in _MECHANISMS.value if name in DECODED]
    if _PARTS.value:
        cases += [Case(part, "selective", BUDGET.value, functools.partial(part_cost, part)) for part in PARTS]
    run(workdir, lengths, cases, METRICS, ["lengths", "implementation", "inputs", "trained_run", "layer"], **facts)


if __name__ == "__main__":
    app.run(main)
