"""Tables of an evaluation: mean scores with intervals, effective lengths, scores by depth.

They are made of samples (`evaluation.samples`). What comes out are rows too, flat and ready for JSON; null stands for
what cannot be known, such as the interval of a single haystack.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from subq_jax.checks import check_integer
from subq_jax.evaluation.samples import (
    Row,
    arm_of,
    cell_fields,
    check_samples,
    clusters_of,
    grouped,
    independent,
    mean_over_tasks,
    repeated,
    right_or_wrong,
    table_cells,
)
from subq_jax.evaluation.statistics import RULER_THRESHOLD, bootstrap_mean, effective_length, wilson_interval

TEMPLATES = ("seen", "unseen")


def score_table(rows: Sequence[Row], *, chance: Mapping[str, float] | None = None, level: float = 0.95,
                random_seed: int = 0) -> list[Row]:
    """Mean scores by task, length and arm, and over all tasks.

    The interval is Wilson's where answers are right or wrong and no two share a haystack (so there is one seed), else
    by resampling haystacks and seeds. A row of task None is the mean over tasks of an arm and length; it stands only
    where all of several tasks were run.

    Args:
      rows: samples.
      chance: the score of guessing, by task.
      level: of the intervals.
      random_seed: of the resampling.

    Returns:
      rows `dict(task, length, mechanism, budget, control, mean, low, high, samples, haystacks, seeds, chance,
      seen_mean, unseen_mean, further_scores, tokens_read, flops, seconds, evidence_recall)`, in the order of tasks,
      lengths and arms. The two means are those over tasks whose template was seen or not seen in training;
      `further_scores` are means by name of the samples that have them, none over all tasks. The last four are means
      over the samples that have them; `seconds` is their median, so that the few answers that waited for compilation do
      not count. Over all tasks they are the means of the tasks' numbers. Null stands for no samples.

    Raises:
      ValueError: for samples that `check_samples` refuses, or a task in `chance` that no sample has.
    """
    check_samples(rows)
    tasks = {row["task"] for row in rows}
    if unknown := sorted(set(chance or {}) - tasks):
        raise ValueError(f"chance names tasks {unknown} without samples; tasks: {sorted(tasks)}")
    table = []
    for (task, length, arm), here in table_cells(rows):
        asked = [task] if task is not None else tasks
        known = chance and all(name in chance for name in asked)
        table.append(cell_fields(task, length, arm) | _mean(here, level, random_seed) | {
            "samples": len(here), "haystacks": len({(row["task"], row["haystack"]) for row in here}),
            "seeds": len({row["seed"] for row in here}),
            "chance": float(np.mean([chance[name] for name in asked])) if known else None,
            **{f"{kind}_mean": _mean_of_template(here, kind) for kind in TEMPLATES},
            "further_scores": {} if task is None else _further(here)} | _costs(here))
    return table


def effective_lengths(table: Sequence[Row], *, threshold: float = RULER_THRESHOLD) -> list[Row]:
    """RULER's effective length of each arm, by the mean over tasks (or the only task's).

    Args:
      table: of `score_table`.
      threshold: see `statistics.effective_length`.

    Returns:
      rows `dict(mechanism, budget, control, effective_length, longest, threshold)`; the length is null below the
      threshold everywhere. `longest` is the longest one measured: an effective length equal to it may be longer in
      truth. There are none where tasks were asked at lengths of their own, so that no length has a mean over all.

    Raises:
      ValueError: for an empty table or a threshold outside [0, 1].
    """
    if not table:
        raise ValueError("table must hold at least one row")
    tasks = {row["task"] for row in table}
    shown = None if len(tasks) > 1 else next(iter(tasks))
    means = defaultdict(dict)
    for row in table:
        if row["task"] == shown:
            means[arm_of(row)][row["length"]] = row["mean"]
    return [arm._asdict() | {"effective_length": effective_length(here, threshold=threshold), "longest": max(here),
                               "threshold": threshold} for arm, here in means.items()]


def depth_table(rows: Sequence[Row], *, num_bins: int = 10) -> list[Row]:
    """Mean scores by task, length, arm and depth of the evidence.

    Args:
      rows: samples; those without `depth` are left out.
      num_bins: equal parts of the context.

    Returns:
      rows `dict(task, length, mechanism, budget, control, depth, mean, samples)`, `depth` being the middle of a part.

    Raises:
      ValueError: for samples that `check_samples` refuses, or num_bins below 1.
    """
    check_samples(rows)
    check_integer("num_bins", num_bins, 1)
    part = lambda row: min(int(row["depth"] * num_bins), num_bins - 1)
    deep = [row for row in rows if row.get("depth") is not None]
    table = []
    for (*where, number), here in grouped(deep, lambda row: (row["task"], row["length"], arm_of(row), part(row))):
        table.append(cell_fields(*where) | {"depth": (number + 0.5) / num_bins, "samples": len(here),
                                       "mean": float(np.mean([row["score"] for row in here]))})
    return table


def _mean(rows, level, random_seed):
    scores = [row["score"] for row in rows]
    if right_or_wrong(scores) and independent(rows):
        estimate = wilson_interval(int(sum(scores)), len(scores), level=level)
    elif repeated(rows):
        estimate = bootstrap_mean(scores, clusters_of(rows), level=level, random_seed=random_seed)
    else:
        return {"mean": mean_over_tasks(scores, rows), "low": None, "high": None}
    return {"mean": estimate.value, "low": estimate.low, "high": estimate.high}


def _mean_of_template(rows, kind):
    """The mean over the tasks of samples with a template of that kind; None without such."""
    here = [row for row in rows if row.get("template") == kind]
    return mean_over_tasks([row["score"] for row in here], here) if here else None


def _further(rows):
    by_name = defaultdict(list)
    for row in rows:
        for name, score in (row.get("further_scores") or {}).items():
            by_name[name].append(score)
    return {name: float(np.mean(scores)) for name, scores in by_name.items()}


def _costs(rows):
    found = {}
    for name, mean in (("tokens_read", np.mean), ("flops", np.mean), ("seconds", np.median),
                       ("evidence_recall", np.mean)):
        by_task = defaultdict(list)
        for row in rows:
            if row.get(name) is not None:
                by_task[row["task"]].append(row[name])
        found[name] = float(np.mean([mean(here) for here in by_task.values()])) if by_task else None
    return found
