"""Completion across files, after CrossCodeEval (Ding et al., 2023, arXiv:2310.11248) and RepoBench (Liu et al., 2023,
arXiv:2306.03091): the line or name asked for needs a definition that stands in another file, far away.

The file to be completed is left out of the context; the question holds its imports and the lines before. Of these none
mentions the name in question, so it has to be read from the definition.
"""

import functools
import re
from collections.abc import Iterator

import numpy as np

from subq_jax.tasks.code.context import Draft, Family
from subq_jax.tasks.code.repository import Repository, Use
from subq_jax.tasks.haystack import Encoder, Question

FAR = 0.5  # of the context lies between the definition and the question, at least
LINES_BEFORE = 20
LINE_TOKENS = 128
NAME_TOKENS = 64
WRONG = 16  # other names of the module

_LINE = """
Complete the next line of this file; its lines before the last ones are left out, save imports.

{shown}"""
_NAME = """
In the last line of this file a name is left out, ____; its lines before the last ones are left out, save imports.

{shown}{blanked}
"""


def is_line(answer: str, question: Question) -> float:
    """1 if the first line of the answer that is not blank is the reference, but for the space around it."""
    lines = [line.strip() for line in answer.splitlines() if line.strip()]
    return float(lines[:1] == [question.outputs[0].strip()])


def is_name(answer: str, question: Question) -> float:
    """1 if the first name in the answer is the reference."""
    names = re.findall(r"[^\W\d]\w*", answer)
    return float(names[:1] == list(question.outputs))


@functools.lru_cache(4)
def _uses(repository: Repository) -> list[Use]:
    """Uses of other files' names in statements of one line, such that nothing shown before has the name."""
    return [
        use for use in repository.uses
        if use.statement and use.file != use.definition.lines.file and not _mentions(_shown(repository, use), use)
        and _mentions(repository.files[use.file].lines[use.line], use) == 1]


def _mentions(text: str, use: Use) -> int:
    return len(re.findall(rf"\b{re.escape(use.definition.name)}\b", text))


def _shown(repository: Repository, use: Use) -> str:
    """The header, the imports and the last lines of a file before a use."""
    lines = repository.files[use.file].lines
    start = max(1, use.line - LINES_BEFORE)
    imports = [line for line in lines[1:start] if re.match(r"(import|from)\s[^(\\]*$", line)]
    return "".join([lines[0], *imports, *lines[start:use.line]])


def _others(repository: Repository, use: Use) -> list[str]:
    """Other names that the module of the definition has at top level."""
    names = [definition.name for definition in repository.files[use.definition.lines.file].definitions
             if definition.scope == "module" and definition.name != use.definition.name]
    return list(dict.fromkeys(names))[:WRONG]


def _draft_lines(repository: Repository, rng: np.random.Generator, encoder: Encoder) -> Iterator[Draft]:
    for use in _shuffled(repository, rng):
        line = repository.files[use.file].lines[use.line]
        if encoder.count(line) <= LINE_TOKENS:
            end = use.column + len(use.definition.name)
            wrong = tuple((line[:use.column] + other + line[end:]).strip() for other in _others(repository, use))
            question = Question(_LINE.format(shown=_shown(repository, use)), "", (line.strip(),), wrong=wrong)
            yield Draft(question, (use.definition.lines,), left_out=frozenset({use.file}))


def _draft_names(repository: Repository, rng: np.random.Generator, encoder: Encoder) -> Iterator[Draft]:
    for use in _shuffled(repository, rng):
        line, name = repository.files[use.file].lines[use.line], use.definition.name
        if encoder.count(name) <= NAME_TOKENS:
            blanked = line[:use.column] + "____" + line[use.column + len(name):]
            text = _NAME.format(shown=_shown(repository, use), blanked=blanked)
            question = Question(text, "The name is `", (name,), wrong=tuple(_others(repository, use)))
            yield Draft(question, (use.definition.lines,), left_out=frozenset({use.file}))


def _shuffled(repository: Repository, rng: np.random.Generator) -> Iterator[Use]:
    uses = _uses(repository)
    for number in rng.permutation(len(uses)).tolist():
        yield uses[number]


_LACKING = "a name that is defined in another file and first used in a statement of one line"
NEXT_LINE = Family("code_next_line", _draft_lines, LINE_TOKENS, _LACKING, far=FAR)
IDENTIFIER = Family("code_identifier", _draft_names, NAME_TOKENS, _LACKING, far=FAR)
