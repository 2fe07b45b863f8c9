"""Renames what a repository defines, so that a model's memory of well-known code is not mistaken for reading."""

import builtins
import dataclasses
import functools
import io
import keyword
import re
import tokenize

import numpy as np

from subq_jax.tasks.code.repository import Renaming, read_repository, reads_as_code

_WORD = re.compile(r"[A-Za-z_]\w*")
_TEXT = {tokenize.STRING, tokenize.COMMENT}
_BUILTIN_TYPES = (bytearray, bytes, complex, dict, float, frozenset, int, list, memoryview, object, set, str, tuple)
_KEPT = {*dir(builtins), *keyword.kwlist, *keyword.softkwlist, *(name for kind in _BUILTIN_TYPES for name in dir(kind))}


@dataclasses.dataclass(frozen=True, eq=False)
class Renamed:
    """The documents with new names, line for line."""

    documents: tuple[str, ...]
    renaming: Renaming


@functools.lru_cache(2)
def renamed_documents(documents: tuple[str, ...]) -> Renamed:
    """Gives each function, method and class of the repository a new name, the same wherever the old one stands.

    Every token that is such a name changes. In strings and comments a word changes when it reads as code: when it has
    an underscore, a digit or an inner capital, stands beside a quote, a dot or a parenthesis, or in an example of a
    doctest. Names of modules, of built-in objects and their methods, and names with double underscores stay, as do
    files that do not parse.

    Raises:
      ValueError: as `read_repository`.
    """
    repository = read_repository(documents)
    folders = {part for file in repository.files for part in file.path.removesuffix(".py").split("/")}
    kinds = {definition.name: definition.is_function for definition in repository.definitions()}
    names = sorted(name for name in kinds if name not in _KEPT and name not in folders and not name.startswith("__"))
    taken = set(_WORD.findall("".join(documents)))
    rng = np.random.default_rng(0)
    new_names = {}
    for name in names:
        new_names[name] = _new_name(name, kinds[name], rng, taken)
        taken.add(new_names[name])
    paths = {file.path for file in repository.files}
    renamed = tuple(
        _rename(document, new_names) if document[2:document.index("\n")] in paths else document
        for document in documents)
    return Renamed(renamed, Renaming({new: old for old, new in new_names.items()}))


def _new_name(name: str, is_function: bool, rng: np.random.Generator, taken: set[str]) -> str:
    """Two made-up words in the case of functions or classes, with the underscores that the name begins with."""
    while True:
        words = ["".join(rng.choice(list(letters)) for letters in ("bdfgklmnprstvz", "aeiou") * 2) for _ in range(2)]
        new = "_".join(words) if is_function else "".join(words).capitalize()
        new = "_" * (len(name) - len(name.lstrip("_"))) + new
        if new not in taken:
            return new


def _rename(document: str, new_names: dict[str, str]) -> str:
    header, newline, text = document.replace("\r\n", "\n").replace("\r", "\n").partition("\n")
    lines = text.split("\n")
    renamed = [header + newline]
    row, column = 1, 0

    def copy_to(end_row: int, end_column: int) -> str:
        nonlocal row, column
        if row == end_row:
            between = lines[row - 1][column:end_column]
        else:
            between = "\n".join([lines[row - 1][column:], *lines[row:end_row - 1], lines[end_row - 1][:end_column]])
        row, column = end_row, end_column
        return between

    before = ""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        conversion = before == "!"  # of an f-string, such as !r
        before = token.string
        if token.type == tokenize.NAME and token.string in new_names and not conversion:
            renamed += [copy_to(*token.start), new_names[token.string]]
            row, column = token.end
        elif token.type in _TEXT:
            renamed += [copy_to(*token.start), _rename_text(copy_to(*token.end), new_names)]
    renamed.append(copy_to(len(lines), len(lines[-1])))
    return "".join(renamed)


def _rename_text(text: str, new_names: dict[str, str]) -> str:
    """Renames the words of a string or comment that read as code."""

    def rename(word: re.Match) -> str:
        name = word[0]
        if name not in new_names:
            return name
        before, after = text[max(word.start() - 1, 0):word.start()], text[word.end():word.end() + 1]
        line = text[text.rfind("\n", 0, word.start()) + 1:word.start()].lstrip()
        beside = before in ("`", "'", '"') and after == before or before == "." or after == "("
        return new_names[name] if reads_as_code(name) or beside or line.startswith((">>>", "...")) else name

    return _WORD.sub(rename, text)
