"""Times attention alone, choosing included: `python -m experiments.benchmark_attention --workdir=runs/benchmark`.

One layer's attention on random inputs, forward and forward + backward, every mechanism at every length; of those that
choose also the choosing alone, summaries included. Writes `results.jsonl`, `report.json` with the machine and the
fitted slopes, and log-log plots. With `--fanouts` the arms with a router choose through a tree. Selective attention,
outputs and choice, is then compared with the float32 reference at the shortest and the longest length that it was timed
at, where both fit into memory. A length that an arm cannot finish within `--max_seconds` (judged from the one
before) is left out and said so. `--decode_batches=1,64` adds a decoding step of dense and selective attention, one new
token of so many sequences against caches of each length.

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

import jax
import jax.numpy as jnp
from absl import app, flags

from experiments.attention_arms import (
    ESTIMATE_FOR,
    IMPLEMENTATION,
    STAGES,
    arm_function,
    implementation,
    platform,
    stage_function,
)
from experiments.attention_inputs import INPUTS, TRAINED_RUN, input_shapes, make_inputs
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
    run_cases,
    start,
)
from experiments.decode_step import decode_cost
from experiments.dense_kernels import LANES, dense_kernel
from experiments.gpu_parts import PARTS, gpu_parts
from experiments.program import run
from experiments.selective_check import compare_with_reference
from experiments.timing import compiled_cost
from experiments.torch_flash import FLASH, flash_cost
from experiments.tpu_estimates import Program, estimate
from experiments.tpu_programs import why_not
from subq_jax import selective_attention
from subq_jax.attention.mechanisms import MECHANISMS, SELECTING
from subq_jax.evaluation.routing import usage
from subq_jax.kernels.gpu.limits import CAPABILITY, on_hopper
from subq_jax.kernels.tpu.roofline import dense_work, kernel_work
from subq_jax.model.indexer import INDEX_HEADS
from subq_jax.reporting.results import Row

_WORKDIR = flags.DEFINE_string("workdir", "runs/benchmark", "Folder for the results.")
_LENGTHS = flags.DEFINE_list("lengths", ["4096", "8192", "16384", "32768", "65536"], "Context lengths, in tokens.")
_MECHANISMS = flags.DEFINE_list("mechanisms", list(MECHANISMS), f"Some of {(*MECHANISMS, FLASH)}.")
_PARTS = flags.DEFINE_bool("parts", False, "Also the parts of the GPU's implementation, one by one.")
_DECODE_BATCHES = flags.DEFINE_list("decode_batches", [], "Also decoding steps, of so many sequences each.")

WITH_KERNELS = DECODED = ("dense", "selective")  # of their own, on a TPU; in decoding steps
WITHOUT_BUDGET = ("dense", FLASH)
OVERLAPS = (1.0, 3.0, 8.0)  # all neighbours agree, as trained routers showed, none of a tile's 8 tokens agrees
METRICS = {"seconds": "seconds", "temp_bytes": "temporaries (bytes)"}


@jax.jit
def choices(values) -> dict[str, jax.Array]:
    """How selective attention's queries use the blocks, see `usage`."""
    _, selection = selective_attention(
        *values, arm("selective").selection_config(), implementation=implementation(), return_selection=True)
    return usage(selection, -(-values[1].shape[1] // BLOCK.value))


def check_selective(rows: list[Row]) -> dict[str, dict]:
    """How selective attention compares with the reference at the shortest and the longest of its rows' lengths."""
    lengths = [row["length"] for row in rows if row["mechanism"] == "selective"]
    if not lengths:
        return {}
    ends = sorted({min(lengths), max(lengths)})
    return {"selective_against_reference": {length: check_at(length) for length in ends}}


def check_at(length: int) -> dict[str, float] | None:
    """How selective attention compares with the reference at a length, printed; None where both do not fit."""
    try:
        found = compare_with_reference(make_inputs(length), arm("selective").selection_config(), implementation())
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print(f"selective at {length}: not compared with the reference, {str(error).splitlines()[0]}")
        return None
    print(f"selective against the float32 reference at {length}: relative error {found['relative_error']:.1e}, "
          f"{found['choice_recall']:.2%} of its blocks")
    return found


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
    return gpu_parts(make_inputs(length), arm("selective").selection_config(), uniform=INPUTS.value == "uniform")


def part_cost(name: str, length: int) -> dict[str, float | None]:
    """What a part costs at a length, with the facts that belong to it."""
    part = parts(length)[name]
    return compiled_cost(part.function, *part.arguments, repeats=REPEATS.value) | part.facts


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
    if ESTIMATE_FOR.value:
        if why_not():
            raise app.UsageError(f"--estimate_for={ESTIMATE_FOR.value} compiles with libtpu: {why_not()}")
        if FANOUTS.value or not set(_MECHANISMS.value) & set(WITH_KERNELS):
            raise app.UsageError(f"--estimate_for knows {WITH_KERNELS} without --fanouts, got --mechanisms="
                                 f"{','.join(_MECHANISMS.value)} --fanouts={','.join(FANOUTS.value)}")
        if HEAD_DIM.value % LANES:
            raise app.UsageError(f"--estimate_for needs --head_dim that is a multiple of {LANES}, as the kernels do "
                                 f"(--head_dim=128 --dtype=bfloat16), got {HEAD_DIM.value}")
        if IMPLEMENTATION.value not in (None, "tpu"):
            raise app.UsageError("--estimate_for compiles --implementation=tpu, got --implementation="
                                 f"{IMPLEMENTATION.value}")
    if not _MECHANISMS.value:
        raise app.UsageError("--mechanisms must not be empty")
    if IMPLEMENTATION.value == "gpu" and not on_hopper():
        raise app.UsageError(f"--implementation=gpu needs a GPU of compute capability {CAPABILITY}, got "
                             f"{jax.devices()[0]}")
    if IMPLEMENTATION.value == "tpu" and platform() != "tpu":
        raise app.UsageError(f"--implementation=tpu needs a TPU or --estimate_for, got {jax.devices()[0]}")
    if "learned_router" in _MECHANISMS.value and ROUTER_DIM.value < INDEX_HEADS:
        raise app.UsageError(f"--router_dim must be at least {INDEX_HEADS}, the heads of learned_router, got "
                             f"{ROUTER_DIM.value}")
    if (INPUTS.value == "trained") != bool(TRAINED_RUN.value):
        raise app.UsageError(f"--inputs=trained and --trained_run go together, got --inputs={INPUTS.value} "
                             f"--trained_run={TRAINED_RUN.value}")
    if INPUTS.value == "trained":
        make_inputs(max(map(int, _LENGTHS.value)))
    if INPUTS.value == "uniform" and not _PARTS.value:
        raise app.UsageError("--inputs=uniform is what attention is given with --parts, got --noparts")
    if _PARTS.value and not on_hopper():
        raise app.UsageError(f"--parts needs a GPU of compute capability {CAPABILITY}, got {jax.devices()[0]}")
    for name in _MECHANISMS.value:
        if name != FLASH:
            arm_function(name)


def main(argv: list[str]) -> None:
    """Runs the benchmark and writes its results."""
    if ESTIMATE_FOR.value:
        jax.config.update("jax_platforms", "cpu")  # libtpu compiles, and must not look for chips
    workdir = start(argv, _WORKDIR.value, check_flags)
    lengths = [int(x) for x in _LENGTHS.value]
    if ESTIMATE_FOR.value:
        estimate(workdir / "estimates.jsonl", ESTIMATE_FOR.value, programs_to_estimate(sorted(lengths)), DTYPE.value)
        return
    facts = {"dense": dense_kernel(platform(), HEAD_DIM.value)[0]}
    if "selective" in _MECHANISMS.value and INPUTS.value == "trained":
        facts["choices"] = {length: jax.tree.map(float, choices(make_inputs(length))) for length in lengths}
    cases = [Case(stage, name, None if name in WITHOUT_BUDGET else BUDGET.value, functools.partial(
                 *((flash_cost,) if name == FLASH else (stage_cost, name)), stage))
             for name in _MECHANISMS.value for stage in (STAGES if name in SELECTING else STAGES[1:])]
    cases += [Case(f"decode_{batch}", name, None if name == "dense" else BUDGET.value,
                   functools.partial(decode_step, name, int(batch)))
              for batch in _DECODE_BATCHES.value for name in _MECHANISMS.value if name in DECODED]
    if _PARTS.value:
        cases += [Case(part, "selective", BUDGET.value, functools.partial(part_cost, part)) for part in PARTS]
    run_cases(workdir, lengths, cases, METRICS, ["lengths", "implementation", "inputs", "trained_run", "layer"],
              check=check_selective, **facts)


if __name__ == "__main__":
    run(main)
