"""Files that survive kills and other processes: written whole or not at all, appended line by line, locked by folder.

Rows are JSON objects, one a line. A kill while a row is appended can leave a last line without its end; that row was
never there. Any other line that is not a JSON object is damage, and is reported instead of passed over.
"""

import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO


def write_text(path: str | os.PathLike, text: str) -> None:
    """Replaces a file, creating its folder: a reader, a kill or a power cut finds the old file or the new one.

    Raises:
      OSError: when the folder cannot be written; the old file stays.
    """
    with _replaced(path) as file:
        file.write(text)


def read_rows(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Reads the rows of a file; a file that does not exist holds none, and a last line cut short is left out.

    Raises:
      ValueError: naming the file and the line that is not a JSON object.
    """
    path = Path(path)
    *lines, rest = path.read_bytes().split(b"\n") if path.exists() else [b""]
    rows = [_parse_row(line, f"{path}:{number}") for number, line in enumerate(lines, start=1)]
    with contextlib.suppress(ValueError):
        rows.append(_parse_row(rest, ""))
    return rows


def write_rows(path: str | os.PathLike, rows: Iterable[dict[str, Any]]) -> None:
    """Replaces all rows of a file, as `write_text` does, holding one row at a time.

    Raises:
      TypeError: when a row does not fit into JSON; the old file stays, as with any error that making a row raises.
    """
    with _replaced(path) as file:
        for row in rows:
            file.write(_line(row))


def append_row(file: TextIO, row: dict[str, Any]) -> None:
    """Appends a row to an open file; it survives the process from here on, and a power cut from the next `sync`."""
    append_rows(file, [row])


def append_rows(file: TextIO, rows: Iterable[dict[str, Any]]) -> None:
    """`append_row` of rows that belong together: one write, so that a process killed elsewhere leaves all or none."""
    file.write("".join(_line(row) for row in rows))
    file.flush()


def sync(file) -> None:
    """Puts what was written to an open file on disk."""
    file.flush()
    os.fsync(file.fileno())


@contextlib.contextmanager
def exclusive(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Holds the lock of `folder` (made if missing): one process at a time. It ends with the process at the latest.

    Raises:
      BlockingIOError: with `wait=False`, when another holds the lock.
      OSError: when the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


@contextlib.contextmanager
def _replaced(path: str | os.PathLike) -> Iterator[TextIO]:
    """A file to write in place of the one at `path`, which it replaces when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")  # a name of its own for each writer
    try:
        with partial.open("x", encoding="utf-8") as file:
            yield file
            sync(file)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row) + "\n"


def _parse_row(line: bytes, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8"))
    except ValueError as error:
        raise ValueError(f"{place} is not JSON: {error}; mend or delete the line") from error
    if not isinstance(row, dict):
        raise ValueError(f"{place} must be a JSON object, got {line[:40]!r}; mend or delete the line")
    return row
