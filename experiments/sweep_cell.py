"""One cell of a sweep: train a model, score and time it at every length, leave the rows in the cell's folder.

    <cell>/request.json   what is asked: the cell's place in the grid, its config, how it is evaluated
    <cell>/training/      the run, see `subq_jax.training.train`
    <cell>/result.json    what came out: the request it answers and its rows
    <cell>/error.txt      the traceback of a cell that failed

As a program it is a worker of `experiments.sweep`: it reads cell folders from standard input, one a line, answers each
with `DONE`, and ends as soon as its input does, so that no worker outlives the sweep.
"""

import json
import os
import queue
import statistics
import sys
import threading
import traceback
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import flags
from absl import logging as absl_logging
from flax import nnx
from ml_collections import ConfigDict

from experiments.program import run
from experiments.sweep_grid import Cell
from experiments.timing import compiled_cost
from subq_jax.evaluation import evaluate, held_out_routing
from subq_jax.files import write_text
from subq_jax.model.flops import forward_flops, training_flops
from subq_jax.reporting.results import Row
from subq_jax.training import train

_CORES = flags.DEFINE_list("cores", [], "CPU cores this process may use; empty for all.")
_CACHE = flags.DEFINE_string("compilation_cache", "", "Folder in which compiled programs are kept; empty for none.")

DONE = "cell done"


def run_cell(folder: Path) -> None:
    """Answers `folder/request.json` with `folder/result.json`; an exception becomes a failed row and a traceback."""
    cell = Cell(**json.loads((folder / "request.json").read_text(encoding="utf-8")))
    try:
        rows = measure_cell(cell, folder)
        (folder / "error.txt").unlink(missing_ok=True)
    except Exception as error:
        write_text(folder / "error.txt", traceback.format_exc())
        rows = [failed_row(cell, folder, f"{type(error).__name__}: {error}")]
    write_result(cell, folder, rows)


def measure_cell(cell: Cell, folder: Path) -> list[Row]:
    """Trains (or resumes) the cell's run, then makes one row for each evaluated length."""
    config = ConfigDict(cell.config)
    trained = train(config, folder / "training", show_progress=False)
    shape = trained.model.config
    asked = cell.evaluation
    scores = evaluate(trained.model, config.data, lengths=asked["lengths"], num_batches=asked["num_batches"],
                      batch_size=asked["batch_size"], seed=config.seed)
    step_seconds = median_step_seconds(trained.metrics, config)
    step_flops = config.data.batch_size * training_flops(shape, config.data.seq_len)
    common = cell.place() | {
        "status": "ok",
        "train_length": config.data.seq_len,
        "train_steps": trained.step,
        "train_step_seconds": step_seconds,
        "train_flops_per_second": step_seconds and step_flops / step_seconds,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(nnx.state(trained.model, nnx.Param))),
    }
    rows = []
    for score in scores:
        repeats = asked["timing_repeats"]
        cost = forward_cost(trained.model, score["length"], repeats) if repeats else {}
        routing = held_out_routing(trained.model, config.data, length=score["length"],
                                   batch_size=asked["batch_size"], seed=config.seed)
        flops = {"forward_flops": forward_flops(shape, score["length"])["total"]}
        rows.append(common | score | routing | cost | flops)
    return rows


def median_step_seconds(metrics: list[Row], config: ConfigDict) -> float | None:
    """Wall time of a training step at the training length, input included, compilation and checkpoints not.

    The median over the logged intervals after the dense warm-up and the curriculum; None if there was no such interval.
    """
    settled = max([config.training.dense_steps, *(entry[0] for entry in config.data.get("curriculum", ()))])
    rates = [row["tokens_per_second"] for row in metrics
             if "tokens_per_second" in row and row["step"] - config.training.log_every >= settled]
    return config.data.batch_size * config.data.seq_len / statistics.median(rates) if rates else None


def forward_cost(model: nnx.Module, length: int, repeats: int) -> Row:
    """Median time of one sequence's compiled forward pass, and the compiler's account of its temporaries in bytes."""
    graphdef, params = nnx.split(model)
    tokens = jnp.arange(length, dtype=jnp.int32)[None] % model.config.vocab_size
    cost = compiled_cost(lambda params, tokens: nnx.merge(graphdef, params)(tokens), params, tokens, repeats=repeats)
    return {f"forward_{name}": value for name, value in cost.items()}


def failed_row(cell: Cell, folder: Path, error: str) -> Row:
    """The row of a cell that has no results."""
    kept = (folder / "error.txt").exists()
    return cell.place() | {"status": "failed", "error": error,
                           "traceback": f"cells/{folder.name}/error.txt" if kept else None}


def write_result(cell: Cell, folder: Path, rows: list[Row]) -> None:
    """Writes the answer together with the request that it answers."""
    write_text(folder / "result.json", json.dumps({"request": cell.request(), "rows": rows}, indent=1))


def set_compilation_cache(folder: str) -> None:
    """Keeps compiled programs in `folder`, so that cells that differ in nothing but the seed share them."""
    jax.config.update("jax_compilation_cache_dir", folder or None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _read_requests(requests: queue.Queue) -> None:
    for line in sys.stdin:
        requests.put(Path(line.strip()))
    os._exit(0)  # the sweep is over, or was killed: a cell under way resumes from its last checkpoint


def main(argv: list[str]) -> None:
    """Runs the cells that it is sent, one after another."""
    del argv
    if _CORES.value and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core) for core in _CORES.value})  # before XLA counts cores for its thread pool
    absl_logging.set_verbosity(absl_logging.WARNING)
    set_compilation_cache(_CACHE.value)
    requests = queue.Queue()
    threading.Thread(target=_read_requests, args=(requests,), daemon=True).start()
    while True:
        run_cell(requests.get())
        jax.clear_caches()
        print(DONE, flush=True)


if __name__ == "__main__":
    run(main)
