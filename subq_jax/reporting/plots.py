"""PNG plots of a sweep. One colour per mechanism everywhere; seeds are points, lines are their means."""

import io

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


def _draw_arms(axes, rows, metric, slopes=False):
    done = [row for row in succeeded(rows) if row.get(metric) is not None]
    budgets = sorted({row["budget"] for row in done if row["budget"] is not None})
    for mechanism, budget in arms(done):
        points = summarise(succeeded(done, mechanism=mechanism, budget=budget), metric, ["length"])
        lengths = sorted(length for length, in points)
        index = 0 if budget is None else budgets.index(budget)
        marker, colour = _MARKERS[index % len(_MARKERS)], _colour(mechanism)
        label = arm_name(mechanism, budget)
        if slopes and (slope := arm_slope(done, mechanism, budget, metric)) is not None:
            label += f": slope {slope:.2f}"
        axes.plot(lengths, [points[length,].mean for length in lengths], color=colour, marker=marker, markersize=4,
                  linestyle=_STYLES[index % len(_STYLES)], label=label)
        _draw_seeds(axes, [(length, points[length,].values) for length in lengths], colour, marker)


def _draw_seeds(axes, points, colour, marker):
    for x, values in points:
        axes.scatter([x] * len(values), values, s=14, marker=marker, facecolors="none", edgecolors=colour, alpha=0.6)


def _figure(title, xlabel, ylabel):
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
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
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if value >= 1 else ""))


def _colour(mechanism):
    return COLOURS.get(mechanism, "#882255")


def _png(figure, axes):
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside right upper", fontsize=8)
    else:
        axes.text(0.5, 0.5, "no measurements", transform=axes.transAxes, ha="center", color="0.5")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
