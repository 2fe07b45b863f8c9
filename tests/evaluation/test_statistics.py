"""Intervals and tests against values worked out by hand, by enumeration, and by simulated studies."""

import math
from statistics import NormalDist

import numpy as np
import pytest

from subq_jax.evaluation.statistics import (
    Clusters,
    bootstrap_mean,
    effective_length,
    equivalence,
    mcnemar,
    paired_difference,
    wilson_interval,
)

Z = NormalDist().inv_cdf(0.975)


@pytest.mark.parametrize("total, low", [(50, 0.929), (100, 0.963), (500, 0.992)])
def test_all_right_is_not_certainty(total, low):
    estimate = wilson_interval(total, total)
    assert (estimate.value, estimate.high) == (1, 1)
    assert estimate.low == pytest.approx(total / (total + Z * Z)) == pytest.approx(low, abs=5e-4)


@pytest.mark.parametrize("right, total", [(0, 7), (1, 10), (8, 10), (10, 20), (499, 500)])
def test_wilson_ends_where_the_score_test_just_rejects(right, total):
    estimate = wilson_interval(right, total)
    for limit in {estimate.low, estimate.high} - {0.0, 1.0}:
        distance = abs(limit - right / total)
        assert distance == pytest.approx(Z * math.sqrt(limit * (1 - limit) / total))
    mirrored = wilson_interval(total - right, total)
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - estimate.high, 1 - estimate.low))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8, 0.95])
def test_wilson_covers_the_truth(share):
    total = 60
    covered = 0.0
    for right in range(total + 1):
        estimate = wilson_interval(right, total)
        if estimate.low <= share <= estimate.high:
            covered += math.comb(total, right) * share**right * (1 - share) ** (total - right)
    assert covered > 0.92


def test_resamples_of_few_haystacks_by_enumeration():
    # Two of three labels are drawn: means 0, 1/4, 1/2, 3/4, 1 with probabilities 1, 2, 3, 2, 1 of 9.
    scores, clusters = [0, 0.5, 1], Clusters(["a", "b", "c"])
    wide, narrow = (bootstrap_mean(scores, clusters, level=level) for level in (0.95, 0.7))
    assert (wide.value, wide.low, wide.high) == (0.5, 0, 1)
    assert (narrow.low, narrow.high) == (0.25, 0.75)


def test_interval_of_independent_scores_is_the_normal_one():
    scores = np.random.default_rng(0).random(400)
    estimate = bootstrap_mean(scores, Clusters(range(400)))
    spread = Z * scores.std(ddof=1) / 20
    assert (estimate.low, estimate.high) == pytest.approx((scores.mean() - spread, scores.mean() + spread), abs=2e-3)


def test_copies_of_a_question_add_nothing():
    scores = np.random.default_rng(0).random(30)
    once = bootstrap_mean(scores, Clusters(range(30)))
    copied = bootstrap_mean(np.repeat(scores, 5), Clusters(np.repeat(range(30), 5)))
    assert (copied.value, copied.low, copied.high) == pytest.approx((once.value, once.low, once.high))
    alone = bootstrap_mean(np.repeat(scores, 5), Clusters(range(150)))
    assert alone.high - alone.low < 0.6 * (once.high - once.low)


def test_order_of_samples_changes_nothing_and_equal_input_repeats():
    rng = np.random.default_rng(1)
    scores, haystacks, seeds = rng.random(60), np.repeat(range(10), 6), np.tile(range(3), 20)
    tasks = np.where(haystacks < 4, "niah", "vt")
    order = rng.permutation(60)
    estimate = bootstrap_mean(scores, Clusters(haystacks, seeds, tasks))
    assert estimate == bootstrap_mean(scores, Clusters(haystacks, seeds, tasks))
    assert estimate == bootstrap_mean(scores[order], Clusters(haystacks[order], seeds[order], tasks[order]))
    assert estimate != bootstrap_mean(scores, Clusters(haystacks, seeds, tasks), random_seed=1)


def test_many_haystacks_are_drawn_in_blocks(monkeypatch):
    scores, clusters = np.random.default_rng(0).random(40), Clusters(range(40))
    whole = bootstrap_mean(scores, clusters)
    monkeypatch.setattr("subq_jax.evaluation.statistics._DRAWN_AT_ONCE", 40 * 7)
    blocks = bootstrap_mean(scores, clusters)
    assert (blocks.low, blocks.high) == pytest.approx((whole.low, whole.high), abs=0.01)


@pytest.mark.parametrize("haystacks", [10, 50])
def test_equal_clusters_give_the_exact_interval(haystacks):
    clusters = Clusters(np.repeat(range(haystacks), 3))
    missed = 1 - 0.025 ** (1 / haystacks)  # a share that 97.5% of studies would have met
    right = bootstrap_mean([1.0] * 3 * haystacks, clusters)
    assert (right.value, right.low, right.high) == pytest.approx((1, 1 - missed, 1))
    same = paired_difference([0.5] * 3 * haystacks, [0.5] * 3 * haystacks, clusters)
    assert (same.value, same.low, same.high) == pytest.approx((0, -missed, missed))


def test_tasks_count_alike_and_are_not_drawn():
    scores = [0.1, 0.1, 0.1, 0.2, 0.8, 0.9]
    estimate = bootstrap_mean(scores, Clusters([0, 1, 2, 3, 0, 1], tasks=["a"] * 4 + ["b"] * 2))
    assert estimate.value == pytest.approx((0.125 + 0.85) / 2)
    assert estimate.low >= (0.1 + 0.8) / 2 and estimate.high <= (0.2 + 0.9) / 2


def coverage(study, truth, studies=200):
    hits = 0
    for number in range(studies):
        scores, clusters = study(np.random.default_rng(number))
        estimate = bootstrap_mean(scores, clusters, resamples=400, random_seed=number)
        hits += estimate.low <= truth <= estimate.high
    return hits / studies


@pytest.mark.parametrize("haystacks, questions, least, most", [
    (5, 8, 0.82, 0.88), (10, 8, 0.91, 0.96), (20, 8, 0.91, 0.96), (50, 1, 0.91, 0.96)])
def test_coverage_with_questions_that_share_haystacks(haystacks, questions, least, most):
    def study(rng):
        easy = 0.6 + 0.3 * rng.uniform(-1, 1, (haystacks, 1))
        right = rng.random((haystacks, questions)) < easy
        return right.ravel().astype(float), Clusters(np.repeat(range(haystacks), questions))
    assert least < coverage(study, 0.6, studies=1000) < most


@pytest.mark.parametrize("seeds, of_seeds, of_haystacks, least", [
    (3, 0.0, 0.1, 0.93), (10, 0.05, 0.1, 0.9), (3, 0.05, 0.01, 0.65)])
def test_coverage_with_seeds_that_answer_the_same_haystacks(seeds, of_seeds, of_haystacks, least):
    def study(rng):
        scores = (0.5 + of_seeds * rng.standard_normal((seeds, 1)) + of_haystacks * rng.standard_normal((1, 40))
                  + 0.05 * rng.standard_normal((seeds, 40)))
        clusters = Clusters(np.tile(range(40), seeds), np.repeat(range(seeds), 40))
        return np.clip(scores, 0, 1).ravel(), clusters
    assert coverage(study, 0.5) > least


def test_seeds_with_haystacks_of_their_own():
    rng = np.random.default_rng(0)
    scores, haystacks, seeds = rng.random(40), np.arange(40), np.repeat([0, 1], 20)
    estimate = bootstrap_mean(scores, Clusters(haystacks, seeds))
    assert estimate.low < scores.mean() < estimate.high
    apart = bootstrap_mean([0.0, 1.0], Clusters([0, 1], [0, 1]))  # half of the resamples hold no sample at all
    assert (apart.low, apart.high) == (0, 1)


@pytest.mark.parametrize("only_first, only_second, p_value", [
    (0, 0, 1.0), (1, 0, 1.0), (5, 5, 1.0), (9, 1, 2 * 11 / 1024), (0, 6, 2 / 64), (4, 1, 2 * 6 / 32)])
def test_mcnemar_by_hand(only_first, only_second, p_value):
    first = [1] * only_first + [0] * only_second + [1, 1, 0]
    second = [0] * only_first + [1] * only_second + [1, 1, 0]
    test = mcnemar(first, second)
    assert (test.only_first, test.only_second) == (only_first, only_second)
    assert test.p_value == pytest.approx(p_value)
    assert mcnemar(second, first).p_value == test.p_value


def test_mcnemar_of_many_prompts():
    assert mcnemar([1] * 3000, [0] * 3000).p_value == 0
    assert mcnemar([True] * 1550 + [False] * 1450, [False] * 1550 + [True] * 1450).p_value == pytest.approx(
        2 * (1 - NormalDist().cdf(99.5 / math.sqrt(3000))), abs=2e-3)


def test_pairs_are_sharper_than_two_intervals_and_swapping_flips_the_sign():
    rng = np.random.default_rng(0)
    hard = rng.random(100)
    first, second = np.clip(hard + 0.05, 0, 1), np.clip(hard + 0.02 * rng.standard_normal(100), 0, 1)
    clusters = Clusters(range(100))
    difference, swapped = paired_difference(first, second, clusters), paired_difference(second, first, clusters)
    assert swapped.value == -difference.value
    assert (swapped.low, swapped.high) == pytest.approx((-difference.high, -difference.low))
    alone = bootstrap_mean(first, clusters)
    assert difference.high - difference.low < 0.2 * (alone.high - alone.low)
    assert difference.low > 0


def test_equivalence_needs_closeness_and_enough_haystacks():
    def ask(haystacks, wrong, margin):
        first, second = np.ones(haystacks), np.ones(haystacks)
        second[:wrong] = 0
        return equivalence(first, second, Clusters(range(haystacks)), margin=margin)
    assert ask(200, 0, 0.02).equivalent
    assert not ask(20, 0, 0.02).equivalent  # nothing differed, in too few haystacks
    assert ask(200, 4, 0.05).equivalent and not ask(200, 10, 0.05).equivalent
    difference = ask(200, 4, 0.05).difference
    assert difference.level == pytest.approx(0.9) and difference.value == pytest.approx(0.02)


def claimed(haystacks, worse, better, studies=300):
    """The share of studies that find two arms equivalent within 0.05, one right alone in `worse` and the other in
    `better` of all prompts."""
    found = 0
    for number in range(studies):
        drawn = np.random.default_rng(number).random(haystacks)
        first, second = drawn >= better, (drawn < better) | (drawn >= better + worse)
        found += equivalence(first, second, Clusters(range(haystacks)), margin=0.05, resamples=400).equivalent
    return found / studies


@pytest.mark.parametrize("haystacks, worse, better", [(100, 0.05, 0.0), (200, 0.1, 0.05)])
def test_equivalence_at_the_margin_is_rarely_claimed(haystacks, worse, better):
    assert claimed(haystacks, worse, better) < 0.1


def test_equivalence_of_equal_arms_is_found_in_about_half_of_the_studies_of_100_haystacks():
    assert 0.35 < claimed(100, 0.02, 0.02) < 0.55


@pytest.mark.parametrize("haystacks", [10, 50, 200])
def test_small_differences_everywhere_do_not_hide_rare_large_ones(haystacks):
    claimed = 0
    for number in range(200):
        rng = np.random.default_rng(number)
        second = 0.9 + rng.uniform(-0.01, 0.01, haystacks)
        second[rng.random(haystacks) < 0.02 / 0.9] = 0  # the margin, in the mean
        clusters = Clusters(range(haystacks))
        claimed += equivalence(np.full(haystacks, 0.9), second, clusters, margin=0.02, resamples=400).equivalent
    assert claimed / 200 < 0.1


def test_effective_length():
    means = {4096: 0.95, 8192: 0.9, 16384: 0.856, 32768: 0.85, 65536: 0.9}
    assert effective_length(means) == 16384
    assert effective_length(dict(reversed(means.items()))) == 16384
    assert effective_length(means, threshold=0.9) == 8192
    assert effective_length(means, threshold=0.5) == 65536
    assert effective_length(means, threshold=0.99) is None


TWO = Clusters([0, 1])


@pytest.mark.parametrize("call, message", [
    (lambda: wilson_interval(0, 0), "total must be an integer >= 1, got 0"),
    (lambda: wilson_interval(3, 2), "right must be at most total=2, got 3"),
    (lambda: wilson_interval(1, 2, level=1.0), "level must be in (0, 1), got 1.0"),
    (lambda: bootstrap_mean([], Clusters([])), "scores must be a sequence of at least one number"),
    (lambda: bootstrap_mean([0.5, math.nan], TWO), "scores must lie in [0, 1], got nan"),
    (lambda: bootstrap_mean([0.5, 85.6], TWO), "scores must lie in [0, 1], got 85.6"),
    (lambda: bootstrap_mean([0.5, 1], Clusters([0])), "haystacks must have a label for each of 2 samples, got 1"),
    (lambda: bootstrap_mean([0.5, 1], Clusters([0, 1], [0])), "seeds must have a label for each of 2 samples, got 1"),
    (lambda: bootstrap_mean([0.5, 1], Clusters([0, 0])), "at least two haystacks"),
    (lambda: bootstrap_mean([0.5, 1], TWO, resamples=10), "resamples must be an integer >= 100, got 10"),
    (lambda: paired_difference([1, 0], [1], TWO), "both arms must answer the same prompts, got 2 and 1 scores"),
    (lambda: equivalence([1, 0], [1, 0], TWO, margin=0), "margin must be in (0, 1], got 0"),
    (lambda: equivalence([1, 0], [1, 0], TWO, margin=0.1, alpha=0.5), "alpha must be in (0, 0.5), got 0.5"),
    (lambda: mcnemar([], []), "first must be a sequence of at least one number"),
    (lambda: mcnemar([1], [0.5]), "second must be 0 or 1 for each prompt, got 0.5"),
    (lambda: effective_length({}), "means must hold at least one length"),
    (lambda: effective_length({4096: 95.0}), "the mean score at 4096 must be in [0, 1], got 95.0"),
    (lambda: effective_length({4096: 0.9}, threshold=85.6), "threshold must be in [0, 1], got 85.6"),
])
def test_wrong_input_is_refused(call, message):
    with pytest.raises(ValueError) as error:
        call()
    assert message in str(error.value)
