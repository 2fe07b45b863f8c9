"""Search for a function by what it does or by where it is called, after RepoQA (Liu et al., 2024, arXiv:2406.06025)."""

import dataclasses
import functools
import math
import re
import textwrap
from collections import Counter
from collections.abc import Iterator

import numpy as np

from subq_jax.tasks.code.context import Draft, Family
from subq_jax.tasks.code.repository import Definition, Repository, Use
from subq_jax.tasks.haystack import Encoder, Question

PASS = 0.8  # RepoQA's threshold of similarity
ANSWER_TOKENS = 1024  # RepoQA's
DESCRIPTION_TOKENS = 1024
SHORTEST_DESCRIPTION = 6  # words
SHORTEST_FUNCTION = 16  # words, in the sense of the similarity

_DESCRIBED = """
One function of the repository above is described so; its copy above lacks this text:

{description}

Write the function as it stands above, from `def` to its last line.
"""
_CALLED = """
In {path} of the repository stands this line:

    {line}

Write the function `{name}` that it calls as it stands above, from `def` to its last line.
"""
_PREFIX = "```python\n"


def similarity(answer: str, reference: str) -> float:
    """BLEU of up to four words, where words are what white space parts: RepoQA's measure.

    A precision of no matches counts as that of half a match (RepoQA smooths these by the answer's length instead:
    Chen and Cherry, 2014, method 4; the two differ below the threshold only).
    """
    words, wanted = answer.split(), reference.split()
    if not words or not wanted:
        return 0.0
    log_precision = 0.0
    orders = min(4, len(words), len(wanted))
    for order in range(1, orders + 1):
        found, possible = _ngrams(words, order), _ngrams(wanted, order)
        log_precision += math.log(max((found & possible).total(), 0.5) / found.total()) / orders
    return math.exp(log_precision + min(0.0, 1 - len(wanted) / len(words)))


def is_found(answer: str, question: Question) -> float:
    """1 if the function in the answer is at least PASS similar to the reference and to no other function more so."""
    function = first_function(answer)
    (reference,) = question.outputs
    score = similarity(function, reference)
    return float(score >= PASS and all(similarity(function, other) <= score for other in question.wrong))


def first_function(answer: str) -> str:
    """The first function of an answer, in a fenced block or not; the whole block or answer if it has none."""
    fenced = re.search(r"^```\w*\n(.*?)(^```|\Z)", answer, re.DOTALL | re.MULTILINE)
    text = fenced[1] if fenced and not answer[:fenced.start()].strip() else answer.split("\n```")[0]
    lines = text.expandtabs().split("\n")
    for start, line in enumerate(lines):
        if re.match(r"\s*(async\s+)?def\s", line):
            end = end_of_block(lines, start + 1, len(line) - len(line.lstrip()))
            return "\n".join(lines[start:end])
    return text


def end_of_block(lines: list[str], start: int, indent: int) -> int:
    """The first line from `start` on that is indented by `indent` spaces at most; a closing bracket does not count."""
    for number in range(start, len(lines)):
        line = lines[number]
        if line.strip() and len(line) - len(line.lstrip()) <= indent and not line.lstrip().startswith((")", "]", "}")):
            return number
    return len(lines)


def _can_be_quoted(text: str, encoder: Encoder) -> bool:
    """Whether a function fits into an answer and is read from it whole: a string with lines at the margin ends it."""
    return encoder.count(text) <= ANSWER_TOKENS and first_function(text).split() == text.split()


def _without_docstring(definition: Definition, repository: Repository) -> str:
    """A definition's text, as it is indented, without its docstring."""
    lines, docstring = definition.lines, definition.docstring_lines
    kept = [dataclasses.replace(lines, last=docstring.first), dataclasses.replace(lines, first=docstring.last)]
    return "".join(map(repository.text, kept))


def _ngrams(words: list[str], order: int) -> Counter:
    return Counter(zip(*(words[start:] for start in range(order)), strict=False))


def _by_description(repository: Repository, rng: np.random.Generator, encoder: Encoder) -> Iterator[Draft]:
    functions = _described(repository)
    for number in rng.permutation(len(functions)).tolist():
        function = functions[number]
        text = textwrap.dedent(_without_docstring(function, repository))
        description = textwrap.indent(function.docstring, "    ")
        if _can_be_quoted(text, encoder) and encoder.count(description) <= DESCRIPTION_TOKENS:
            question = Question(_DESCRIBED.format(description=description), _PREFIX, (text,))
            yield Draft(question, (function.lines,), ((function.docstring_lines, ""),))


@functools.lru_cache(4)
def _described(repository: Repository) -> list[Definition]:
    """Functions whose docstring is unlike all others, does not name them, and whose text stands once."""
    functions = [function for function in repository.definitions() if function.is_function]
    docstrings = Counter(function.docstring for function in functions)
    texts = Counter(" ".join(_without_docstring(function, repository).split()) for function in functions)
    return [
        function for function in functions
        if function.scope != "function" and docstrings[function.docstring] == 1
        and len(function.docstring.split()) >= SHORTEST_DESCRIPTION
        and not re.search(rf"\b{re.escape(function.name)}\b", function.docstring)
        and texts[" ".join(_without_docstring(function, repository).split())] == 1
        and len(_without_docstring(function, repository).split()) >= SHORTEST_FUNCTION]


def _by_call(repository: Repository, rng: np.random.Generator, encoder: Encoder) -> Iterator[Draft]:
    uses = _calls(repository)
    for number in rng.permutation(len(uses)).tolist():
        use = uses[number]
        function, file = use.definition, repository.files[use.file]
        text = textwrap.dedent(repository.text(function.lines))
        if _can_be_quoted(text, encoder):
            asked = _CALLED.format(path=file.path, line=file.lines[use.line].strip(), name=function.name)
            yield Draft(Question(asked, _PREFIX, (text,)), (function.lines,))


@functools.lru_cache(4)
def _calls(repository: Repository) -> list[Use]:
    """Calls of functions of other files, one a function, the first."""
    calls = {}
    for use in repository.uses:
        function = use.definition
        if function.is_function and use.close >= 0 and use.file != function.lines.file and (
                len(repository.text(function.lines).split()) >= SHORTEST_FUNCTION):
            calls.setdefault(function.lines, use)
    return list(calls.values())


def _with_confusables(question: Question, repository: Repository, files: list[int]) -> Question:
    """Adds the functions of the context that an answer could be closer to than to the reference.

    An answer that passes shares at least PASS of its words with the reference, and with a closer function too, and
    its length differs by less than the penalty of brevity allows. So the two functions share words for at least
    `2 PASS - 1` of the answer, which is at least `1 / (1 - ln PASS)` of the reference.
    """
    reference = question.outputs[0].split()
    words, size = Counter(reference), len(reference)
    spread = (1 - math.log(PASS)) / PASS
    least = (2 * PASS - 1) / (1 - math.log(PASS)) * size
    wrong = []
    for file in files:
        for function in repository.files[file].definitions:
            # With the docstring or without: whatever is near counts.
            texts = {_without_docstring(function, repository), repository.text(function.lines)}
            others = {text: text.split() for text in texts if function.is_function}
            if reference not in others.values():
                wrong += [textwrap.dedent(text) for text, other in others.items()
                          if size / spread <= len(other) <= size * spread
                          and (words & Counter(other)).total() >= least]
    return dataclasses.replace(question, wrong=tuple(sorted(wrong)))


BY_DESCRIPTION = Family(
    "code_search", _by_description, ANSWER_TOKENS, "a function whose docstring describes it", finish=_with_confusables)
BY_CALL = Family(
    "code_search_call", _by_call, ANSWER_TOKENS, "a function that another file calls", finish=_with_confusables)
