"""PNG plots of sweeps and evaluations. One colour per mechanism everywhere; seeds are points, lines are their means."""

import io
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from subq_jax.reporting.results import Row, arm_name, arm_slope, arms, succeeded, summarise

# Okabe & Ito (2008), a palette that stays apart for every common kind of colour vision.
COLOURS = {
    "dense": "#000000",
    "sliding_window": "#E69F00",
    "block_mean": "#0072B2",
    "gated_mean": "#F0E442",
    "selective": "#D55E00",
    "global_token": "#009E73",
    "learned_router": "#CC79A7",
    "oracle_topk": "#56B4E9",
    "random_blocks": "#999999",
}
CONTROL_COLOURS = {
    "no context": "#999999",
    "best work-around": "#CC79A7",
    "retrieval": "#0072B2",
    "vote": "#E69F00",
    "notes": "#009E73",
}
_STYLES = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "^", "D")


def quality_vs_length(rows: list[Row], metric: str, *, title: str, ylabel: str) -> bytes:
    """`metric` against the evaluated length, a line per arm, the training length marked."""
    figure, axes = _figure(title, "evaluated length (tokens)", ylabel)
    _draw_arms(axes, rows, metric)
    for train_length in sorted({row["train_length"] for row in succeeded(rows)}):
        axes.axvline(train_length, color="0.6", linewidth=1, zorder=0)
        axes.annotate("training length", (train_length, 1), xycoords=("data", "axes fraction"), xytext=(3, -3),
                      textcoords="offset points", rotation=90, va="top", fontsize=7, color="0.4")
    _log_lengths(axes, [row["length"] for row in succeeded(rows)])
    if metric == "accuracy":
        axes.set_ylim(-0.03, 1.03)
    return _png(figure, axes)


def quality_vs_budget(rows: list[Row], metric: str, *, title: str, ylabel: str) -> bytes:
    """`metric` against the budget at the training length and at the longest; arms without a budget are level lines."""
    done = succeeded(rows)
    lengths = sorted({row["length"] for row in done if row.get(metric) is not None})
    train_lengths = {row["train_length"] for row in done}
    shown = sorted({length for length in lengths if length in train_lengths} | set(lengths[-1:]))
    figure, axes = _figure(title, "budget (key positions a query sees)", ylabel)
    for style, marker, length in zip(_STYLES, _MARKERS, shown, strict=False):
        for mechanism in dict.fromkeys(mechanism for mechanism, _ in arms(done)):
            here = succeeded(done, mechanism=mechanism, length=length)
            points = summarise(here, metric, ["budget"])
            colour = _colour(mechanism)
            if (None,) in points:
                axes.axhline(points[None,].mean, color=colour, linestyle=style, label=f"{mechanism}, {length} tokens")
                continue
            budgets = sorted(budget for budget, in points)
            means = [points[budget,].mean for budget in budgets]
            axes.plot(budgets, means, color=colour, linestyle=style, marker=marker, markersize=4,
                      label=f"{mechanism}, {length} tokens")
            _draw_seeds(axes, [(budget, points[budget,].values) for budget in budgets], colour, marker)
    _log_lengths(axes, [row["budget"] for row in done if row["budget"] is not None])
    if metric == "accuracy":
        axes.set_ylim(-0.03, 1.03)
    return _png(figure, axes)


def cost_vs_length(rows: list[Row], metric: str, *, title: str, ylabel: str) -> bytes:
    """A cost on two logarithmic axes; the legend gives each arm's fitted slope (1: linear, 2: quadratic)."""
    figure, axes = _figure(title, "length (tokens)", ylabel)
    _draw_arms(axes, rows, metric, slopes=True)
    axes.set_yscale("log")
    _log_lengths(axes, [row["length"] for row in succeeded(rows)])
    return _png(figure, axes)


def scores_vs_length(rows: list[Row], *, title: str, threshold: float | None = None) -> bytes:
    """Mean scores of one task against the length, a line per arm with its interval, the level of guessing dotted.

    Args:
      rows: `dict(length, mechanism, budget, mean, low, high, chance)`, of `evaluation.summary.score_table`.
      title: heading.
      threshold: a dashed level, such as that of the effective length.
    """
    figure, axes = _figure(title, "length (tokens)", "score")
    pairs = arms(rows)
    for arm in pairs:
        here = [row for row in rows if (row["mechanism"], row["budget"]) == arm]
        _draw_scores(axes, here, arm_name(*arm), _arm_style(pairs, *arm))
    for chance in {row["chance"] for row in rows} - {None}:
        axes.axhline(chance, color="0.4", linestyle=":", linewidth=1, label="guessing")
    if threshold is not None:
        axes.axhline(threshold, color="0.4", linestyle="--", linewidth=1, label=f"threshold {threshold:g}")
    _log_lengths(axes, [row["length"] for row in rows])
    axes.set_ylim(-0.03, 1.03)
    return _png(figure, axes)


def controls_vs_length(rows: list[Row], *, title: str) -> bytes:
    """Mean scores of one model on one task against the length: with the whole context, without, and by work-arounds.

    Args:
      rows: as for `scores_vs_length`, with `control`; of one mechanism and budget.
      title: heading.
    """
    figure, axes = _figure(title, "length (tokens)", "score")
    of_colour = defaultdict(int)
    for control in dict.fromkeys(row["control"] for row in rows):
        known = next((name for name in CONTROL_COLOURS if control and control.startswith(name)), None)
        number = of_colour[known] % len(_STYLES)  # chunk sizes of one way share their colour
        of_colour[known] += 1
        style = {"color": CONTROL_COLOURS.get(known, "#000000"), "marker": _MARKERS[number],
                 "linestyle": _STYLES[number]}
        here = [row for row in rows if row["control"] == control]
        _draw_scores(axes, here, control or "whole context", style)
    _log_lengths(axes, [row["length"] for row in rows])
    axes.set_ylim(-0.03, 1.03)
    return _png(figure, axes)


def heat_map(values: Sequence[Sequence[float | None]], *, title: str, xlabel: str, ylabel: str,
             columns: Sequence[str], rows: Sequence[str], counts: Sequence[Sequence[int | None]]) -> bytes:
    """Scores in [0, 1] as a map with the numbers written in; None is left blank.

    Args:
      values: one sequence a row, from the top.
      counts: of the answers behind each value, written after it in brackets; laid out as `values`.
      title: heading.
      xlabel: what the columns are.
      ylabel: what the rows are.
      columns: a name each.
      rows: a name each.

    Raises:
      ValueError: without rows or columns, or when `values` has another shape.
    """
    if not rows or not columns or [len(line) for line in values] != [len(columns)] * len(rows):
        raise ValueError(f"values must have {len(rows)} rows of {len(columns)} columns, and one of each at least")
    scores = np.array(values, np.float64)  # None becomes NaN
    figure, axes = _figure(title, xlabel, ylabel, size=(2.4 + 0.9 * len(columns), 1.5 + 0.32 * len(rows)))
    axes.grid(False)
    drawn = axes.imshow(scores, vmin=0, vmax=1, cmap="cividis", aspect="auto")
    figure.colorbar(drawn, ax=axes, label="score")
    for (row, column), score in np.ndenumerate(scores):
        if not np.isnan(score):
            axes.text(column, row, f"{score:.2f} ({counts[row][column]})", ha="center", va="center", fontsize=7,
                      color="white" if score < 0.5 else "black")
    axes.set_xticks(range(len(columns)), columns, fontsize=8)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    return _bytes(figure)


def _draw_arms(axes, rows, metric, slopes=False):
    done = [row for row in succeeded(rows) if row.get(metric) is not None]
    pairs = arms(done)
    for mechanism, budget in pairs:
        points = summarise(succeeded(done, mechanism=mechanism, budget=budget), metric, ["length"])
        lengths = sorted(length for length, in points)
        style = _arm_style(pairs, mechanism, budget)
        label = arm_name(mechanism, budget)
        if slopes and (slope := arm_slope(done, mechanism, budget, metric)) is not None:
            label += f": slope {slope:.2f}"
        axes.plot(lengths, [points[length,].mean for length in lengths], markersize=4, label=label, **style)
        _draw_seeds(axes, [(length, points[length,].values) for length in lengths], style["color"], style["marker"])


def _arm_style(pairs, mechanism, budget):
    """An arm's colour by its mechanism, marker and line by its budget among those of `pairs`."""
    budgets = sorted({number for _, number in pairs if number is not None})
    index = 0 if budget is None else budgets.index(budget)
    return {"color": _colour(mechanism), "marker": _MARKERS[index % len(_MARKERS)],
            "linestyle": _STYLES[index % len(_STYLES)]}


def _draw_scores(axes, rows, label, style):
    """A line of mean scores with its interval, where there is one."""
    rows = sorted(rows, key=lambda row: row["length"])
    axes.plot([row["length"] for row in rows], [row["mean"] for row in rows], markersize=4, label=label, **style)
    sure = [row for row in rows if row["low"] is not None]
    axes.fill_between([row["length"] for row in sure], [row["low"] for row in sure], [row["high"] for row in sure],
                      color=style["color"], alpha=0.12, linewidth=0)


def _draw_seeds(axes, points, colour, marker):
    for x, values in points:
        axes.scatter([x] * len(values), values, s=14, marker=marker, facecolors="none", edgecolors=colour, alpha=0.6)


def _figure(title, xlabel, ylabel, size=(6.4, 4.2)):
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.25)
    return figure, axes


def _log_lengths(axes, lengths):
    if lengths:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(LogLocator(base=2))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: length_name(value) if value >= 1 else ""))


def length_name(length: float) -> str:
    """A number of tokens for an axis: 16K is 16,384 and 1M is 1,048,576; others in full."""
    for unit, size in (("M", 1 << 20), ("K", 1 << 10)):
        if length >= size and length % size == 0:
            return f"{length // size:.0f}{unit}"
    return f"{length:.0f}"


def _colour(mechanism):
    return COLOURS.get(mechanism, "#882255")


def _png(figure, axes):
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside right upper", fontsize=8)
    else:
        axes.text(0.5, 0.5, "no measurements", transform=axes.transAxes, ha="center", color="0.5")
    return _bytes(figure)


def _bytes(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
