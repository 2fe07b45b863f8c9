"""What runs the cells of a sweep: this process, or processes side by side that share out cores and GPUs."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from experiments import sweep_cell
from experiments.sweep_grid import Cell


@contextlib.contextmanager
def make_workers(count: int, workdir: Path, gpus: int = 0) -> Iterator[list[Callable[[Path], None]]]:
    """Yields `count` functions that run the cell in a folder: this process for one without `gpus`, else processes."""
    cache = str(workdir / "compilation_cache")
    if count == 1 and not gpus:
        sweep_cell.set_compilation_cache(cache)
        try:
            yield [_run_here]
        finally:
            sweep_cell.set_compilation_cache("")
        return
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    workers = [Worker(workdir, index, cores[index::count], cache, gpu_share(index, count, gpus))
               for index in range(count)]
    try:
        yield workers
    finally:
        for worker in workers:
            worker.stop()


def gpu_share(index: int, count: int, gpus: int) -> dict[str, str]:
    """The environment of worker `index` of `count` that has one of `gpus` GPUs; what the user set wins.

    Raises:
      ValueError: when CUDA_VISIBLE_DEVICES shows fewer GPUs.
    """
    if not gpus:
        return {}
    shown = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = shown.split(",") if shown else [str(gpu) for gpu in range(gpus)]
    if len(names) < gpus:
        raise ValueError(f"--gpus={gpus} is more than CUDA_VISIBLE_DEVICES={shown} shows")
    together = -(-count // gpus)  # workers of the fullest GPU
    memory = os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{0.88 / together:.3f}")
    return {"CUDA_VISIBLE_DEVICES": names[index % gpus], "XLA_PYTHON_CLIENT_MEM_FRACTION": memory}


def _run_here(folder: Path) -> None:
    sweep_cell.run_cell(folder)
    jax.clear_caches()  # cells share nothing in memory; what they compiled would pile up


class Worker:
    """A `sweep_cell` process that outlives its cells, because importing and starting costs seconds."""

    def __init__(self, workdir: Path, index: int, cores: list[int], cache: str, environment: dict[str, str]):
        self._log = workdir / f"worker-{index}.log"
        self._command = [sys.executable, "-m", "experiments.sweep_cell", f"--compilation_cache={cache}",
                         f"--cores={','.join(map(str, cores))}"]
        self._environment = os.environ | environment
        self._process = None

    def __call__(self, folder: Path) -> None:
        if self._process is None:
            with self._log.open("a") as log:
                self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                                 stderr=log, text=True, cwd=Path(__file__).parents[1],
                                                 env=self._environment)
        with contextlib.suppress(BrokenPipeError):  # the worker died between cells; the exit status below tells
            self._process.stdin.write(f"{folder}\n")
            self._process.stdin.flush()
        if any(line.strip() == sweep_cell.DONE for line in self._process.stdout):
            return
        status, self._process = self._process.wait(), None
        cell = Cell(**json.loads((folder / "request.json").read_text(encoding="utf-8")))
        message = f"the worker process ended with status {status}; its messages are in {self._log.name}"
        sweep_cell.write_result(cell, folder, [sweep_cell.failed_row(cell, folder, message)])

    def stop(self) -> None:
        """Ends the process; a cell under way resumes from its last checkpoint."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
