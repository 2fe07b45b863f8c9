"""Tables and comparisons from the scores of single answers."""

import json

import numpy as np
import pytest

from subq_jax.evaluation.comparisons import best_workarounds, compare_models_and_controls, comparisons
from subq_jax.evaluation.samples import BEST, Arm
from subq_jax.evaluation.statistics import Clusters, bootstrap_mean, mcnemar, paired_difference, wilson_interval
from subq_jax.evaluation.summary import depth_table, effective_lengths, score_table

DENSE, SELECTIVE, WINDOW = Arm("dense"), Arm("selective", 512), Arm("sliding_window", 512)
RIGHT = {DENSE: 1.0, SELECTIVE: 0.95, WINDOW: 0.3}


def sample(task="niah", length=4096, arm=DENSE, seed=0, haystack=0, index=0, score=1.0, **more):
    return dict(task=task, length=length, seed=seed, haystack=haystack, index=index, score=score) | arm._asdict() | more


def study(tasks=("niah",), lengths=(4096,), arms=tuple(RIGHT), seeds=(0,), haystacks=40, questions=1):
    """Right or wrong by the same draw for each arm, so that easy prompts are easy for all."""
    rows = []
    for task in tasks:
        for length in lengths:
            for seed in seeds:
                draws = np.random.default_rng((len(task), length, seed)).random((haystacks, questions))
                rows += [sample(task, length, arm, seed, haystack, index, float(draws[haystack, index] < RIGHT[arm]),
                                depth=haystack / (haystacks - 1))
                         for arm in arms for haystack in range(haystacks) for index in range(questions)]
    return rows


def cell(table, task, length, arm):
    (found,) = [row for row in table if (row["task"], row["length"], *(row[name] for name in Arm._fields))
                == (task, length, *arm)]
    return found


def scores(rows, arm):
    return [row["score"] for row in rows if (row["mechanism"], row["budget"], row["control"]) == arm]


def test_further_scores_are_means_of_the_samples_that_have_them():
    new = [sample(haystack=h, further_scores={"exact match": h / 4}) for h in (1, 2)]
    (row,) = score_table([sample(haystack=0), sample(haystack=3, further_scores={}), *new])
    assert row["further_scores"] == {"exact match": 0.375} and row["samples"] == 4


def test_independent_answers_have_wilsons_interval():
    rows = study()
    row = cell(score_table(rows, chance={"niah": 0.01}), "niah", 4096, SELECTIVE)
    here = scores(rows, SELECTIVE)
    wilson = wilson_interval(int(sum(here)), 40)
    assert (row["mean"], row["low"], row["high"]) == (wilson.value, wilson.low, wilson.high)
    assert (row["samples"], row["haystacks"], row["seeds"], row["chance"]) == (40, 40, 1, 0.01)


@pytest.mark.parametrize("seeds, questions", [((0,), 3), ((0, 1, 2), 1)])
def test_clustered_answers_are_resampled(seeds, questions):
    rows = study(seeds=seeds, questions=questions)
    row = cell(score_table(rows), "niah", 4096, SELECTIVE)
    here = [r for r in rows if r["mechanism"] == "selective"]
    expected = bootstrap_mean([r["score"] for r in here],
                              Clusters([r["haystack"] for r in here], [r["seed"] for r in here]))
    assert (row["mean"], row["low"], row["high"]) == (expected.value, expected.low, expected.high)
    assert (row["samples"], row["haystacks"], row["seeds"]) == (120, 40, len(seeds))


def test_mean_over_tasks_stands_where_all_tasks_were_run():
    rows = study(tasks=("vt", "niah"), lengths=(4096, 8192))
    rows = [row for row in rows if (row["task"], row["length"], row["mechanism"]) != ("vt", 8192, "dense")]
    table = score_table(rows, chance={"vt": 0.1, "niah": 0.3})
    both = cell(table, None, 4096, WINDOW)
    apart = [cell(table, task, 4096, WINDOW)["mean"] for task in ("vt", "niah")]
    assert both["mean"] == pytest.approx(np.mean(apart)) and both["chance"] == pytest.approx(0.2)
    assert (both["samples"], both["haystacks"]) == (80, 80)
    assert [row["length"] for row in table if row["task"] is None and row["mechanism"] == "dense"] == [4096]
    assert not [row for row in score_table(study()) if row["task"] is None]


def test_a_single_haystack_has_a_mean_without_an_interval():
    rows = study(haystacks=2, questions=3, arms=(DENSE, SELECTIVE))
    rows = [row for row in rows if row["haystack"] == 0]
    row = cell(score_table(rows), "niah", 4096, SELECTIVE)
    assert row["mean"] > 0 and row["low"] is None and row["high"] is None and row["haystacks"] == 1
    (row,) = comparisons(rows, against=DENSE, margin=0.1)
    assert row["low"] is None and row["equivalent"] is None and row["pairs"] == 3


def test_effective_lengths():
    rows = study(tasks=("vt", "niah"), lengths=(4096, 8192, 16384), haystacks=100)
    for row in rows:
        if row["mechanism"] == "selective" and row["length"] == 16384 and row["task"] == "vt":
            row["score"] *= 0.5
    found = {Arm(row["mechanism"], row["budget"]): row for row in effective_lengths(score_table(rows))}
    assert found[DENSE]["effective_length"] == found[DENSE]["longest"] == 16384
    assert found[SELECTIVE]["effective_length"] == 8192
    assert found[WINDOW]["effective_length"] is None
    lower = effective_lengths(score_table(rows), threshold=0.6)
    assert [row["effective_length"] for row in lower if row["mechanism"] == "selective"] == [16384]


def test_comparisons_are_those_of_the_statistics():
    rows = study(haystacks=100)
    found = comparisons(rows, against=DENSE, margin=0.1)
    assert [row["mechanism"] for row in found] == ["selective", "sliding_window"]
    first, second = scores(rows, SELECTIVE), scores(rows, DENSE)
    interval, test = paired_difference(first, second, Clusters(range(100))), mcnemar(first, second)
    row = found[0]
    assert (row["difference"], row["low"], row["high"]) == (interval.value, interval.low, interval.high)
    assert (row["only_arm"], row["only_other"], row["p_value"]) == (test.only_first, test.only_second, test.p_value)
    assert row["equivalent"] and not found[1]["equivalent"] and found[1]["p_value"] < 1e-6
    assert (row["pairs"], row["unpaired"], row["margin"]) == (100, 0, 0.1)
    json.dumps(found, allow_nan=False)


def test_pairs_that_share_haystacks_have_no_p_value():
    (row,) = comparisons(study(arms=(DENSE, SELECTIVE), questions=2), against=DENSE, margin=0.1)
    assert row["p_value"] is None and row["only_other"] >= 0 and row["low"] <= row["difference"] <= row["high"]
    partial = [r | {"score": r["score"] / 2} for r in study(arms=(DENSE, SELECTIVE))]
    (row,) = comparisons(partial, against=DENSE, margin=0.1)
    assert row["p_value"] is row["only_arm"] is None


def test_only_prompts_that_both_answered_are_compared():
    rows = study(arms=(DENSE, SELECTIVE), tasks=("vt", "niah"), seeds=(0, 1))
    whole = comparisons(rows, against=DENSE, margin=0.1)
    assert [(row["task"], row["pairs"]) for row in whole] == [("niah", 80), ("vt", 80), (None, 160)]
    part = [row for row in rows if row["mechanism"] == "selective" or (row["seed"], row["task"]) == (0, "niah")]
    found = comparisons(part, against=DENSE, margin=0.1)
    assert [(row["task"], row["pairs"], row["unpaired"]) for row in found] == [("niah", 40, 40)]


def test_depths():
    table = depth_table(study(haystacks=40) + [sample(haystack=100)], num_bins=4)
    here = [row for row in table if row["mechanism"] == "dense"]
    assert [row["depth"] for row in here] == [0.125, 0.375, 0.625, 0.875]
    assert [row["samples"] for row in here] == [10] * 4 and {row["mean"] for row in here} == {1.0}


def test_the_order_of_samples_does_not_matter():
    rows = study()
    table = score_table(rows)
    assert table == score_table(rows[50:] + rows[:50])
    json.dumps(table, allow_nan=False)


def test_controls_are_arms_of_their_own():
    vote = Arm("dense", None, "vote 256")
    rows = study(arms=(DENSE,), questions=2) + [
        sample(arm=vote, haystack=h, index=i, score=0.0, tokens_read=10) for h in range(40) for i in range(2)]
    table = score_table(rows)
    assert cell(table, "niah", 4096, vote)["mean"] == 0 and cell(table, "niah", 4096, DENSE)["mean"] == 1
    (row,) = comparisons(rows, against=DENSE, margin=0.1)
    assert (row["control"], row["other_control"], row["difference"], row["pairs"]) == ("vote 256", None, -1.0, 80)
    (row,) = comparisons(rows, against=vote, margin=0.1)
    assert (row["control"], row["other_control"], row["difference"]) == (None, "vote 256", 1.0)


def test_models_are_compared_with_one_and_controls_with_their_model():
    rows = study(arms=(DENSE, SELECTIVE), haystacks=4)
    rows += [row | {"control": "vote 256"} for row in rows if row["mechanism"] == "selective"]
    found = compare_models_and_controls(rows, against="dense", margin=0.1)
    assert [(row["mechanism"], row["control"], row["other_mechanism"], row["other_control"]) for row in found] == [
        ("selective", None, "dense", None), ("selective", "vote 256", "selective", None)]
    assert [row["other_mechanism"] for row in compare_models_and_controls(rows, against="moba", margin=0.1)] == [
        "selective"]
    several = rows + [row | {"budget": 64} for row in rows if row["mechanism"] == "dense"]
    assert len(compare_models_and_controls(several, against="dense", margin=0.1)) == 1
    assert compare_models_and_controls(study(arms=(DENSE,)), against="dense", margin=0.1) == []


def test_costs_are_means_and_seconds_medians_over_the_samples_that_have_them():
    rows = [sample(haystack=h, tokens_read=h, flops=2.0 * h, seconds=100.0 if h == 0 else 1.0) for h in range(5)]
    rows[1]["evidence_recall"], rows[2]["evidence_recall"], rows[3]["evidence_recall"] = 1.0, 0.5, None
    (row,) = score_table(rows)
    assert [row[x] for x in ("tokens_read", "flops", "seconds", "evidence_recall")] == [2.0, 4.0, 1.0, 0.75]
    other = [sample(task="vt", haystack=h, tokens_read=10) for h in range(2)]
    assert cell(score_table(rows + other), None, 4096, DENSE)["tokens_read"] == 6.0
    assert cell(score_table(rows + other), "vt", 4096, DENSE)["seconds"] is None


def test_means_of_tasks_whose_template_was_seen_in_training_and_of_others():
    label = {"niah": {"template": "seen"}, "vt": {"template": "unseen"}, "qa": {"template": "seen"}}
    answered = {"niah": (1, 1), "vt": (0, 0.5), "qa": (0, 1)}
    rows = [sample(task=task, haystack=h, score=score) | label[task]
            for task, scores in answered.items() for h, score in enumerate(scores)]
    means = {row["task"]: (row["seen_mean"], row["unseen_mean"]) for row in score_table(rows)}
    assert means == {None: (0.75, 0.25), "niah": (1.0, None), "vt": (None, 0.25), "qa": (0.5, None)}
    assert score_table([sample()])[0]["seen_mean"] is None


def test_the_best_workaround_is_chosen_on_other_haystacks():
    def answers(control, right, **more):
        return [sample(arm=Arm("dense", None, control), haystack=h, score=float(h in right), **more) for h in range(4)]

    rows = answers("vote 256", {0}) + answers("notes 64", {1, 2, 3}) + answers("no context", {0, 1, 2, 3})
    best = best_workarounds(rows + study(haystacks=4))
    assert {row["control"] for row in best} == {BEST} and len(best) == 4
    assert {row["chosen_control"] for row in best} == {"notes 64"} and sum(row["score"] for row in best) == 3
    # Each of four is right once and elsewhere wrong: the one that is right here never looks best from the others.
    lucky = [row for h in range(4) for row in answers(f"vote {h}", {h})]
    assert sum(row["score"] for row in best_workarounds(lucky)) == 0
    cheap = answers("vote 1", {0, 1}, tokens_read=2) + answers("vote 2", {0, 1}, tokens_read=1)
    assert {row["chosen_control"] for row in best_workarounds(cheap)} == {"vote 2"}
    assert best_workarounds([row for row in rows if row["haystack"] == 0]) == []
    score_table(rows + best)


@pytest.mark.parametrize("call, message", [
    (lambda: score_table([]), "rows must hold at least one sample"),
    (lambda: score_table([{"task": "niah"}]), "a sample lacks ['length', 'mechanism', 'seed', 'haystack', 'index',"),
    (lambda: score_table([sample(score=85.6)]), "score must be in [0, 1], got 85.6"),
    (lambda: score_table([sample(depth=-1)]), "depth must be in [0, 1], got -1"),
    (lambda: score_table([sample(length=0)]), "length must be an integer >= 1, got 0"),
    (lambda: score_table([sample(), sample(score=0.0)]), "a sample is given twice"),
    (lambda: score_table([sample()], chance={"vt": 0.1}), "chance names tasks ['vt'] without samples"),
    (lambda: comparisons([sample()], against=Arm("dense", 3), margin=0.1),
     "against must be one of [Arm(mechanism='dense', budget=None, control=None)]"),
    (lambda: comparisons(study(), against=DENSE, margin=2), "margin must be in [0, 1], got 2"),
    (lambda: depth_table([sample()], num_bins=0), "num_bins must be an integer >= 1, got 0"),
    (lambda: effective_lengths([]), "table must hold at least one row"),
])
def test_wrong_input_is_refused(call, message):
    with pytest.raises(ValueError) as error:
        call()
    assert message in str(error.value)
