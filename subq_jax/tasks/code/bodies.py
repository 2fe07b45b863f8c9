"""The body of a function with doctests, scored by running them, by exact match and by edit similarity.

The context's copy of the function ends after its docstring; the evidence is that copy and what the body uses of other
files.
"""

import dataclasses
import difflib
import functools
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from subq_jax.tasks.code.context import Draft, Family
from subq_jax.tasks.code.execution import Doctests
from subq_jax.tasks.code.repository import NOT_RENAMED, Definition, Renaming, Repository, module_name
from subq_jax.tasks.code.search import end_of_block, similarity
from subq_jax.tasks.haystack import Encoder, Question

ANSWER_TOKENS = 1024
PROMPT_TOKENS = 2048  # signature and docstring

_BODY = """
Write the body of the function `{name}` of {path} in the repository above, where it is left out.

"""
WRONG = 8  # bodies of other functions of the file
_LEFT_OUT = "...  # left out\n"


@dataclasses.dataclass(frozen=True)
class BodyQuestion(Question):
    """A question about a body, with what runs it.

    Attributes:
      doctests: of the function.
      before, after: the file's text around the body, with the original names.
      renaming: of the context.
    """

    doctests: Doctests = dataclasses.field(default=None, repr=False)
    before: str = dataclasses.field(default="", repr=False)
    after: str = dataclasses.field(default="", repr=False)
    renaming: Renaming = dataclasses.field(default=NOT_RENAMED, repr=False)

    def further_fields(self) -> dict:
        """`body`: what runs it; see `question_of`."""
        return {"body": {"doctests": dataclasses.asdict(self.doctests), "before": self.before, "after": self.after,
                         "renaming": self.renaming.original}}

    def body_in(self, answer: str) -> str:
        """The lines of the answer up to the first that is indented no more than the signature."""
        signature = self.answer_prefix.split("\n")[0]
        lines = answer.expandtabs().rstrip().split("\n")
        end = end_of_block(lines, 0, len(signature) - len(signature.lstrip()))
        return "\n".join(lines[:end]).rstrip() + "\n"


def question_of(row: Mapping[str, Any]) -> BodyQuestion:
    """The question of a row of `Haystack.rows`, but for its text and evidence."""
    body = row["body"]
    return BodyQuestion("", row["answer_prefix"], tuple(row["outputs"]), wrong=tuple(row["wrong"]),
                        doctests=Doctests(**body["doctests"]), before=body["before"], after=body["after"],
                        renaming=Renaming(body["renaming"]))


def passes_doctests(answer: str, question: BodyQuestion) -> float:
    """1 if the function's doctests pass with the answer as its body; it runs in a process with limits."""
    body = question.renaming.restore_answer(question.body_in(answer))
    return float(question.doctests.pass_with(question.before + body + question.after))


def is_body(answer: str, question: BodyQuestion) -> float:
    """1 if the answer's body is the reference, but for the space at the ends of lines."""
    lines = [[line.rstrip() for line in text.rstrip().split("\n")]
             for text in (question.body_in(answer), question.outputs[0])]
    return float(lines[0] == lines[1])


def edit_similarity(answer: str, question: BodyQuestion) -> float:
    """How similar the answer's body and the reference are, 0 to 1: difflib's ratio."""
    return difflib.SequenceMatcher(None, question.body_in(answer), question.outputs[0], autojunk=False).ratio()


@functools.lru_cache(4)
def _functions(repository: Repository) -> list[Definition]:
    """Functions with examples in their docstrings."""
    return [function for function in repository.definitions()
            if function.is_function and function.scope != "function" and ">>> " in function.docstring]


def _draft(repository: Repository, rng: np.random.Generator, encoder: Encoder) -> Iterator[Draft]:
    functions = _functions(repository)
    for number in rng.permutation(len(functions)).tolist():
        function = functions[number]
        signature = repository.text(dataclasses.replace(function.lines, last=function.body.first))
        body = repository.text(function.body)
        if encoder.count(body) <= ANSWER_TOKENS and encoder.count(signature) <= PROMPT_TOKENS:
            path = repository.files[function.lines.file].path
            text = _BODY.format(name=function.name, path=path)
            question = _question(repository, function, text, signature, body)
            used = dict.fromkeys(
                use.definition.lines for use in repository.uses
                if use.file == function.lines.file and function.body.first <= use.line < function.body.last
                and use.definition.lines.file != use.file)
            cut = (function.body, _indent(body) + _LEFT_OUT)
            yield Draft(question, (function.lines, *used), (cut,),
                        check=functools.partial(_can_be_scored, question))


def _question(repository: Repository, function: Definition, text: str, signature: str, body: str) -> BodyQuestion:
    file = repository.files[function.lines.file]
    others = {repository.text(other.body) for other in file.definitions if other.is_function} - {body}
    wrong = sorted(others, key=lambda other: (-similarity(other, body), other))[:WRONG]
    doctests = Doctests(file.path, module_name(file.path), repository.renaming.restore(function.docstring),
                        _importable(repository, function.lines.file))
    before = repository.renaming.restore("".join(file.lines[:function.body.first]))
    after = repository.renaming.restore("".join(file.lines[function.body.last:]))
    return BodyQuestion(text, signature, (body,), wrong=tuple(wrong), doctests=doctests, before=before, after=after,
                        renaming=repository.renaming)


def _indent(body: str) -> str:
    line = next(line for line in body.split("\n") if line.strip())
    return line[:len(line) - len(line.lstrip())]


@functools.lru_cache(4096)
def _can_be_scored(question: BodyQuestion) -> bool:
    """Whether the examples pass with the reference and fail with a body that does nothing."""
    nothing = _indent(question.outputs[0]) + _LEFT_OUT
    return passes_doctests(question.outputs[0], question) == 1 and passes_doctests(nothing, question) == 0


def _importable(repository: Repository, file: int) -> dict[str, str]:
    """Path -> text, with the original names, of the files that a file may import and that Python does not bring."""
    packages_of = [module_name(other.path).split(".")[0] for other in repository.files]
    wanted, found = [packages_of[file], *repository.files[file].imported_packages], set()
    while wanted:
        package = wanted.pop()
        if package in found or package in sys.stdlib_module_names:
            continue
        found.add(package)
        for name, other in zip(packages_of, repository.files, strict=True):
            if name == package:
                wanted += other.imported_packages
    return {other.path: repository.renaming.restore("".join(other.lines))
            for name, other in zip(packages_of, repository.files, strict=True) if name in found}


BODY = Family(
    "code_body", _draft, ANSWER_TOKENS, "a function whose doctests pass with its body and fail without")
