"""Compares mechanisms: `python -m experiments.sweep --config=configs/readme_sweep.py --workdir=runs/readme`.

Trains every cell of the grid task x mechanism x budget x learning rate x seed that `config.sweep` describes, scores and
times it at each evaluation length, and writes `results.jsonl`, a self-contained `report.html` and its `plots` into the
workdir. Started again with the same command it skips finished cells, resumes the one that was cut off and tries failed
ones anew. A cell that fails is reported and the rest goes on; the exit status then is 1.
"""

import json
import queue
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from absl import flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from experiments.program import refuse_arguments, run
from experiments.sweep_grid import Cell, grid
from experiments.sweep_workers import make_workers
from subq_jax.data import data_info
from subq_jax.files import write_rows, write_text
from subq_jax.reporting.results import Row, at_best_rate
from subq_jax.reporting.sweep import write_plots, write_report
from subq_jax.reporting.verdict import verdict
from subq_jax.reporting.versions import versions
from subq_jax.training.workdir import claim_workdir, only_process_in

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file with a `sweep` section.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the sweep: cells, results.jsonl, report.html.")
_CELLS = flags.DEFINE_string("cells", "", "Regular expression; only cells whose name matches are run.")
_PARALLEL = flags.DEFINE_integer(
    "parallel_cells", 1, "Cells at a time, each in a worker process with its share of the cores; 1 uses this process.",
    lower_bound=1)
_GPUS = flags.DEFINE_integer(
    "gpus", 0, "GPUs that the worker processes share out among them, each with its part of one's memory; 0 leaves it "
    "to JAX, where every process takes all GPUs and most of their memory.", lower_bound=0)


def prepare(cells: list[Cell], workdir: Path) -> None:
    """Makes the data ready and claims every cell's folder for its config, before anything is trained.

    Raises:
      ValueError: when a folder belongs to another config, or the data cannot be used.
    """
    for task in dict.fromkeys(cell.task for cell in cells):
        data_info(ConfigDict(next(cell.config for cell in cells if cell.task == task)).data)
    for cell in cells:  # after that: a folder claimed for data that cannot be used would refuse the corrected config
        claim_workdir(_folder(workdir, cell), ConfigDict(cell.config), "")


def is_complete(cell: Cell, workdir: Path) -> bool:
    """Whether the folder answers exactly this request, without failure."""
    path = _folder(workdir, cell) / "result.json"
    if not path.exists():
        return False
    result = json.loads(path.read_text(encoding="utf-8"))
    return result["request"] == cell.request() and all(row["status"] == "ok" for row in result["rows"])


def run_cells(cells: list[Cell], workdir: Path, workers: list[Callable[[Path], None]], console: Console) -> None:
    """Runs the cells on `workers` side by side and keeps `results.jsonl` up to date."""
    free = queue.SimpleQueue()
    for worker in workers:
        free.put(worker)
    running, lock = [], threading.Lock()
    columns = (TextColumn("cells"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"),
               TimeRemainingColumn(elapsed_when_finished=False), TextColumn("{task.fields[now]}"))
    with Progress(*columns, console=console) as progress, ThreadPoolExecutor(len(workers)) as pool:
        bar = progress.add_task("cells", total=len(cells), now="")

        def run_one(cell: Cell) -> None:
            folder, worker = _folder(workdir, cell), free.get()
            with lock:
                running.append(cell.name)
                progress.update(bar, now=", ".join(running))
            write_text(folder / "request.json", json.dumps(cell.request(), indent=1))
            try:
                worker(folder)
            finally:
                free.put(worker)
            rows = json.loads((folder / "result.json").read_text(encoding="utf-8"))["rows"]
            with lock:
                running.remove(cell.name)
                write_rows(workdir / "results.jsonl", collect(workdir))
                progress.update(bar, advance=1, now=", ".join(running))
                console.print(_one_line(cell, rows), highlight=False, markup=False, soft_wrap=True)

        try:
            list(pool.map(run_one, cells))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def collect(workdir: Path) -> list[Row]:
    """The rows of every cell in the workdir that has an answer, whichever command ran it."""
    results = sorted((workdir / "cells").glob("*/result.json"))
    return [row for path in results for row in json.loads(path.read_text(encoding="utf-8"))["rows"]]


def _folder(workdir: Path, cell: Cell) -> Path:
    return workdir / "cells" / cell.name


def _one_line(cell: Cell, rows: list[Row]) -> str:
    if rows[0]["status"] == "failed":
        return f"{cell.name}: FAILED, {rows[0]['error']}"
    metric = "bits_per_byte" if rows[0].get("bits_per_byte") is not None else "accuracy"
    values = ", ".join(f"{row['length']}: {row[metric]:.3f}" for row in rows)
    return f"{cell.name}: {metric.replace('_', ' ')} at {values}"


def _notes(parallel: int) -> list[str]:
    where = ("one cell at a time in one process" if parallel == 1 else
             f"{parallel} cells at a time, each in a process of its own with its share of the CPU cores")
    return [
        f"Times were taken with {where}; cells run in the same sweep can be compared, other machines cannot.",
        "Forward time is the median of repeated calls of the compiled forward pass on one sequence. Training step time "
        "is the median over logged intervals after the dense warm-up and the curriculum, input included, compilation, "
        "evaluation and checkpoints not.",
        "Forward memory is the size of temporaries that the compiler plans for that forward pass, without parameters; "
        "a process's own peak would be the peak of everything it did before.",
        "FLOPs are counted analytically: causal and sparse work discounted, the selector included.",
        "Each arm was trained with the same data, steps and choice of learning rates. Budget is the number of key "
        "positions that a query sees in the layers under study, sinks and local blocks included; local layers are the "
        "same in all arms.",
        "Evaluation uses held-out data. Longer sequences than the training length are beyond anything the model saw.",
    ]


def run_sweep(config: ConfigDict, workdir: Path, *, pattern: str, parallel: int, console: Console,
              gpus: int = 0) -> list[str]:
    """Runs the cells whose name matches `pattern`, writes results and report, returns the names of failed cells.

    Raises:
      ValueError: for anything wrong with the config, the pattern, the workdir (another sweep at work in it included) or
        the data, before any training.
    """
    every = grid(config)
    try:
        chosen = [cell for cell in every if re.search(pattern, cell.name)]
    except re.error as error:
        raise ValueError(f"--cells must be a regular expression, got {pattern!r}: {error}") from error
    if not chosen:
        raise ValueError(f"--cells={pattern} matches none of {[cell.name for cell in every]}")
    with only_process_in(workdir):
        return _run_chosen(config, chosen, every, workdir, parallel, gpus, console)


def _run_chosen(config, chosen, every, workdir, parallel, gpus, console) -> list[str]:
    prepare(chosen, workdir)
    todo = [cell for cell in chosen if not is_complete(cell, workdir)]
    console.print(f"{len(chosen)} cells, {len(chosen) - len(todo)} of them finished before")
    if todo:
        with make_workers(min(parallel, len(todo)), workdir, gpus) as workers:
            run_cells(todo, workdir, workers, console)
    rows = collect(workdir)
    write_rows(workdir / "results.jsonl", rows)
    write_report(workdir / "report.html", rows, title="Selective attention against its rivals",
                 expected=[cell.place() for cell in every], config=config.to_dict(), versions=versions(),
                 notes=_notes(parallel))
    write_plots(workdir / "plots", rows)
    for sentence in verdict(at_best_rate(rows)):
        console.print(f"- {sentence}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"Report: {workdir / 'report.html'}", soft_wrap=True)
    return [row["cell"] for row in rows if row["status"] == "failed"]


def main(argv: list[str]) -> None:
    """Runs the cells that are not finished, and writes the report."""
    refuse_arguments(argv)
    absl_logging.set_verbosity(absl_logging.WARNING)
    try:
        failed = run_sweep(_CONFIG.value, Path(_WORKDIR.value).absolute(), pattern=_CELLS.value,
                           parallel=_PARALLEL.value, gpus=_GPUS.value, console=Console())
    except ValueError as error:
        raise SystemExit(f"ValueError: {error}") from None
    if failed:
        raise SystemExit(f"{len(failed)} cells failed: {', '.join(failed)}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    run(main)
