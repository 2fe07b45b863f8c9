"""Long-context tasks: generators of haystacks with questions, and the scorers of their answers.

`TASKS` names all of them. A task builds a `Haystack` of a wanted length in tokens from a seed; the same request always
gives the same haystack. Each module holds one family and says where its tasks come from.
"""

import difflib
from collections.abc import Collection, Mapping
from typing import Any

from subq_jax.tasks import (
    code,
    legal,
    licences,
    mrcr,
    records,
    ruler_niah,
    ruler_qa,
    ruler_tracing,
    ruler_words,
)
from subq_jax.tasks.code.bodies import passes_doctests, question_of
from subq_jax.tasks.haystack import Haystack, Question, Request, Task

__all__ = [
    "CODE", "SYNTHETIC", "TASKS", "TEACHABLE", "WITH_CORPUS", "Haystack", "Question", "Request", "Task", "chances",
    "find_task", "score_row"]

# Modules with a tuple TASKS.
FAMILIES = (ruler_niah, ruler_tracing, ruler_words, ruler_qa, mrcr, legal, licences, records, code)

TASKS: dict[str, Task] = {task.name: task for family in FAMILIES for task in family.TASKS}

CODE = tuple(task.name for task in code.TASKS)  # take the standard library where there is no corpus
WITH_CORPUS = ("niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multivalue", "niah_multiquery", "qa_1",
               "qa_2", "legal_licence")
SYNTHETIC = tuple(name for name in TASKS if name not in (*CODE, *WITH_CORPUS))
# Tasks with as many keys as training needs, of which it has its own, and no corpus.
TEACHABLE = ("phonebook", "mqar", "niah_single_1", "niah_multikey_2", "niah_multikey_3", "niah_noise_32")


def find_task(name: str) -> Task:
    """The task called `name`; raises ValueError, listing all names and those most like it, if there is none."""
    if name not in TASKS:
        near = " or ".join(map(repr, difflib.get_close_matches(name, TASKS)))
        hint = f"; did you mean {near}?" if near else ""
        raise ValueError(f"task must be one of {sorted(TASKS)}, got {name!r}{hint}")
    return TASKS[name]


def chances(names: Collection[str]) -> dict[str, float]:
    """The scores of guessing of the tasks with one of the names, by name; without those that state none."""
    return {name: task.chance for name, task in TASKS.items() if name in names and task.chance is not None}


def score_row(row: Mapping[str, Any], answer: str) -> float:
    """Scores, 0 to 1, the answer that any model gave to a row of `Haystack.rows`; the answer's prefix is no part of it.

    Answers to `code_body` are run: see the limits in `subq_jax.tasks.code.execution`.

    Raises:
      ValueError: for an unknown task, or a row of `code_body` without the field `body`, such as those of samples.
    """
    task = find_task(row["task"])
    if task.score is passes_doctests and "body" not in row:
        raise ValueError(f"row must have the field 'body' to be scored by {task.name}, got {sorted(row)}")
    question = question_of(row) if "body" in row else Question(
        "", row["answer_prefix"], tuple(row["outputs"]), wrong=tuple(row["wrong"]))
    return task.score(answer, question)
