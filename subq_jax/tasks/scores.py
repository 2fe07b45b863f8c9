"""Scores of answers."""

import re

from subq_jax.tasks.haystack import Question


def share_of_references(answer: str, question: Question) -> float:
    """The fraction of references that the answer holds, whatever the case: RULER's `string_match_all`."""
    found = sum(reference.lower() in answer.lower() for reference in question.outputs)
    return found / len(question.outputs)


def any_reference(answer: str, question: Question) -> float:
    """1 if the answer holds one of the references, whatever the case: RULER's `string_match_part`."""
    return float(any(reference.lower() in answer.lower() for reference in question.outputs))


def whole_reference(answer: str, question: Question) -> float:
    """The fraction of references that stand in the answer as whole words or numbers, whatever the case.

    So 12.4 is not found in 12.41, 112.4 or 3.12.4, but in "Section 12.4.".
    """
    found = sum(re.search(rf"(?<!\w)(?<!\d[.,]){re.escape(reference)}(?!\w|[.,]\d)", answer, re.IGNORECASE) is not None
                for reference in question.outputs)
    return found / len(question.outputs)
