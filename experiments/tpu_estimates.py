"""What a TPU that is not there would need for attention: sizes as compiled, and the roofline of each kernel.

Estimates, nothing runs: `experiments.benchmark_attention --estimate_for=v5e` prints them in place of times.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from experiments.tpu_programs import TOPOLOGIES, compile_for, no_fall_back, planned, vmem_of_kernels
from subq_jax.files import append_row
from subq_jax.kernels.tpu.roofline import CHIPS, Work
from subq_jax.reporting.results import Row


class Program(NamedTuple):
    """One program to compile: an arm's stage at a length, and the work of its kernels by union of a tile's choices."""

    mechanism: str
    stage: str
    length: int
    function: Callable
    shapes: list[tuple[int, ...]]
    work: dict[float, dict[str, Work]]


def estimate(path: Path, chip: str, programs: list[Program], dtype: str) -> list[Row]:
    """Compiles the programs for `chip`, prints what they need and the least time of their kernels, writes the rows."""
    console = Console()
    console.print(f"estimates for one {chip}, nothing runs: sizes are the compiler's, times are what published rates "
                  "leave for the bytes and FLOPs of a kernel")
    rows = []
    with path.open("w", encoding="utf-8") as file:
        for program in programs:
            console.print(f"compiling {program.mechanism} {program.stage} at {program.length}")
            row = _row(chip, program, dtype)
            rows.append(row)
            append_row(file, row)
            if "error" in row:
                console.print(f"{program.mechanism} {program.stage} at {program.length}: {row['error']}")
    memory = CHIPS[chip].memory / CHIPS[chip].devices
    table = Table(title=f"compiled for {chip}, of {memory / 2**30:.0f} GiB of HBM and 16 MiB of VMEM a kernel")
    for column in ("arm", "stage", "length", "arguments\n(GiB)", "results\n(GiB)", "tempo-\nraries\n(GiB)",
                   "most VMEM\n(MiB)"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        if "error" not in row:
            sizes = (f"{row[name] / 2**30:.2f}" for name in ("argument", "output", "temp"))
            table.add_row(row["mechanism"], row["stage"].replace("_", "\n+ "), str(row["length"]), *sizes,
                          f"{max(row['vmem'].values()) / 2**20:.1f}" if row["vmem"] else "-")
    console.print(table)
    console.print(_roofline_table(chip, [program for program, row in zip(programs, rows, strict=True)
                                         if "roofline_seconds" in row]))
    return rows


def _row(chip: str, program: Program, dtype: str) -> Row:
    row = {"estimate_for": chip, "mechanism": program.mechanism, "stage": program.stage, "length": program.length}
    roofline = {str(overlap): {name: work.seconds(CHIPS[chip]) for name, work in kernels.items()}
                for overlap, kernels in program.work.items()}
    try:
        with no_fall_back():
            compiled = compile_for(TOPOLOGIES[chip], program.function, program.shapes, jnp.dtype(dtype))
    except UserWarning as error:  # no kernel runs that the roofline would be of
        return row | {"error": str(error)}
    except (NotImplementedError, jax.errors.JaxRuntimeError) as error:
        return row | {"roofline_seconds": roofline, "error": str(error).splitlines()[0]}
    return row | {"roofline_seconds": roofline} | planned(compiled) | {"vmem": vmem_of_kernels(compiled.as_text())}


def _roofline_table(chip: str, programs: list[Program]) -> Table:
    table = Table(title=f"estimated least ms on one {chip}, by the union of a tile's choices over one query's")
    overlaps = list(dict.fromkeys(overlap for program in programs for overlap in program.work))
    for column in ("kernel", "length", *(f"{overlap:g}x" for overlap in overlaps), "bound by"):
        table.add_column(column, justify="right", no_wrap=True)
    shown = set()
    for program in programs:
        for name in next(iter(program.work.values())):
            if (name, program.length) not in shown:
                shown.add((name, program.length))
                works = [program.work[overlap][name] for overlap in overlaps]
                flops, moved = works[-1].flops / CHIPS[chip].flops, works[-1].bytes / CHIPS[chip].bandwidth
                table.add_row(name, str(program.length), *(f"{1e3 * w.seconds(CHIPS[chip]):,.3f}" for w in works),
                              "FLOPs" if flops > moved else "bytes")
    return table
