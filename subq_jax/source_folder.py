"""Reads a folder of source code or text: which files are documents, and which split each belongs to."""

import dataclasses
import functools
import hashlib
import os
import sysconfig
from pathlib import Path

SPLITS = ("train", "validation", "test")
HELD_OUT_FRACTION = 0.05  # of the bytes, for validation and for test
_LIBRARY_LEAVES_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib-dynload"}


@dataclasses.dataclass(frozen=True)
class Document:
    """A text file: its path below the source folder, the hash of its content, its package and its split."""

    path: str
    sha256: str
    num_bytes: int
    package: str
    split: str


@dataclasses.dataclass(frozen=True)
class Scan:
    """What a source folder holds. `fingerprint` depends on names and content alone, not on times or place."""

    source: Path
    documents: tuple[Document, ...]
    num_binary: int
    num_empty: int
    num_duplicates: int
    fingerprint: str


def resolve_source(source: str) -> Path:
    """The folder to read: `source`, or the standard library of the running interpreter for `""`."""
    return Path(source).expanduser().resolve() if source else Path(sysconfig.get_paths()["stdlib"]).resolve()


def scan(source: str = "", suffix: str = "") -> Scan:
    """Lists the documents of a folder, reading every file once.

    Of the standard library (`source=""`) the documents are its `*.py` files without installed packages and without
    tests (folders `test`, `tests`, `idle_test`). Of any other folder they are all files outside hidden folders and
    `__pycache__`. With a `suffix` such as `".py"` only files whose names end in it are read and count: installed
    packages bring tables, headers and lists of hashes too. Files with NUL bytes, or whose content or path is not UTF-8,
    are skipped and counted as binary, blank files as empty, and of files with equal content only the first in path
    order stays.

    A document's package is its top-level folder, or the file itself at top level. Packages go to the splits by hash
    of their name, about 90/5/5 by size; with three packages or more no split is empty, with two there is no test
    split, with one only train.

    Raises:
      ValueError: when the folder is missing, empty, unreadable, or holds no text, or no file with the suffix.
    """
    folder = resolve_source(source)
    if not folder.is_dir():
        raise ValueError(f"data.source must be a folder, got {str(folder)!r}")
    try:
        files = tuple(_list_files(folder, suffix, library=not source))
        if files:
            return _scan(folder, files)  # cached until a name, size or time changes
    except OSError as error:
        raise ValueError(f"data.source={str(folder)!r} cannot be read: {error}") from error
    ending = f" whose names end in data.suffix={suffix!r}" if suffix else ""
    raise ValueError(f"data.source={str(folder)!r} is empty: it holds no files to read{ending}")


@functools.lru_cache(maxsize=16)
def _scan(folder: Path, files: tuple[tuple[str, int, int], ...]) -> Scan:
    num_binary = num_empty = num_duplicates = 0
    kept: dict[str, tuple[str, int]] = {}
    for path, _, _ in files:
        content = (folder / path).read_bytes()
        if not is_text(content) or not is_text(os.fsencode(path)):
            num_binary += 1
        elif not content.strip():
            num_empty += 1
        elif (digest := hashlib.sha256(content).hexdigest()) in kept:
            num_duplicates += 1
        else:
            kept[digest] = (path, len(content))
    if not kept:
        raise ValueError(
            f"data.source={str(folder)!r} holds no UTF-8 text: {num_binary} binary and {num_empty} empty files"
        )
    package_bytes: dict[str, int] = {}
    for path, size in kept.values():
        package_bytes[_package(path)] = package_bytes.get(_package(path), 0) + size
    split_of = assign_splits(package_bytes)
    documents = tuple(
        Document(path, digest, size, _package(path), split_of[_package(path)]) for digest, (path, size) in kept.items()
    )
    described = "\n".join(f"{document.sha256} {document.path!r}" for document in documents)
    fingerprint = hashlib.sha256(f"{described}\n{num_binary} {num_empty} {num_duplicates}".encode()).hexdigest()[:16]
    return Scan(folder, documents, num_binary, num_empty, num_duplicates, fingerprint)


def is_text(content: bytes) -> bool:
    """Whether a file's content is UTF-8 text."""
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return b"\0" not in content


def assign_splits(package_bytes: dict[str, int]) -> dict[str, str]:
    """The split of each package, given its size: deterministic, in the order of the hashes of the names.

    Validation and test take packages until they hold 5% of the bytes, passing over those that are too large; train
    takes the rest.
    """
    waiting = sorted(package_bytes, key=lambda name: hashlib.sha256(name.encode()).digest())
    if len(waiting) < len(SPLITS):
        return dict(zip(waiting, SPLITS, strict=False))
    wanted = HELD_OUT_FRACTION * sum(package_bytes.values())
    split_of = {}
    for split, left_for_others in (("validation", 2), ("test", 1)):
        held = 0
        for name in waiting:
            room = len(waiting) - len(split_of) > left_for_others
            if room and held < wanted and held + package_bytes[name] <= 1.5 * wanted:
                split_of[name] = split
                held += package_bytes[name]
        if not held:
            split_of[min(waiting, key=package_bytes.__getitem__)] = split
        waiting = [name for name in waiting if name not in split_of]
    return split_of | dict.fromkeys(waiting, "train")


def read_document(source: Path, document: Document) -> str:
    """The text of a document.

    Raises:
      RuntimeError: when the file is no longer the one that was scanned.
    """
    content = (source / document.path).read_bytes()
    if hashlib.sha256(content).hexdigest() != document.sha256:
        raise RuntimeError(f"{source / document.path} changed while the dataset was being built; start again")
    return content.decode("utf-8")


def read_texts(source: str, suffix: str = "") -> tuple[str, ...]:
    """The texts of the documents that `scan` lists, in its order and with its errors; lines end in a line feed."""
    found = scan(source, suffix)
    return tuple((found.source / document.path).read_text(encoding="utf-8") for document in found.documents)


def _package(path: str) -> str:
    return path.split("/", 1)[0]


def _list_files(folder: Path, suffix: str, library: bool) -> list[tuple[str, int, int]]:
    """(path below the folder, size, modification time) of each candidate file, in path order.

    Paths are strings throughout: this runs before every use of the data, over tens of thousands of files.
    """

    def fail(error: OSError):
        raise error

    found = []
    top = os.path.join(folder, "")
    for parent, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and name != "__pycache__" and not (library and name in _LIBRARY_LEAVES_OUT)
        ]
        below = os.path.join(parent, "")[len(top) :]
        for name in names:
            path = os.path.join(parent, name)
            if name.endswith(suffix) and (name.endswith(".py") or not library) and os.path.isfile(path):
                status = os.stat(path)
                found.append((below + name, status.st_size, status.st_mtime_ns))
    return sorted(found)
