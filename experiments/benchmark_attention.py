"""Times attention alone, choosing included: `python -m experiments.benchmark_attention --workdir=runs/benchmark`.

One layer's attention on random inputs, forward and forward + backward, every mechanism at every length; of those that
choose also the choosing alone, summaries included. Writes `results.jsonl`, `report.json` with the machine and the
fitted slopes, and log-log plots. With `--fanouts` the arms with a router choose through a tree. Selective attention is
checked at the shortest length against the float32 reference before anything is timed. A length that an arm cannot
finish within `--max_seconds` (judged from the one before) is left out and said so. Random inputs are the worst case
for locality.
"""

import functools
import json
import platform
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags
from absl import logging as absl_logging
from rich.console import Console
from rich.table import Table

from experiments.timing import compiled_cost
from subq_jax import selective_attention
from subq_jax.attention import (
    block_mean_attention,
    dense_attention,
    global_token_attention,
    learned_router_attention,
    oracle_topk_attention,
    random_blocks_attention,
    sliding_window_attention,
)
from subq_jax.attention.block_mean import group_mean
from subq_jax.attention.checks import locate
from subq_jax.attention.learned_router import Index, choose_tokens
from subq_jax.attention.mechanisms import MECHANISMS, ROUTED, SELECTING, Mechanism
from subq_jax.attention.oracle_topk import oracle_selection
from subq_jax.attention.random_blocks import random_selection
from subq_jax.files import append_row, write_text
from subq_jax.kernels.xla.selective import choose
from subq_jax.model.indexer import INDEX_HEADS
from subq_jax.reporting.plots import cost_vs_length
from subq_jax.reporting.results import Row, arm_name, arm_slope, arms
from subq_jax.selection.tree import build_tree

_WORKDIR = flags.DEFINE_string("workdir", "runs/benchmark", "Folder for the results.")
_LENGTHS = flags.DEFINE_list("lengths", ["4096", "8192", "16384", "32768", "65536"], "Context lengths, in tokens.")
_MECHANISMS = flags.DEFINE_list("mechanisms", list(MECHANISMS), f"Some of {MECHANISMS}.")
_BUDGET = flags.DEFINE_integer("budget", 1024, "Key positions visible to a query.", lower_bound=1)
_BLOCK = flags.DEFINE_integer("block_size", 64, "Tokens of a key block.", lower_bound=1)
_HEADS = flags.DEFINE_integer("num_heads", 8, "Query heads.", lower_bound=1)
_KV_HEADS = flags.DEFINE_integer("num_kv_heads", 1, "Key/value heads.", lower_bound=1)
_HEAD_DIM = flags.DEFINE_integer("head_dim", 64, "Head dimension.", lower_bound=1)
_ROUTER_DIM = flags.DEFINE_integer("router_dim", 64, "Router dimension.", lower_bound=1)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16", "float16"], "Type of the inputs.")
_FANOUTS = flags.DEFINE_list("fanouts", [], "Children of a tree node from the blocks up; empty for flat choosing.")
_BEAM = flags.DEFINE_integer("beam_width", 32, "Nodes kept per tree level.", lower_bound=1)
_REPEATS = flags.DEFINE_integer("repeats", 3, "Timed runs; the median counts.", lower_bound=1)
_MAX_SECONDS = flags.DEFINE_float("max_seconds", 60.0, "Longest single run.", lower_bound=0.0)

SINK_BLOCKS, LOCAL_BLOCKS = 1, 2
STAGES = ("choosing", "forward", "forward_backward")
METRICS = {"seconds": "seconds", "temp_bytes": "temporaries (bytes)"}


def make_inputs(length: int) -> tuple[jax.Array, ...]:
    """q, k, v, router_q, router_k of one random sequence; router features are non-negative as a trained model's."""
    keys = jax.random.split(jax.random.key(length), 5)
    heads = (_HEADS.value, _KV_HEADS.value, _KV_HEADS.value, _KV_HEADS.value, _KV_HEADS.value)
    widths = (_HEAD_DIM.value,) * 3 + (_ROUTER_DIM.value,) * 2
    values = [jax.random.normal(key, (1, length, n, h), jnp.dtype(_DTYPE.value))
              for key, n, h in zip(keys, heads, widths, strict=True)]
    return *values[:3], *map(jax.nn.softplus, values[3:])


def arm_function(name: str):
    """The arm as a function of q, k, v, router_q, router_k; arms without a router ignore the last two."""
    mechanism = arm(name)
    match name:
        case "dense":
            return lambda q, k, v, *router: dense_attention(q, k, v)
        case "sliding_window":
            return lambda q, k, v, *router: sliding_window_attention(q, k, v, mechanism.budget)
        case "global_token":
            slots = mechanism.num_slots
            slot_query = jax.random.normal(jax.random.key(0), (slots, _KV_HEADS.value, _HEAD_DIM.value))
            return lambda q, k, v, *router: global_token_attention(
                q, k, v, slot_query, mechanism.budget - slots, _BLOCK.value)
    config = mechanism.selection_config()
    if name in ROUTED:
        return functools.partial(selective_attention, config=config)
    if name == "learned_router":
        return lambda q, k, v, *router: learned_router_attention(q, k, v, make_index(*router), config)
    attend = {"block_mean": block_mean_attention, "random_blocks": random_blocks_attention,
              "oracle_topk": oracle_topk_attention}[name]
    return lambda q, k, v, *router: attend(q, k, v, config)


def arm(name: str) -> Mechanism:
    """The mechanism as the flags ask for it."""
    return Mechanism(name, _BUDGET.value, _BLOCK.value, SINK_BLOCKS, LOCAL_BLOCKS,
                     tuple(int(x) for x in _FANOUTS.value), _BEAM.value)


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
        return choose(router_q, build_tree(router_k, config), place, config)

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
    """Relative error of the default implementation against the float32 reference given the same selection."""
    config = arm("selective").selection_config()
    out, selection = jax.jit(lambda *x: selective_attention(*x, config, return_selection=True))(*values)
    exact = [x.astype(jnp.float32) for x in values]
    rows = slice(-min(256, out.shape[1]), None)  # the last queries see the most; the reference holds T x S
    expected = jax.jit(lambda q, k, v, router_q, router_k, ids: selective_attention(
        q, k, v, router_q, router_k, config, selection=ids, implementation="reference"))(
            exact[0][:, rows], *exact[1:3], exact[3][:, rows], exact[4], selection[:, rows])
    difference = jnp.linalg.norm((out[:, rows].astype(jnp.float32) - expected).ravel())
    return float(difference / jnp.linalg.norm(expected.ravel()))


def run(path: Path, console: Console) -> list[Row]:
    """Times every arm at every length; each row is in the file `path` as soon as it is measured."""
    rows, slow = [], {}
    with path.open("w", encoding="utf-8") as file:
        for length in sorted(int(x) for x in _LENGTHS.value):
            values = make_inputs(length)
            for name in _MECHANISMS.value:
                for stage in STAGES if name in SELECTING else STAGES[1:]:
                    before = slow.get((name, stage))
                    if before and before[1] * (length / before[0]) ** 2 > _MAX_SECONDS.value:
                        console.print(f"{name} {stage} at {length}: left out, it would take more than --max_seconds")
                        continue
                    row = {"task": stage, "mechanism": name, "budget": None if name == "dense" else _BUDGET.value,
                           "seed": 0, "status": "ok", "length": length, "train_length": length}
                    row |= compiled_cost(stage_function(name, stage), *values, repeats=_REPEATS.value)
                    slow[name, stage] = (length, row["seconds"])
                    rows.append(row)
                    append_row(file, row)
                    console.print(f"{arm_name(name, row['budget'])} {stage} at {length}: {row['seconds']:.3f} s, "
                                  f"{_mebibytes(row)} MiB")
    return rows


def stage_function(name: str, stage: str):
    """What is timed: the arm, its choosing alone, or its gradients with respect to everything that it reads."""
    if stage == "choosing":
        return choosing_function(name)
    function = arm_function(name)
    return function if stage == "forward" else with_gradients(function, used=5 if name in ROUTED else 3)


def summarise_stage(stage: str, rows: list[Row], workdir: Path, device: str, console: Console) -> dict[str, Any]:
    """Prints a stage's table, writes its plots, returns the slopes of cost over length by arm."""
    table = Table(title=f"{stage}, {device}")
    for column in ("arm", "length", "seconds", "temporaries MiB", "over dense"):
        table.add_column(column, justify="right")
    dense = {row["length"]: row["seconds"] for row in rows if row["mechanism"] == "dense"}
    for row in rows:
        speedup = f"{dense[row['length']] / row['seconds']:.2f}x" if row["length"] in dense else "-"
        table.add_row(arm_name(row["mechanism"], row["budget"]), str(row["length"]), f"{row['seconds']:.3f}",
                      _mebibytes(row), speedup)
    console.print(table)
    for metric, label in METRICS.items():
        png = cost_vs_length(rows, metric, title=stage.replace("_", " + "), ylabel=label)
        (workdir / f"{stage}_{metric}.png").write_bytes(png)
    slopes = {}
    for arm in arms(rows):
        slopes[f"{arm_name(*arm)} {stage}"] = {metric: arm_slope(rows, *arm, metric) for metric in METRICS}
    for name, values in slopes.items():
        shown = ("n/a" if slope is None else f"{slope:.2f}" for slope in values.values())
        console.print(f"{name}: " + ", ".join(f"slope of {m} {s}" for m, s in zip(values, shown, strict=True)))
    return slopes


def _mebibytes(row: Row) -> str:
    return "n/a" if row["temp_bytes"] is None else f"{row['temp_bytes'] / 2**20:.1f}"


def check_flags() -> None:
    """Raises UsageError for lengths and fan-outs that are none, and arms that cannot spend the budget."""
    if any(not x.isdigit() for x in _FANOUTS.value):
        raise app.UsageError(f"--fanouts must be integers, got {_FANOUTS.value}")
    if any(not x.isdigit() or int(x) < 1 for x in _LENGTHS.value):
        raise app.UsageError(f"--lengths must be positive integers, got {_LENGTHS.value}")
    try:
        for name in _MECHANISMS.value:
            arm_function(name)
    except ValueError as error:
        raise app.UsageError(str(error)) from error


def main(argv: list[str]) -> None:
    """Runs the benchmark and writes its results."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}")
    check_flags()
    absl_logging.set_verbosity(absl_logging.WARNING)
    console, workdir = Console(), Path(_WORKDIR.value)
    workdir.mkdir(parents=True, exist_ok=True)
    device = jax.devices()[0]
    report = {"device": f"{device.platform}: {device.device_kind}", "processor": platform.processor(),
              "python": platform.python_version(), "jax": jax.__version__,
              "flags": {name: flags.FLAGS[name].value for name in (
                  "lengths", "budget", "block_size", "num_heads", "num_kv_heads", "head_dim", "router_dim", "dtype",
                  "fanouts", "beam_width")}}
    if "selective" in _MECHANISMS.value:
        error = selective_error(make_inputs(min(int(x) for x in _LENGTHS.value)))
        report["selective_relative_error"] = error
        console.print(f"selective against the float32 reference: relative error {error:.1e}")
    rows = run(workdir / "results.jsonl", console)
    report["slopes"] = {}
    for stage in STAGES:
        mine = [row for row in rows if row["task"] == stage]
        report["slopes"] |= summarise_stage(stage, mine, workdir, report["device"], console)
    write_text(workdir / "report.json", json.dumps(report, indent=1))
    console.print(f"results in {workdir}")


if __name__ == "__main__":
    app.run(main)
