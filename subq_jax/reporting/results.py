"""Rows of results: one JSON object per line, and their mean and spread over seeds.

A row describes one (cell, evaluated length): `cell`, `task`, `mechanism`, `budget` (null: the arm sees everything),
`seed`, `status` ("ok" or "failed"), `train_length`, `length`, and the measurements as flat numbers, null where a
measurement does not apply. A failed cell has one row, with `error` in place of measurements.
"""

import dataclasses
import json
import os
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

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


def read_rows(path: str | os.PathLike) -> list[Row]:
    """Reads a JSON-lines file; a file that does not exist holds no rows.

    Raises:
      ValueError: naming the file and line that is not a JSON object.
    """
    path = Path(path)
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}:{number} must be a JSON object, got {line[:40]!r}")
        rows.append(row)
    return rows


def write_rows(path: str | os.PathLike, rows: Iterable[Row]) -> None:
    """Writes all rows at once: a reader, or a run killed half way, sees the old file or the new one."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_text(path: str | os.PathLike, text: str) -> None:
    """Replaces a file atomically, creating its folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes files that only their owner can read
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


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


def arms(rows: Iterable[Row]) -> list[tuple[str, int | None]]:
    """The (mechanism, budget) pairs present, in the order they are always shown."""
    order = {"dense": 0, "sliding_window": 1, "block_mean": 2, "selective": 3}
    pairs = {(row["mechanism"], row["budget"]) for row in rows}
    return sorted(pairs, key=lambda pair: (order.get(pair[0], len(order)), pair[0], pair[1] or 0))


def arm_name(mechanism: str, budget: int | None) -> str:
    """How an arm is called in tables, plots and sentences."""
    return mechanism if budget is None else f"{mechanism} {budget}"
