"""How sure a score is, and whether two arms differ.

Scores are shares in [0, 1]. Samples come in clusters: questions about one haystack share its text, answers of one
trained model share its training. Treating them as independent makes intervals too narrow, so means are resampled by
whole clusters. Random draws come from `random_seed` alone: equal input gives equal output, in any order of samples.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

from subq_jax.checks import check_integer, check_share

RULER_THRESHOLD = 0.856  # Llama-2-7B at 4K tokens, arXiv:2404.06654
RESAMPLES = 4000

_DRAWN_AT_ONCE = 4_000_000  # labels, 32 MB


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A value and its interval from `low` to `high`, which holds the truth in a share `level` of studies."""

    value: float
    low: float
    high: float
    level: float


@dataclasses.dataclass(frozen=True)
class Clusters:
    """What samples have in common, a label each.

    Attributes:
      haystacks: samples of one task with equal labels are about the same haystack.
      seeds: of the training that the answering model comes from; None: all answers are one model's.
      tasks: None: one task. Of several, the mean over tasks of each task's mean is estimated, RULER's average; the
        tasks are taken as given, not as a sample of tasks.
    """

    haystacks: Sequence[Any]
    seeds: Sequence[Any] | None = None
    tasks: Sequence[Any] | None = None


@dataclasses.dataclass(frozen=True)
class McNemar:
    """Prompts that only the first, or only the second arm answered right, and the two-sided p-value."""

    only_first: int
    only_second: int
    p_value: float


@dataclasses.dataclass(frozen=True)
class Equivalence:
    """Whether `difference`, of level 1 - 2 alpha and with what was not drawn, lies inside (-margin, margin)."""

    difference: Estimate
    margin: float
    equivalent: bool


def wilson_interval(right: int, total: int, *, level: float = 0.95) -> Estimate:
    """The share of right answers with Wilson's score interval (Wilson 1927).

    Assumes independent answers, each right or wrong: one question a haystack, one model. Unlike the normal
    approximation it is never empty: 50 of 50 right means at least 92.9%.

    Raises:
      ValueError: without answers, for more right answers than answers, or a level outside (0, 1).
    """
    check_integer("total", total, 1)
    check_integer("right", right, 0)
    if right > total:
        raise ValueError(f"right must be at most total={total}, got {right}")
    _check_level(level)
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = right / total
    middle = share + z * z / (2 * total)
    spread = z * math.sqrt(share * (1 - share) / total + (z / (2 * total)) ** 2)
    scale = 1 + z * z / total
    low = 0.0 if right == 0 else (middle - spread) / scale
    high = 1.0 if right == total else (middle + spread) / scale
    return Estimate(share, low, high, level)


def bootstrap_mean(scores: Sequence[float], clusters: Clusters, *, level: float = 0.95, random_seed: int = 0,
                   resamples: int = RESAMPLES) -> Estimate:
    """The mean score with a percentile interval by resampling haystacks, and seeds where there are several.

    A resample draws haystacks (within each task) and seeds, independently and with replacement; a sample counts as
    often as its haystack was drawn, times its seed (the pigeonhole bootstrap, Owen 2007). So it serves seeds that
    answered the same haystacks and seeds that had their own. Of K labels K - 1 are drawn, which makes the variance
    right for few labels (Rao & Wu 1988). Where all clusters have the same mean, resampling shows no spread; then the
    interval is the exact one for clusters of another kind that K draws have missed (Clopper & Pearson 1934).

    Assumes that haystacks are independent draws of one task at one length, and seeds independent trainings. The
    interval is too wide, by up to sqrt(3), where seeds and haystacks have no effect of their own; it is too narrow
    where seeds differ and are few (three cover the truth in three studies of four at best).

    Args:
      scores: one a sample, in [0, 1].
      clusters: their labels.
      level: of the interval.
      random_seed: of the resampling.
      resamples: how many.

    Raises:
      ValueError: for no samples, labels that do not match them, a score outside [0, 1], a single cluster (which has
        no spread to learn from), or an option out of range.
    """
    return _bootstrap(_numbers("scores", scores, 0.0), clusters, (0.0, 1.0), level, random_seed, resamples)


def paired_difference(first: Sequence[float], second: Sequence[float], clusters: Clusters, *, level: float = 0.95,
                      random_seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """Mean of `first - second` with an interval, both arms on the same prompts; see `bootstrap_mean`.

    The prompts' own difficulty cancels, so this is far sharper than comparing two intervals. Assumes that the scores
    come prompt by prompt in the same order, and what `bootstrap_mean` does.

    Raises:
      ValueError: as `bootstrap_mean`, and when the arms have unequal numbers of scores.
    """
    return _bootstrap(_differences(first, second), clusters, (-1.0, 1.0), level, random_seed, resamples)


def equivalence(first: Sequence[float], second: Sequence[float], clusters: Clusters, *, margin: float,
                alpha: float = 0.05, random_seed: int = 0, resamples: int = RESAMPLES) -> Equivalence:
    """Whether two arms are as good as each other within `margin`: two one-sided tests (Schuirmann 1987).

    Both tests reject at `alpha` when the interval of level 1 - 2 alpha of the paired difference lies inside
    (-margin, margin), widened to hold what haystacks that are rare enough not to have been drawn could change: scores
    that are partly right spread a little everywhere, and a spread so small tells nothing about those. Not being
    equivalent proves no difference: too few haystacks prove nothing, and at alpha 5% those that could have been missed
    are 26% after 10 haystacks, 1.5% after 200. The margin is to be chosen before the scores are seen. Assumes what
    `bootstrap_mean` does; with 50 to 200 haystacks and one arm always right the test errs in up to 9% of studies at
    alpha 5%.

    Raises:
      ValueError: as `paired_difference`, and for a margin outside (0, 1] or alpha outside (0, 0.5).
    """
    if not 0 < margin <= 1:
        raise ValueError(f"margin must be in (0, 1], got {margin!r}")
    if not 0 < alpha < 0.5:
        raise ValueError(f"alpha must be in (0, 0.5), got {alpha!r}")
    difference = _bootstrap(_differences(first, second), clusters, (-1.0, 1.0), 1 - 2 * alpha, random_seed, resamples,
                            with_missed=True)
    return Equivalence(difference, margin, -margin < difference.low and difference.high < margin)


def mcnemar(first: Sequence[float], second: Sequence[float]) -> McNemar:
    """McNemar's exact test that two arms answer the same prompts equally well (McNemar 1947).

    Under that hypothesis each of the prompts that only one arm answers right is either's with probability 1/2.
    Assumes independent prompts: one question a haystack, one model an arm.

    Args:
      first: 1 for a right answer, 0 for a wrong one.
      second: the same of the other arm, prompt by prompt.

    Raises:
      ValueError: for no prompts, unequal numbers of them, or a score that is neither 0 nor 1.
    """
    differences = _differences(first, second)
    for name, scores in (("first", first), ("second", second)):
        if partial := [score for score in scores if score not in (0, 1)]:
            raise ValueError(f"{name} must be 0 or 1 for each prompt, got {partial[0]!r}")
    only_first, only_second = int((differences > 0).sum()), int((differences < 0).sum())
    discordant, fewer = only_first + only_second, min(only_first, only_second)
    ways = tail = 1  # integers: 2.0 ** discordant overflows from 1024 on
    for k in range(fewer):
        ways = ways * (discordant - k) // (k + 1)
        tail += ways
    return McNemar(only_first, only_second, min(1.0, 2 * tail / 2**discordant))


def effective_length(means: Mapping[int, float], *, threshold: float = RULER_THRESHOLD) -> int | None:
    """The longest length up to which the mean score stays at or above `threshold`; None if there is none.

    RULER's effective length (arXiv:2404.06654), whose threshold is Llama-2-7B's score at 4K tokens, 85.6 of 100. A
    length above the threshold beyond one below it does not count. Assumes one and the same set of tasks at all lengths.

    Args:
      means: mean score in [0, 1] by length in tokens.
      threshold: in [0, 1].

    Raises:
      ValueError: for no lengths, or a number out of range.
    """
    if not means:
        raise ValueError("means must hold at least one length")
    check_share("threshold", threshold)
    for length, mean in means.items():
        check_integer("length", length, 1)
        check_share(f"the mean score at {length}", float(mean))
    reached = None
    for length in sorted(means):
        if means[length] < threshold:
            break
        reached = length
    return reached


def _bootstrap(values, clusters, bounds, level, random_seed, resamples, with_missed=False) -> Estimate:
    _check_level(level)
    check_integer("random_seed", random_seed, 0)
    check_integer("resamples", resamples, 100)
    haystacks = _labels("haystacks", clusters.haystacks, len(values))
    seeds = _labels("seeds", clusters.seeds, len(values))
    tasks = _labels("tasks", clusters.tasks, len(values))
    # Sums depend on the order of samples in their last bits; this order depends on the samples alone.
    order = np.lexsort((values, seeds, haystacks, tasks))
    values, haystacks, seeds, tasks = (array[order] for array in (values, haystacks, seeds, tasks))
    tables = []
    for task in range(tasks.max() + 1):
        here = tasks == task
        _, rows = np.unique(haystacks[here], return_inverse=True)
        tables.append(_table(values[here], rows, seeds[here], seeds.max() + 1))
    num_seeds, fewest = int(seeds.max()) + 1, min(sums.shape[0] for sums, _ in tables)
    if num_seeds == fewest == 1:
        raise ValueError("an interval needs at least two haystacks in each task, or two seeds; got one")
    value = float(np.mean([sums.sum() / counts.sum() for sums, counts in tables]))
    means = _resampled_means(tables, np.random.default_rng(random_seed), resamples)
    tails = (1 - level) / 2
    low, high = (float(limit) for limit in np.nanquantile(means, (tails, 1 - tails)))
    if with_missed or high - low < 1e-12:
        missed = 1 - tails ** (1 / max(fewest * len(tables), num_seeds))
        low = min(low, value - missed * (value - bounds[0]))
        high = max(high, value + missed * (bounds[1] - value))
    return Estimate(value, low, high, level)


def _table(values, rows, columns, num_columns):
    """Sums of the values and their numbers by haystack and seed, each [H, S]."""
    shape = (int(rows.max()) + 1, int(num_columns))
    cells = rows * shape[1] + columns
    sums = np.bincount(cells, values, minlength=shape[0] * shape[1])
    counts = np.bincount(cells, minlength=shape[0] * shape[1])
    return sums.reshape(shape), counts.reshape(shape).astype(np.float64)


def _resampled_means(tables, rng, resamples):
    num_seeds = tables[0][0].shape[1]
    at_once = max(1, _DRAWN_AT_ONCE // max(sums.shape[0] for sums, _ in tables))
    means = np.zeros(resamples)
    for start in range(0, resamples, at_once):
        block = means[start : start + at_once]
        seed_counts = _drawn_counts(rng, num_seeds, len(block))  # one training serves all tasks
        for sums, counts in tables:
            haystack_counts = _drawn_counts(rng, len(sums), len(block))
            total = (haystack_counts @ sums * seed_counts).sum(axis=1)
            weight = (haystack_counts @ counts * seed_counts).sum(axis=1)
            # No weight: the drawn seeds and haystacks never met. Such a resample is left out, as NaN.
            block += np.divide(total, weight, out=np.full(len(block), np.nan), where=weight > 0)
    return means / len(tables)


def _drawn_counts(rng, num_labels, num_draws):
    """How often each label is drawn, float [num_draws, num_labels]."""
    drawn = rng.integers(num_labels, size=(num_draws, max(1, num_labels - 1)))
    drawn += num_labels * np.arange(num_draws)[:, np.newaxis]
    counts = np.bincount(drawn.ravel(), minlength=num_draws * num_labels)
    return counts.reshape(num_draws, num_labels).astype(np.float64)


def _numbers(name, values, low):
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"{name} must be a sequence of at least one number, got shape {array.shape}")
    if not ((array >= low) & (array <= 1)).all():  # NaN fails too
        raise ValueError(f"{name} must lie in [{low:g}, 1], got {array[~((array >= low) & (array <= 1))][0]}")
    return array


def _differences(first, second):
    first, second = _numbers("first", first, 0.0), _numbers("second", second, 0.0)
    if len(first) != len(second):
        raise ValueError(f"both arms must answer the same prompts, got {len(first)} and {len(second)} scores")
    return first - second


def _labels(name, labels, num_samples):
    """0, 1, ... for the distinct labels, int [num_samples]; None is one label for all."""
    if labels is None:
        return np.zeros(num_samples, np.int64)
    if len(labels) != num_samples:
        raise ValueError(f"{name} must have a label for each of {num_samples} samples, got {len(labels)}")
    return np.unique(np.asarray(labels), return_inverse=True)[1]


def _check_level(level):
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level!r}")
