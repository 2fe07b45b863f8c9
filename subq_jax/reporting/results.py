"""Rows of results, and their mean and spread over seeds.

A row describes one (cell, evaluated length): `cell`, `task`, `mechanism`, `budget` (null: the arm sees everything),
`seed`, `status` ("ok" or "failed"), `train_length`, `length`, and the measurements as flat numbers, null where a
measurement does not apply. A failed cell has one row, with `error` in place of measurements.
"""

import dataclasses
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from subq_jax.attention.mechanisms import MECHANISMS

Row = dict[str, Any]
_ARM = ("task", "mechanism", "budget")


@dataclasses.dataclass(frozen=True)
class Summary:
    """Values of one measurement over the seeds of a group, never empty."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def std(self) -> float:
        """Sample standard deviation; NaN for a single seed, which has no spread to speak of."""
        return statistics.stdev(self.values) if len(self.values) > 1 else float("nan")

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)


def succeeded(rows: Iterable[Row], **where: Any) -> list[Row]:
    """Rows of cells that finished, restricted to the given field values."""
    done = (row for row in rows if row["status"] == "ok")
    return [row for row in done if all(row.get(name) == value for name, value in where.items())]


def summarise(rows: Iterable[Row], metric: str, by: Sequence[str]) -> dict[tuple, Summary]:
    """Groups `metric` by the fields `by`; rows without that measurement are left out, groups without rows absent."""
    groups = defaultdict(list)
    for row in rows:
        if row.get(metric) is not None:
            groups[tuple(row.get(name) for name in by)].append(float(row[metric]))
    return {key: Summary(tuple(values)) for key, values in groups.items()}


def rate_losses(rows: Iterable[Row]) -> dict[tuple, dict[float, Summary]]:
    """Held-out loss at the training length by (task, mechanism, budget) and learning rate, over the seeds.

    Arms that were run at one learning rate alone are left out. Where the training length was not evaluated, the
    shortest one stands for it.
    """
    found = defaultdict(dict)
    for (*arm, rate), summary in summarise(_at_training_length(rows), "loss", [*_ARM, "learning_rate"]).items():
        found[tuple(arm)][rate] = summary
    return {arm: rates for arm, rates in found.items() if len(rates) > 1}


def at_best_rate(rows: Sequence[Row]) -> list[Row]:
    """The rows without those of learning rates at which their arm does worse; failed cells stay.

    Each arm is judged alike: by its mean loss on held-out data at the training length, over the seeds that were run at
    every one of its rates (over all seeds where there are none). Evaluation beyond the training length has no say.
    """
    best = {}
    for task, mechanism, budget in rate_losses(rows):
        here = _at_training_length(succeeded(rows, task=task, mechanism=mechanism, budget=budget))
        seeds = [{row["seed"] for row in here if row["learning_rate"] == rate}
                 for rate in {row["learning_rate"] for row in here}]
        common = set.intersection(*seeds) or set.union(*seeds)
        losses = summarise((row for row in here if row["seed"] in common), "loss", ["learning_rate"])
        best[task, mechanism, budget] = min(losses, key=lambda key: losses[key].mean)[0]
    return [row for row in rows if row["status"] != "ok"
            or row.get("learning_rate") == best.get(tuple(row[name] for name in _ARM), row.get("learning_rate"))]


def _at_training_length(rows):
    done = succeeded(rows)
    lengths = defaultdict(set)
    for row in done:
        lengths[row["cell"]].add(row["length"])
    judged = lambda row, here: row["train_length"] if row["train_length"] in here else min(here)
    return [row for row in done if row["length"] == judged(row, lengths[row["cell"]])]


def fitted_slope(lengths: list[float], costs: list[float]) -> float | None:
    """Slope of log cost over log length by least squares; None for fewer than two distinct positive points."""
    points = [(length, cost) for length, cost in zip(lengths, costs, strict=True) if length > 0 and cost > 0]
    if len({length for length, _ in points}) < 2:
        return None
    return float(np.polyfit(*np.log(np.asarray(points, np.float64)).T, 1)[0])


def arm_slope(rows: list[Row], mechanism: str, budget: int | None, metric: str) -> float | None:
    """The fitted slope of an arm's mean cost over length."""
    points = summarise(succeeded(rows, mechanism=mechanism, budget=budget), metric, ["length"])
    return fitted_slope([length for length, in points], [summary.mean for summary in points.values()])


def arms(rows: Iterable[Row]) -> list[tuple[str, int | None]]:
    """The (mechanism, budget) pairs present, in the order they are always shown."""
    order = {name: place for place, name in enumerate(MECHANISMS)}
    pairs = {(row["mechanism"], row["budget"]) for row in rows}
    return sorted(pairs, key=lambda pair: (order.get(pair[0], len(order)), pair[0], pair[1] or 0))


def arm_name(mechanism: str, budget: int | None, control: str | None = None) -> str:
    """How an arm is called in tables, plots and sentences; `control` is what it did in place of reading a context."""
    name = mechanism if budget is None else f"{mechanism} {budget}"
    return name if control is None else f"{name}, {control}"
