"""A self-contained HTML report of a sweep: plots inside the page, tables with mean and spread, failures by name."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from subq_jax.files import write_text
from subq_jax.reporting import plots
from subq_jax.reporting.page import bullets, element, image, page, record, table
from subq_jax.reporting.results import (
    Row,
    Summary,
    arm_name,
    arms,
    at_best_rate,
    rate_losses,
    succeeded,
    summarise,
)
from subq_jax.reporting.verdict import verdict

_QUALITY = {"accuracy": "accuracy", "bits_per_byte": "bits per byte"}
_ROUTING = {
    "routing_weight_recall": "share of dense attention's weight on candidates that the router chooses",
    "routing_best_weight_recall": "share that the best choice of as many blocks would get",
    "routing_block_recall": "share of the best choice that the router makes too",
    "routing_tree_recall": "share of flat's choice that the tree finds",
    "routing_certified": "queries whose tree search is certainly flat's",
    "routing_gate_mean": "gate of chosen blocks, mean (nats)",
    "routing_gate_p99": "gate of chosen blocks, 99th percentile (nats)",
    "routing_chosen_weight": "softmax weight on chosen blocks",
    "routing_usage_entropy": "entropy of how often blocks are chosen (1: all alike)",
    "routing_union_4": "distinct blocks of 4 neighbouring tokens, over one token's",
    "routing_union_8": "distinct blocks of 8 neighbouring tokens, over one token's",
    "routing_union_16": "distinct blocks of 16 neighbouring tokens, over one token's",
}
_COSTS = {
    "forward_seconds": ("forward time", "seconds, one sequence, without compiling"),
    "forward_temp_bytes": ("forward memory", "bytes of temporaries, one sequence, by the compiler's account"),
    "forward_flops": ("forward FLOPs", "FLOPs, one sequence, analytic, selector included"),
}


def write_report(path: str | os.PathLike, rows: list[Row], **sections: Any) -> None:
    """Writes `render_report(rows, **sections)` to `path`, atomically."""
    write_text(path, render_report(rows, **sections))


def render_report(rows: list[Row], *, title: str, expected: Sequence[Row] = (), config: Mapping[str, Any] | None = None,
                  versions: Mapping[str, str] | None = None, notes: Sequence[str] = ()) -> str:
    """Renders the report; cells that failed or never ran are named and take nothing away from the rest.

    Args:
      rows: rows as described in `reporting.results`.
      title: heading of the page.
      expected: the cells that were asked for, each with `cell`; those without any row are listed as missing.
      config: what was run, JSON-able.
      versions: of `reporting.versions`.
      notes: sentences on how measurements were taken.
    """
    shown = at_best_rate(rows)
    body = ["<h2>What this run shows</h2>", bullets(verdict(shown)), *_problems(rows, expected)]
    for task, here in _by_task(shown):
        body += _task_section(task, here)
    body += _rates_section(rows)
    return page(title, body + record(config, versions, notes))


def write_plots(folder: str | os.PathLike, rows: list[Row]) -> None:
    """Writes every plot of the report into `folder` as a PNG file, for instance `recall_accuracy_vs_length.png`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for task, here in _by_task(at_best_rate(rows)):
        for metric in (*_QUALITY, *_ROUTING, *_COSTS):
            for against, _, png in _plots(task, here, metric):
                (folder / f"{task}_{metric}_vs_{against}.png").write_bytes(png)


def format_summary(summary: Summary | None, style: str = ".3f") -> str:
    """`mean ± std [min..max]`; the mean alone for a single seed, a dash for nothing."""
    if summary is None:
        return "–"
    if len(summary.values) == 1:
        return f"{summary.mean:{style}}"
    return f"{summary.mean:{style}} ± {summary.std:{style}} [{summary.low:{style}}..{summary.high:{style}}]"


def _task_section(task, rows):
    parts = [element("h2", f"Task: {task}")]
    for metric, label in _QUALITY.items():
        if any(row.get(metric) is not None for row in rows):
            parts.append(element("h3", label.capitalize()))
            parts += [image(png, title) for _, title, png in _plots(task, rows, metric)]
            parts.append(_table_by_length(rows, metric, ".3f"))
    parts += _routing_section(task, rows)
    parts.append("<h3>Cost</h3>")
    for metric, (label, unit) in _COSTS.items():
        for _, title, png in _plots(task, rows, metric):
            parts.append(image(png, title))
            parts += [element("p", f"{label.capitalize()} ({unit}):"), _table_by_length(rows, metric, ".3g")]
    parts += ["<p>Training, per arm:</p>", _training_table(rows)]
    return parts


def _routing_section(task, rows):
    shown = [metric for metric in _ROUTING if any(row.get(metric) is not None for row in rows)]
    parts = ["<h3>Routing</h3>"] if shown else []
    for metric in shown:
        routed = [row for row in rows if row.get(metric) is not None]
        parts += [image(png, title) for _, title, png in _plots(task, rows, metric)]
        parts += [element("p", f"{_ROUTING[metric].capitalize()}:"), _table_by_length(routed, metric, ".3f")]
    return parts


def _by_task(rows):
    done = succeeded(rows)
    return [(task, succeeded(done, task=task)) for task in sorted({row["task"] for row in done})]


def _plots(task, rows, metric):
    """(what it is drawn against, title, PNG) of each plot of a metric; none where nothing was measured."""
    if metric in _QUALITY:
        label = _QUALITY[metric]
        if any(row.get(metric) is not None for row in rows):
            for against, draw in (("length", plots.quality_vs_length), ("budget", plots.quality_vs_budget)):
                title = f"{task}: {label} against {against}"
                yield against, title, draw(rows, metric, title=title, ylabel=label)
    elif metric in _ROUTING:
        if any(row.get(metric) is not None for row in rows):
            title = f"{task}: {metric.replace('_', ' ')}"
            yield "length", title, plots.quality_vs_length(rows, metric, title=title, ylabel=_ROUTING[metric])
    elif any(row.get(metric) for row in rows):  # logarithmic axes have no place for 0
        label, unit = _COSTS[metric]
        yield "length", f"{task}: {label}", plots.cost_vs_length(rows, metric, title=f"{task}: {label}", ylabel=unit)


def _table_by_length(rows, metric, style):
    found = summarise(rows, metric, ["mechanism", "budget", "length"])
    lengths = sorted({length for _, _, length in found})
    trained = {row["train_length"] for row in rows}
    header = ["arm", *(f"{length}{' (training length)' if length in trained else ''}" for length in lengths), "seeds"]
    lines = []
    for arm in arms(rows):
        summaries = [found.get((*arm, length)) for length in lengths]
        seeds = max((len(summary.values) for summary in summaries if summary), default=0)
        lines.append([arm_name(*arm), *(format_summary(summary, style) for summary in summaries), seeds])
    return table(header, lines)


def _training_table(rows):
    metrics = {"train_step_seconds": "step time (median, s)", "train_flops_per_second": "FLOP/s while stepping",
               "train_steps": "steps", "parameters": "parameters"}
    shown = [metric for metric in metrics if any(row.get(metric) is not None for row in rows)]
    once = list({row["cell"]: row for row in rows}.values())  # a cell's rows repeat what does not depend on length
    tables = {metric: summarise(once, metric, ["mechanism", "budget"]) for metric in shown}
    lines = []
    for arm in arms(rows):
        lines.append([arm_name(*arm), *(format_summary(tables[metric].get(arm), ".4g") for metric in shown)])
    return table(["arm", *(metrics[metric] for metric in shown)], lines)


def _rates_section(rows):
    losses = rate_losses(rows)
    if not losses:
        return []
    rates = sorted({rate for arm in losses.values() for rate in arm})
    fields = ("task", "mechanism", "budget", "learning_rate")
    kept = {tuple(row.get(name) for name in fields) for row in succeeded(at_best_rate(rows))}
    lines = []
    for (task, mechanism, budget), found in sorted(losses.items(), key=str):
        best = next(rate for rate in found if (task, mechanism, budget, rate) in kept)
        lines.append([f"{task}: {arm_name(mechanism, budget)}", *(format_summary(found.get(rate)) for rate in rates),
                      f"{best:g}"])
    return ["<h2>Learning rates</h2>",
            "<p>Held-out loss at the training length; everything above is at each arm's best rate.</p>",
            table(["arm", *(f"{rate:g}" for rate in rates), "best"], lines)]


def _problems(rows, expected):
    failed = [row for row in rows if row["status"] == "failed"]
    present = {row["cell"] for row in rows}
    missing = [cell["cell"] for cell in expected if cell["cell"] not in present]
    parts = []
    if failed:
        parts.append(f'<h2 class="failed">Failed cells ({len(failed)})</h2>')
        for row in failed:
            where = f" (traceback: {row['traceback']})" if row.get("traceback") else ""
            parts += [element("p", row["cell"] + where), element("pre", row.get("error", "no message"))]
    if missing:
        parts += [f"<h2>Cells not run ({len(missing)})</h2>", bullets(missing)]
    return parts
