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

Row = dict[str, Any]


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
    names = ("dense", "sliding_window", "global_token", "block_mean", "gated_mean", "selective", "learned_router",
             "random_blocks", "oracle_topk")
    order = {name: place for place, name in enumerate(names)}
    pairs = {(row["mechanism"], row["budget"]) for row in rows}
    return sorted(pairs, key=lambda pair: (order.get(pair[0], len(order)), pair[0], pair[1] or 0))


def arm_name(mechanism: str, budget: int | None) -> str:
    """How an arm is called in tables, plots and sentences."""
    return mechanism if budget is None else f"{mechanism} {budget}"
