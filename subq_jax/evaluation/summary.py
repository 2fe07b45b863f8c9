"""From the scores of single answers to tables: means with intervals, effective lengths, comparisons of arms.

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

Other fields are ignored. What comes out are rows too, flat and ready for JSON; null stands for what cannot be known,
such as the interval of a single haystack.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from subq_jax.checks import check_integer, check_share
from subq_jax.evaluation.statistics import (
    RULER_THRESHOLD,
    Clusters,
    bootstrap_mean,
    effective_length,
    equivalence,
    mcnemar,
    paired_difference,
    wilson_interval,
)
from subq_jax.files import read_rows

Row = dict[str, Any]


class Arm(NamedTuple):
    """Who answers, and how."""

    mechanism: str
    budget: int | None = None
    control: str | None = None


# Controls that are no work-around of `evaluation.controls`.
NO_CONTEXT = "no context"
BEST = "best work-around"
TEMPLATES = ("seen", "unseen")
_FIELDS = ("task", "length", "mechanism", "seed", "haystack", "index", "score")


def read_samples(*paths: str | os.PathLike) -> list[Row]:
    """The samples of JSONL files, checked by `check_samples`.

    Raises:
      ValueError: for a damaged line, or samples that `check_samples` refuses.
    """
    rows = [row for path in paths for row in read_rows(path)]
    check_samples(rows)
    return rows


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
        sample = (row["length"], _arm(row), _prompt(row))
        if sample in seen:
            raise ValueError(f"a sample is given twice: {row}")
        seen.add(sample)


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
    for (task, length, arm), here in _cells(rows):
        asked = [task] if task is not None else tasks
        known = chance and all(name in chance for name in asked)
        table.append(_named(task, length, arm) | _mean(here, level, random_seed) | {
            "samples": len(here), "haystacks": len({_haystack(row) for row in here}),
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
            means[_arm(row)][row["length"]] = row["mean"]
    return [arm._asdict() | {"effective_length": effective_length(here, threshold=threshold), "longest": max(here),
                               "threshold": threshold} for arm, here in means.items()]


def comparisons(rows: Sequence[Row], *, against: Arm, margin: float, level: float = 0.95,
                random_seed: int = 0) -> list[Row]:
    """Every other arm against the one named, task by task and over all tasks, on the prompts that both answered.

    Args:
      rows: samples.
      against: the arm to compare with, such as `Arm("dense")`.
      margin: how far apart two arms are as good as each other; see `statistics.equivalence`.
      level: of the intervals.
      random_seed: of the resampling.

    Returns:
      rows `dict(task, length, mechanism, budget, control, other_mechanism, other_budget, other_control, difference,
      low, high, equivalent, margin, only_arm, only_other, p_value, pairs, unpaired)`. The other arm is `against`;
      `difference` is the arm's mean less the other's. `only_arm` and `only_other` count prompts that one of them alone
      answered right, null where scores are not right or wrong; `p_value` is McNemar's, null too where two pairs share
      a haystack, since it takes them as independent. `unpaired` samples of either arm had no counterpart (same seed,
      haystack and index) and were left out.

    Raises:
      ValueError: for samples that `check_samples` refuses, when `against` has no samples, or for a wrong margin.
    """
    check_samples(rows)
    check_share("margin", margin)
    known = sorted({_arm(row) for row in rows}, key=str)
    if against not in known:
        raise ValueError(f"against must be one of {known}, got {against}")
    cells = dict(_cells(rows))
    found = []
    for (task, length, arm), here in cells.items():
        others = {_prompt(row): row["score"] for row in cells.get((task, length, against), ())}
        pairs = [row for row in here if _prompt(row) in others]
        # A task without pairs would leave the mean over tasks to the others.
        if arm != against and pairs and {row["task"] for row in pairs} == {row["task"] for row in here}:
            scores = [row["score"] for row in pairs], [others[_prompt(row)] for row in pairs]
            found.append(_named(task, length, arm) | _compare(*scores, pairs, margin, level, random_seed) | {
                **{f"other_{name}": value for name, value in against._asdict().items()}, "margin": margin,
                "pairs": len(pairs), "unpaired": len(here) + len(others) - 2 * len(pairs)})
    return found


def compare_models_and_controls(rows: Sequence[Row], *, against: str, margin: float) -> list[Row]:
    """`comparisons` of models that read the whole context with the one named, and of each model's controls with itself.

    Args:
      rows: samples.
      against: a mechanism; where it has several budgets or no samples, models are not compared.
      margin: as of `comparisons`.

    Raises:
      ValueError: as `comparisons`.
    """
    whole = [row for row in rows if row.get("control") is None]
    models = sorted({_arm(row) for row in whole}, key=_in_order)
    named = [arm for arm in models if arm.mechanism == against]
    found = comparisons(whole, against=named[0], margin=margin) if len(named) == 1 and len(models) > 1 else []
    for model in models:
        own = [row for row in rows if _arm(row)[:2] == model[:2]]
        found += comparisons(own, against=model, margin=margin) if len({_arm(row) for row in own}) > 1 else []
    return found


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
    for (*where, number), here in _groups(deep, lambda row: (row["task"], row["length"], _arm(row), part(row))):
        table.append(_named(*where) | {"depth": (number + 0.5) / num_bins, "samples": len(here),
                                       "mean": float(np.mean([row["score"] for row in here]))})
    return table


def best_workarounds(rows: Sequence[Row]) -> list[Row]:
    """Samples of a further arm for each model with work-arounds, whose `control` is BEST: the best way and chunk size.

    Which is best is decided for each task, length, mechanism, budget and seed, and anew for each haystack, by the mean
    score on all *other* haystacks; equals go to the fewer tokens read, then by name. So no answer takes part in the
    choice of what it is scored under, and a lucky size gains nothing. A single haystack has no others and no row.

    Args:
      rows: samples.

    Returns:
      copies of the chosen work-arounds' samples, with the one chosen as `chosen_control`.
    """
    groups = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row.get("control") is not None and row["control"] != NO_CONTEXT:
            groups[row["task"], row["length"], _arm(row)[:2], row["seed"]][row["control"]].append(row)
    best = []
    for ways in groups.values():
        haystacks = set.intersection(*({row["haystack"] for row in here} for here in ways.values()))
        for haystack in sorted(haystacks) if len(haystacks) > 1 else ():
            others = {name: [row for row in here if row["haystack"] in haystacks - {haystack}]
                      for name, here in ways.items()}
            mean = lambda name, field, others=others: float(np.mean([row.get(field) or 0 for row in others[name]]))
            chosen = min(ways, key=lambda name: (-mean(name, "score"), mean(name, "tokens_read"), name))
            best += [row | {"control": BEST, "chosen_control": chosen} for row in ways[chosen]
                     if row["haystack"] == haystack]
    return best


def _cells(rows):
    """((task, length, arm), samples) of each, then those over all tasks, with task None."""
    yield from _groups(rows, lambda row: (row["task"], row["length"], _arm(row)))
    tasks = {row["task"] for row in rows}
    for (length, arm), here in _groups(rows, lambda row: (row["length"], _arm(row))):
        if len(tasks) > 1 and {row["task"] for row in here} == tasks:
            yield (None, length, arm), here


def _groups(rows: Iterable[Row], key: Callable[[Row], tuple]):
    groups = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    order = lambda item: tuple(_in_order(part) if isinstance(part, Arm) else part for part in item[0])
    return sorted(groups.items(), key=order)


def _mean(rows, level, random_seed):
    scores = [row["score"] for row in rows]
    if _right_or_wrong(scores) and _independent(rows):
        estimate = wilson_interval(int(sum(scores)), len(scores), level=level)
    elif _repeated(rows):
        estimate = bootstrap_mean(scores, _clusters(rows), level=level, random_seed=random_seed)
    else:
        return {"mean": _mean_over_tasks(scores, rows), "low": None, "high": None}
    return {"mean": estimate.value, "low": estimate.low, "high": estimate.high}


def _mean_of_template(rows, kind):
    """The mean over the tasks of samples with a template of that kind; None without such."""
    here = [row for row in rows if row.get("template") == kind]
    return _mean_over_tasks([row["score"] for row in here], here) if here else None


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


def _compare(first, second, rows, margin, level, random_seed):
    found = dict.fromkeys(("low", "high", "equivalent", "only_arm", "only_other", "p_value"))
    found["difference"] = _mean_over_tasks(np.subtract(first, second), rows)
    if _repeated(rows):
        clusters = _clusters(rows)
        interval = paired_difference(first, second, clusters, level=level, random_seed=random_seed)
        test = equivalence(first, second, clusters, margin=margin, random_seed=random_seed)
        found |= {"low": interval.low, "high": interval.high, "equivalent": test.equivalent}
    if _right_or_wrong(first) and _right_or_wrong(second):
        test = mcnemar(first, second)
        found |= {"only_arm": test.only_first, "only_other": test.only_second}
        if _independent(rows):
            found["p_value"] = test.p_value
    return found


def _mean_over_tasks(scores, rows):
    by_task = defaultdict(list)
    for score, row in zip(scores, rows, strict=True):
        by_task[row["task"]].append(score)
    return float(np.mean([np.mean(here) for here in by_task.values()]))


def _right_or_wrong(scores):
    return all(score in (0, 1) for score in scores)


def _independent(rows):
    """Whether no two samples have a haystack, or a task of several, or a seed of several in common."""
    one = len({row["task"] for row in rows}) == len({row["seed"] for row in rows}) == 1
    return one and len({row["haystack"] for row in rows}) == len(rows)


def _repeated(rows):
    """Whether there is a spread to learn from: two haystacks of each task, or two seeds."""
    haystacks = defaultdict(set)
    for row in rows:
        haystacks[row["task"]].add(row["haystack"])
    return min(map(len, haystacks.values())) > 1 or len({row["seed"] for row in rows}) > 1


def _clusters(rows):
    return Clusters([row["haystack"] for row in rows], [row["seed"] for row in rows], [row["task"] for row in rows])


def _arm(row) -> Arm:
    return Arm(row["mechanism"], row.get("budget"), row.get("control"))


def _in_order(arm):
    return arm.mechanism, arm.budget or 0, arm.control or ""  # a budget or control may be None, which has no order


def _haystack(row):
    return row["task"], row["haystack"]


def _prompt(row):
    return row["task"], row["seed"], row["haystack"], row["index"]


def _named(task, length, arm):
    return {"task": task, "length": length} | arm._asdict()
