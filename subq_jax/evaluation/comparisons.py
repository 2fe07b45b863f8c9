"""Arms against each other: differences on the same prompts, and the best work-around of each model.

Made of samples (`evaluation.samples`); what comes out are rows too, flat and ready for JSON, null for what cannot be
known.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from subq_jax.checks import check_share
from subq_jax.evaluation.samples import (
    BEST,
    NO_CONTEXT,
    Arm,
    Row,
    arm_of,
    arm_order,
    cell_fields,
    check_samples,
    clusters_of,
    independent,
    mean_over_tasks,
    prompt_of,
    repeated,
    right_or_wrong,
    table_cells,
)
from subq_jax.evaluation.statistics import equivalence, mcnemar, paired_difference


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
    known = sorted({arm_of(row) for row in rows}, key=str)
    if against not in known:
        raise ValueError(f"against must be one of {known}, got {against}")
    cells = dict(table_cells(rows))
    found = []
    for (task, length, arm), here in cells.items():
        others = {prompt_of(row): row["score"] for row in cells.get((task, length, against), ())}
        pairs = [row for row in here if prompt_of(row) in others]
        # A task without pairs would leave the mean over tasks to the others.
        if arm != against and pairs and {row["task"] for row in pairs} == {row["task"] for row in here}:
            scores = [row["score"] for row in pairs], [others[prompt_of(row)] for row in pairs]
            found.append(cell_fields(task, length, arm) | _compare(*scores, pairs, margin, level, random_seed) | {
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
    models = sorted({arm_of(row) for row in whole}, key=arm_order)
    named = [arm for arm in models if arm.mechanism == against]
    found = comparisons(whole, against=named[0], margin=margin) if len(named) == 1 and len(models) > 1 else []
    for model in models:
        own = [row for row in rows if arm_of(row)[:2] == model[:2]]
        found += comparisons(own, against=model, margin=margin) if len({arm_of(row) for row in own}) > 1 else []
    return found


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
            groups[row["task"], row["length"], arm_of(row)[:2], row["seed"]][row["control"]].append(row)
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


def _compare(first, second, rows, margin, level, random_seed):
    found = dict.fromkeys(("low", "high", "equivalent", "only_arm", "only_other", "p_value"))
    found["difference"] = mean_over_tasks(np.subtract(first, second), rows)
    if repeated(rows):
        clusters = clusters_of(rows)
        interval = paired_difference(first, second, clusters, level=level, random_seed=random_seed)
        test = equivalence(first, second, clusters, margin=margin, random_seed=random_seed)
        found |= {"low": interval.low, "high": interval.high, "equivalent": test.equivalent}
    if right_or_wrong(first) and right_or_wrong(second):
        test = mcnemar(first, second)
        found |= {"only_arm": test.only_first, "only_other": test.only_second}
        if independent(rows):
            found["p_value"] = test.p_value
    return found
