"""What the benchmarks share: flags, rows written as they are measured, tables, plots and slopes, the report."""

import json
import platform
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import flax
import jax
from absl import app, flags
from absl import logging as absl_logging
from rich.console import Console
from rich.table import Table

from experiments.program import refuse_arguments
from subq_jax.attention.mechanisms import Mechanism
from subq_jax.files import append_row, write_text
from subq_jax.reporting.plots import cost_vs_length
from subq_jax.reporting.results import Row, arm_name, arm_slope, arms

BUDGET = flags.DEFINE_integer("budget", 1024, "Key positions visible to a query.", lower_bound=1)
BLOCK = flags.DEFINE_integer("block_size", 64, "Tokens of a key block.", lower_bound=1)
HEADS = flags.DEFINE_integer("num_heads", 8, "Query heads.", lower_bound=1)
KV_HEADS = flags.DEFINE_integer("num_kv_heads", 1, "Key/value heads.", lower_bound=1)
HEAD_DIM = flags.DEFINE_integer("head_dim", 64, "Head dimension.", lower_bound=1)
ROUTER_DIM = flags.DEFINE_integer("router_dim", 64, "Router dimension.", lower_bound=1)
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16", "float16"], "Type of activations and caches.")
FANOUTS = flags.DEFINE_list("fanouts", [], "Children of a tree node from the blocks up; empty for flat choosing.")
BEAM = flags.DEFINE_integer("beam_width", 32, "Nodes kept per tree level.", lower_bound=1)
REPEATS = flags.DEFINE_integer("repeats", 3, "Timed runs; the median counts.", lower_bound=1)
MAX_SECONDS = flags.DEFINE_float("max_seconds", 60.0, "Longest single run.", lower_bound=0.0)
_SHAPE_FLAGS = ("budget", "block_size", "num_heads", "num_kv_heads", "head_dim", "router_dim", "dtype", "fanouts",
                "beam_width", "repeats")

SINK_BLOCKS, LOCAL_BLOCKS = 1, 2


class Case(NamedTuple):
    """What is timed of which arm; `cost` takes a length in tokens and returns the row's measurements."""

    task: str
    mechanism: str
    budget: int | None
    cost: Callable[[int], Row]


def fanouts() -> tuple[int, ...]:
    """`--fanouts` as numbers."""
    return tuple(int(x) for x in FANOUTS.value)


def arm(name: str) -> Mechanism:
    """The mechanism as the flags ask for it; raises ValueError where it cannot spend `--budget`."""
    return Mechanism(name, BUDGET.value, BLOCK.value, SINK_BLOCKS, LOCAL_BLOCKS, fanouts(), BEAM.value)


def check_numbers(lengths: list[str]) -> None:
    """Raises UsageError for lengths and fan-outs that are none."""
    if any(not x.isdecimal() for x in FANOUTS.value):
        raise app.UsageError(f"--fanouts must be integers, got {FANOUTS.value}")
    if not lengths:
        raise app.UsageError("--lengths must not be empty")
    check_positive("lengths", lengths)


def check_positive(flag: str, values: list[str]) -> None:
    """Raises UsageError, naming the flag, unless all of its values are positive integers."""
    if any(not x.isdecimal() or int(x) < 1 for x in values):
        raise app.UsageError(f"--{flag} must be positive integers, got {values}")


def run_cases(
    workdir: Path, lengths: Iterable[int], cases: list[Case], metrics: dict[str, str], flag_names: Iterable[str],
    *, compared: str = "seconds", check: Callable[[list[Row]], dict[str, Any]] = lambda rows: {}, **facts: Any,
) -> None:
    """Times every case at every length, shows what came out, and writes it to `workdir`.

    Args:
      workdir: folder for `results.jsonl`, `report.json` and the plots `TASK_METRIC.png`.
      lengths: in tokens.
      cases: what to time.
      metrics: the rows' measurements to show, with the label of each one's axis.
      flag_names: flags that the report keeps beside those of this module.
      compared: the metric that tables compare with dense's.
      check: looks at what was timed, and returns further entries of the report.
      **facts: further entries of the report.
    """
    console, device = Console(), jax.devices()[0]
    report = {"device": f"{device.platform}: {device.device_kind}", "processor": platform.processor(),
              "python": platform.python_version(), "jax": jax.__version__, "flax": flax.__version__,
              "flags": {name: flags.FLAGS[name].value for name in (*flag_names, *_SHAPE_FLAGS)}} | facts
    rows = measure(workdir / "results.jsonl", sorted(lengths), cases, console)
    report |= {"slopes": {}} | check(rows)
    for task in dict.fromkeys(case.task for case in cases):
        mine = [row for row in rows if row["task"] == task]
        show(f"{task}, {report['device']}", mine, metrics, compared, console)
        for metric, label in metrics.items():
            png = cost_vs_length(mine, metric, title=task.replace("_", " + "), ylabel=label)
            (workdir / f"{task}_{metric}.png").write_bytes(png)
        for one in arms(mine):
            slopes = {metric: arm_slope(mine, *one, metric) for metric in metrics}
            report["slopes"][f"{arm_name(*one)} {task}"] = slopes
            shown = (f"slope of {name} " + ("n/a" if slope is None else f"{slope:.2f}")
                     for name, slope in slopes.items())
            console.print(f"{arm_name(*one)} {task}: {', '.join(shown)}")
    write_text(workdir / "report.json", json.dumps(report, indent=1))
    console.print(f"results in {workdir}")


def measure(path: Path, lengths: list[int], cases: list[Case], console: Console) -> list[Row]:
    """The rows of all cases at ascending lengths; each is in the file `path` as soon as it is measured.

    A case whose run of `seconds` would take more than `--max_seconds`, were it quadratic, is left out and said so.
    """
    rows, last = [], {}
    with path.open("w", encoding="utf-8") as file:
        for length in lengths:
            for case in cases:
                before = last.get(case)
                if before and before["seconds"] * (length / before["length"]) ** 2 > MAX_SECONDS.value:
                    console.print(f"{case.mechanism} {case.task} at {length}: left out, "
                                  "it would take more than --max_seconds")
                    continue
                try:
                    cost = case.cost(length)
                except (NotImplementedError, jax.errors.JaxRuntimeError) as error:  # not taken, or too large
                    console.print(f"{case.mechanism} {case.task} at {length}: left out, {str(error).splitlines()[0]}")
                    continue
                row = {"task": case.task, "mechanism": case.mechanism, "budget": case.budget, "seed": 0,
                       "status": "ok", "length": length, "train_length": length} | cost
                last[case] = row
                rows.append(row)
                append_row(file, row)
                console.print(f"{arm_name(case.mechanism, case.budget)} {case.task} at {length}: "
                              f"{_shown(row, 'seconds')} s, {_shown(row, 'temp_bytes')} MiB")
    return rows


def show(title: str, rows: list[Row], metrics: Iterable[str], compared: str, console: Console) -> None:
    """Prints a table of the rows, and how many times dense's cost is that of each at its length."""
    table = Table(title=title)
    names = {"temp_bytes": "temporaries MiB"}
    for column in ("arm", "length", *(names.get(metric, metric.replace("_", " ")) for metric in metrics), "over dense"):
        table.add_column(column, justify="right", no_wrap=column == "arm")
    dense = {row["length"]: row[compared] for row in rows if row["mechanism"] == "dense"}
    for row in rows:
        speedup = f"{dense[row['length']] / row[compared]:.3g}x" if row["length"] in dense else "-"
        table.add_row(arm_name(row["mechanism"], row["budget"]), str(row["length"]),
                      *(_shown(row, metric) for metric in metrics), speedup)
    console.print(table)


def _shown(row: Row, metric: str) -> str:
    value = row[metric]
    if metric == "temp_bytes":
        return "n/a" if value is None else f"{value / 2**20:.1f}"
    return f"{value:.3f}" if value >= 0.1 else f"{value:.3g}"


def start(argv: list[str], workdir: str, check: Callable[[], None]) -> Path:
    """The folder of results, made; ends in one line for left-over arguments and for what `check` refuses."""
    refuse_arguments(argv)
    try:
        check()
    except ValueError as error:
        raise app.UsageError(str(error)) from error
    absl_logging.set_verbosity(absl_logging.WARNING)
    Path(workdir).mkdir(parents=True, exist_ok=True)
    return Path(workdir)
