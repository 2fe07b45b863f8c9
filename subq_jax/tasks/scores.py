"""Scores of answers.

RULER's two look for the references anywhere in the answer, as parts of other words too, and count nothing else against
it: an answer that lists every needle of a short context is right. Only the tokens an answer may take limit that.
"""

import re

from subq_jax.tasks.haystack import Question

NUMBER = r"\$?\d+(?:[.-]\d+|,\d{3}(?!\d))*"  # 12.4, $94,200 and 276-856-7237 are one each; 1379,3404 are two


def share_of_references(answer: str, question: Question) -> float:
    """The fraction of references that the answer holds, whatever the case: RULER's `string_match_all`."""
    found = sum(reference.lower() in answer.lower() for reference in question.outputs)
    return found / len(question.outputs)


def any_reference(answer: str, question: Question) -> float:
    """1 if the answer holds one of the references, whatever the case: RULER's `string_match_part`."""
    return float(any(reference.lower() in answer.lower() for reference in question.outputs))


def first_values(answer: str, question: Question, pattern: str = NUMBER) -> float:
    """The fraction of references that the answer gives in their order: its first value must be the first, and so on.

    A value is whatever matches `pattern` as whole words, whatever the case. So an answer that lists all there are earns
    no more than its beginning does, and 12.4 is not found in 12.41, 112.4 or 3.12.4, but in "Section 12.4.".
    """
    given = re.findall(rf"(?<![\w$])(?<!\d[.-])(?:{pattern})(?!\w|[.-]\d)", answer, re.IGNORECASE)
    right = sum(value.lower() == reference.lower() for value, reference in zip(given, question.outputs, strict=False))
    return right / len(question.outputs)
