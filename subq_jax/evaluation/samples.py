"""What an evaluation keeps of an answer, and how answers belong together.

A sample is a row with

- `task`, `length`: what was asked, and at how many tokens;
- `mechanism`, and `budget` where it has one: the model that answered;
- `control`, where it did not read the whole context: how it answered instead, see `evaluation.controls`; all three
  make an arm;
- `seed`: of the training that the arm's model comes from;
- `haystack`, `index`: which haystack of the task and length, and which question; equal numbers mean equal prompts,
  whatever the arm and seed;
- `score`: 0 to 1;
- `depth`, where there is one place to look: the share of the context before the evidence;
- `tokens_read`, `flops`, `seconds`, where known: the price of the answer, see `evaluation.answering.Price`;
- `template`, where known: "seen" if the task was in the model's training (keys and values never are), else "unseen";
- `evidence_recall`, where the model chooses: what it chose of the evidence, see `evaluation.evidence`;
- `further_scores`, where the task has any: by name, see `tasks.Task`.

Other fields are ignored.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from subq_jax.checks import check_integer, check_share
from subq_jax.evaluation.statistics import Clusters

Row = dict[str, Any]


class Arm(NamedTuple):
    """Who answers, and how."""

    mechanism: str
    budget: int | None = None
    control: str | None = None


# Controls that are no work-around of `evaluation.controls`.
NO_CONTEXT = "no context"
BEST = "best work-around"
_FIELDS = ("task", "length", "mechanism", "seed", "haystack", "index", "score")


def check_samples(rows: Sequence[Row]) -> None:
    """Raises ValueError for no samples, a lacking field, a wrong length, score or depth, and a sample given twice."""
    if not rows:
        raise ValueError("rows must hold at least one sample")
    seen = set()
    for row in rows:
        if missing := [name for name in _FIELDS if name not in row]:
            raise ValueError(f"a sample lacks {missing}: {row}")
        check_integer("length", row["length"], 1)
        check_share("score", row["score"])
        if row.get("depth") is not None:
            check_share("depth", row["depth"])
        sample = (row["length"], arm_of(row), prompt_of(row))
        if sample in seen:
            raise ValueError(f"a sample is given twice: {row}")
        seen.add(sample)


def arm_of(row: Row) -> Arm:
    """Who gave the sample's answer, and how."""
    return Arm(row["mechanism"], row.get("budget"), row.get("control"))


def arm_order(arm: Arm) -> tuple:
    """A key to sort arms by: a budget or control may be None, which has no order of its own."""
    return arm.mechanism, arm.budget or 0, arm.control or ""


def prompt_of(row: Row) -> tuple:
    """Equal for samples of one length that answer the same prompt with models of the same seed."""
    return row["task"], row["seed"], row["haystack"], row["index"]


def cell_fields(task: str | None, length: int, arm: Arm) -> Row:
    """The fields by which the rows of tables name what they are about; task None: all tasks."""
    return {"task": task, "length": length} | arm._asdict()


def table_cells(rows: Sequence[Row]) -> Iterator[tuple[tuple, list[Row]]]:
    """((task, length, arm), samples) of each, then those over all tasks, with task None.

    The latter stand only where all of several tasks were run at a length.
    """
    yield from grouped(rows, lambda row: (row["task"], row["length"], arm_of(row)))
    tasks = {row["task"] for row in rows}
    for (length, arm), here in grouped(rows, lambda row: (row["length"], arm_of(row))):
        if len(tasks) > 1 and {row["task"] for row in here} == tasks:
            yield (None, length, arm), here


def grouped(rows: Iterable[Row], key: Callable[[Row], tuple]) -> list[tuple[tuple, list[Row]]]:
    """(key, samples) of every key there is, sorted; keys may hold an `Arm`, but no other None."""
    groups = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    order = lambda item: tuple(arm_order(part) if isinstance(part, Arm) else part for part in item[0])
    return sorted(groups.items(), key=order)


def clusters_of(rows: Sequence[Row]) -> Clusters:
    """What the samples have in common, for the statistics."""
    return Clusters([row["haystack"] for row in rows], [row["seed"] for row in rows], [row["task"] for row in rows])


def right_or_wrong(scores: Iterable[float]) -> bool:
    """Whether no score lies between 0 and 1."""
    return all(score in (0, 1) for score in scores)


def independent(rows: Sequence[Row]) -> bool:
    """Whether no two samples have a haystack, or a task of several, or a seed of several in common."""
    one = len({row["task"] for row in rows}) == len({row["seed"] for row in rows}) == 1
    return one and len({row["haystack"] for row in rows}) == len(rows)


def repeated(rows: Sequence[Row]) -> bool:
    """Whether there is a spread to learn from: two haystacks of each task, or two seeds."""
    haystacks = defaultdict(set)
    for row in rows:
        haystacks[row["task"]].add(row["haystack"])
    return min(map(len, haystacks.values())) > 1 or len({row["seed"] for row in rows}) > 1


def mean_over_tasks(scores: Iterable[float], rows: Sequence[Row]) -> float:
    """The mean of each task's mean, so that every task counts alike; a score for each row."""
    by_task = defaultdict(list)
    for score, row in zip(scores, rows, strict=True):
        by_task[row["task"]].append(score)
    return float(np.mean([np.mean(here) for here in by_task.values()]))
