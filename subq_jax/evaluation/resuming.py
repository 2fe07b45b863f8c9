"""What an evaluation that was cut off has finished.

All questions about a haystack that one arm answers one way are a group; their rows are written together. A kill or a
full disk can still leave a part of them, and a part is worth nothing: the questions that are missing would never be
asked. So every row says how many the group has (`questions`), and a group with fewer rows is asked again.
"""

from collections import Counter
from collections.abc import Sequence

from subq_jax.evaluation.samples import Row

_GROUP = ("task", "length", "haystack", "mechanism", "budget", "seed", "control")


def group_of(row: Row) -> tuple:
    """Which task, length, haystack, mechanism, budget, seed and control the sample is of, in this order."""
    return tuple(row.get(name) for name in _GROUP)


def with_group_size(rows: Sequence[Row]) -> list[Row]:
    """The rows of one whole group, each with `questions`: how many they are."""
    return [row | {"questions": len(rows)} for row in rows]


def finished(rows: Sequence[Row]) -> list[Row]:
    """The rows of whole groups, in their order; those without `questions`, of earlier versions, are taken as whole."""
    counts = Counter(map(group_of, rows))
    return [row for row in rows if counts[group_of(row)] == row.get("questions", counts[group_of(row)])]
