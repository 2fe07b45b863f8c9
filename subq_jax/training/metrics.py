"""What a run reports: rows of JSON, TensorBoard scalars and a progress bar."""

from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter

from subq_jax.files import append_row, read_rows, sync, write_rows


class MetricsLog:
    """The rows of a run, one JSON object a line in `metrics.jsonl`, and the same as TensorBoard scalars.

    Every row has a `step`. A resumed run drops the rows beyond the step it restored, and writes them again. Hosts other
    than the first only collect the rows (`write=False`).
    """

    def __init__(self, workdir: Path, *, restored_step: int, write: bool = True):
        self._path = workdir / "metrics.jsonl"
        rows = read_rows(self._path)
        if any(type(row.get("step")) is not int for row in rows):
            raise ValueError(f"{self._path} has a row without a step; mend or delete the row")
        self.rows = [row for row in rows if row["step"] <= restored_step]
        self._file = self._board = None
        if write:
            write_rows(self._path, self.rows)
            self._file = self._path.open("a", encoding="utf-8")
            self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=restored_step + 1)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_) -> None:
        if self._file:
            self._file.close()
            self._board.close()

    def write(self, row: dict[str, Any]) -> None:
        """Appends a row; it survives the process from here on."""
        self.rows.append(row)
        if not self._file:
            return
        append_row(self._file, row)
        for name, value in row.items():
            if name != "step" and value is not None:
                self._board.add_scalar(name, value, row["step"])

    def sync(self) -> None:
        """Puts the rows on disk, so that a checkpoint written next never outlives them."""
        if self._file:
            sync(self._file)


class StepProgress:
    """A progress bar over the steps of a run, with loss, tokens per second and MFU."""

    def __init__(self, steps: int, done: int, *, shown: bool):
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[status]}"),
            disable=not shown,
        )
        self._task = self._bar.add_task("steps", total=steps, completed=done, status="")

    def __enter__(self) -> "StepProgress":
        self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        self._bar.stop()

    def update(self, step: int) -> None:
        self._bar.update(self._task, completed=step)

    def describe(self, row: dict[str, Any]) -> None:
        """Shows the figures of a training row."""
        mfu = "n/a" if row["mfu"] is None else f"{row['mfu']:.1%}"
        status = f"loss {row['loss']:.3f}  {row['tokens_per_second']:,.0f} tokens/s  MFU {mfu}"
        self._bar.update(self._task, status=status)
