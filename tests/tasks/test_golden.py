"""One small haystack of every task but RULER's and code as text, read and answered by hand: golden/*.txt.

To write them again after a change that is meant: `PYTHONPATH=. python tests/tasks/test_golden.py`.
"""

import dataclasses
from pathlib import Path

import pytest
from test_licences import CORPUS
from tiny_tasks import build

from subq_jax.tasks import find_task, score_row

GOLDEN = Path(__file__).parent / "golden"
LENGTHS = {
    "mrcr_2": 2200, "mrcr_4": 3500, "mrcr_8": 5500,
    "legal_clause": 6000, "legal_term": 6000, "legal_definition": 6000, "legal_exception": 6000, "legal_licence": 2400,
    "phonebook": 400, "mqar": 300, "counting": 3500, "latent_list": 3500}


def as_text(name: str) -> str:
    """The context, then each question with its reference and what may be confused with it."""
    haystack = build(name, LENGTHS[name], num_questions=2, corpus=CORPUS)
    questions = [f"{question.text}{question.answer_prefix}\n=> {question.outputs}\nnot {question.wrong}\n"
                 for question in haystack.questions]
    return "\n".join([haystack.context, "-" * 20, *questions])


@pytest.mark.parametrize("name", LENGTHS)
def test_haystacks_stay_as_read_by_hand(name):
    assert as_text(name) == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", LENGTHS)
def test_answers_are_scored_from_rows_alone(name):
    haystack, task = build(name, LENGTHS[name], num_questions=2, corpus=CORPUS), find_task(name)
    for row, question in zip(haystack.rows(), haystack.questions, strict=True):
        answers = [" ".join(question.outputs), *question.wrong[:2], "nothing"]
        assert [score_row(row, answer) for answer in answers] == [task.score(answer, question) for answer in answers]
        assert score_row(row, answers[0]) == 1


def test_rows_of_a_study_are_numbered_apart():
    haystacks = [build("phonebook", 400, index=index, num_questions=2) for index in range(3)]
    haystacks[1] = dataclasses.replace(haystacks[1], questions=haystacks[1].questions[:1])  # it had no more to ask
    assert [row["index"] for haystack in haystacks for row in haystack.rows()] == [0, 1, 2, 4, 5]


if __name__ == "__main__":
    for task in LENGTHS:
        (GOLDEN / f"{task}.txt").write_text(as_text(task), encoding="utf-8")
