"""A new parameter in a signature and its argument in all calls, over several files of a repository."""

import ast
import functools
from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np

from subq_jax.tasks.code.context import Draft, Family
from subq_jax.tasks.code.repository import Definition, Lines, Repository, Use
from subq_jax.tasks.haystack import Encoder, Question

ANSWER_TOKENS = 1024
MOST_CALLS = 8
PARAMETERS = ("budget_hint", "trace_level", "retry_quota", "origin_tag", "epoch_mark", "lane_number")

_EDIT = """
The function `{name}` of {path} in the repository above gets one more parameter at the end, `{parameter}=0`, and every
call of it, in whatever file, one more argument at the end, `{parameter}={value}`. Strings and comments stay as they
are, examples in docstrings too. Write each line that changes, one a line, as the path of its file, a colon, a space,
and the line as it reads then, without indentation. Begin with the definition's line, write nothing else, and end with a
line `done`.
"""


def share_of_sites(answer: str, question: Question) -> float:
    """The share of edited lines that the answer has exactly; lines above their number count as sites missed."""
    lines = [line.strip() for line in answer.split("\n") if line.strip()]
    if "done" in lines:
        lines = lines[:lines.index("done")]
    found = Counter(lines) & Counter(question.outputs)
    return found.total() / max(len(lines), len(question.outputs))


@functools.lru_cache(4)
def _functions(repository: Repository) -> list[tuple[Definition, int, list[Use]]]:
    """Functions whose every mention is a call that can be extended, in two files or more, and where in their first line
    a parameter goes."""
    uses_of = defaultdict(list)
    for use in repository.uses:
        uses_of[use.definition].append(use)
    found = []
    for function, uses in uses_of.items():
        column = _parameter_column(repository.files[function.lines.file].lines[function.lines.first])
        places = {(use.file, use.line) for use in uses}
        if column >= 0 and repository.mentions[function.name] == len(uses) <= MOST_CALLS and (
                len(places) == len(uses) and len({use.file for use in uses} - {function.lines.file}) > 0
                and all(use.extensible for use in uses)):
            found.append((function, column, uses))
    return found


def _parameter_column(line: str) -> int:
    """Where one more parameter can be written into a signature of one line; -1 if nowhere or if `line` is none."""
    text = line.strip()
    try:
        (node,) = ast.parse(text + " pass" if text.endswith(":") else "").body
    except (SyntaxError, ValueError):
        return -1
    if not isinstance(node, ast.FunctionDef) or node.args.vararg or node.args.kwonlyargs or node.args.kwarg or (
            not line.isascii()):
        return -1
    # From the right: a default may stand in parentheses, which its node leaves out.
    close = text.rindex(")", 0, node.returns.col_offset if node.returns else None)
    if not (node.args.posonlyargs or node.args.args) or text[:close].rstrip()[-1] in ",/":
        return -1
    return len(line) - len(line.lstrip()) + close


def _draft(repository: Repository, rng: np.random.Generator, encoder: Encoder) -> Iterator[Draft]:
    functions = _functions(repository)
    for number in rng.permutation(len(functions)).tolist():
        function, column, uses = functions[number]
        parameter, value = str(rng.choice(PARAMETERS)), int(rng.integers(2, 100))
        first = function.lines.first
        sites = [(Lines(function.lines.file, first, first + 1), column, f", {parameter}=0")]
        for use in uses:
            added = ", " * use.has_arguments + f"{parameter}={value}"
            sites.append((Lines(use.file, use.line, use.line + 1), use.close, added))
        before = [_site(repository, lines, "", 0) for lines, _, _ in sites]
        after = [_site(repository, lines, added, place) for lines, place, added in sites]
        if encoder.count("\n".join([*after, "done"])) <= ANSWER_TOKENS:
            path = repository.files[function.lines.file].path
            text = _EDIT.format(name=function.name, path=path, parameter=parameter, value=value)
            question = Question(text, "", tuple(after), wrong=tuple(before))
            yield Draft(question, tuple(lines for lines, _, _ in sites))


def _site(repository: Repository, lines: Lines, added: str, column: int) -> str:
    line = repository.text(lines)
    return f"{repository.files[lines.file].path}: {(line[:column] + added + line[column:]).strip()}"


EDIT = Family("code_edit", _draft, ANSWER_TOKENS, "a function that other files call and nothing else mentions")
