"""The report of synthetic sweeps: complete, with failures, with one seed, with nothing."""

import base64
import io
import re

import matplotlib.image
import pytest

from subq_jax.reporting.plots import cost_vs_length, quality_vs_budget, quality_vs_length
from subq_jax.reporting.results import Summary, arm_slope, at_best_rate, fitted_slope, summarise
from subq_jax.reporting.sweep import format_summary, render_report, write_plots, write_report
from subq_jax.reporting.verdict import verdict

ARMS = [("dense", None), ("sliding_window", 32), ("sliding_window", 64), ("selective", 32), ("selective", 64)]
RECALL = {"dense": 0.98, "sliding_window": 0.3, "selective": 0.95}


def row(task, mechanism, budget, seed, length, **measured):
    cell = f"{task}/{mechanism}_{budget}/seed{seed}"
    return dict(cell=cell, task=task, mechanism=mechanism, budget=budget, seed=seed, status="ok", train_length=128,
                length=length, accuracy=None, bits_per_byte=None, train_steps=10, parameters=1000) | measured


def sweep(seeds=(0, 1), recall=RECALL):
    rows = []
    for mechanism, budget in ARMS:
        for seed in seeds:
            for length in (128, 512, 2048):
                power = 2 if mechanism == "dense" else 1
                cost = dict(forward_seconds=1e-6 * length**power, forward_flops=10.0 * length**power)
                accuracy = recall[mechanism] + 0.01 * seed
                rows.append(row("recall", mechanism, budget, seed, length, accuracy=accuracy, **cost))
                rows.append(row("code", mechanism, budget, seed, length, bits_per_byte=3 - recall[mechanism], **cost))
    return rows


def images(page):
    return [matplotlib.image.imread(io.BytesIO(base64.b64decode(data)))
            for data in re.findall(r"data:image/png;base64,([^\"]+)", page)]


def test_complete_report_holds_plots_tables_and_no_links():
    page = render_report(sweep(), title="A sweep", config={"steps": 10}, versions={"jax": "1.2.3"}, notes=["pinned"])
    assert len(images(page)) == 8  # per task: quality against length and budget, time and FLOPs
    assert all(image.std() > 0.05 for image in images(page))
    assert "0.985 ± 0.007 [0.980..0.990]" in page
    assert "1.2.3" in page and "&quot;steps&quot;: 10" in page and "pinned" in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert "Failed" not in page and "not run" not in page


def at_rate(rate, loss, **which):
    """The sweep's rows of one arm at a learning rate, with a loss that falls with length."""
    rows = [r for r in sweep(**which) if (r["task"], r["mechanism"], r["budget"]) == ("recall", "selective", 32)]
    return [r | {"cell": f"{r['cell']}-lr{rate}", "learning_rate": rate, "loss": loss - 1e-4 * r["length"]}
            for r in rows]


def test_each_arm_is_shown_at_its_best_learning_rate():
    others = [r for r in sweep() if (r["mechanism"], r["budget"]) != ("selective", 32)]
    failed = dict(cell="x", task="recall", mechanism="selective", budget=32, seed=0, learning_rate=0.1, status="failed")
    rows = others + at_rate(0.001, 0.5) + at_rate(0.003, 0.4) + [failed]
    best = at_best_rate(rows)
    assert {r["learning_rate"] for r in best if "learning_rate" in r and r["status"] == "ok"} == {0.003}
    assert len(best) == len(others) + 6 + 1 and failed in best
    page = render_report(rows, title="A sweep")
    assert "Learning rates" in page and "<td>recall: selective 32</td><td>0.487 ± 0.000" in page
    assert "Learning rates" not in render_report(best, title="A sweep")


def test_learning_rates_are_compared_over_the_seeds_that_all_of_them_have():
    scouted = at_rate(0.001, 0.3, seeds=(0,)) + at_rate(0.003, 0.2, seeds=(0,)) + at_rate(0.003, 0.9, seeds=(1, 2))
    assert {r["learning_rate"] for r in at_best_rate(scouted)} == {0.003}
    assert len(at_best_rate(scouted)) == 9


def test_statistics_of_routers_are_drawn_where_they_were_taken(tmp_path):
    rows = [r | ({"routing_union_8": 2.5} if r["mechanism"] == "selective" else {}) for r in sweep()]
    assert "Distinct blocks of 8 neighbouring tokens" in render_report(rows, title="A sweep")
    write_plots(tmp_path, rows)
    assert (tmp_path / "recall_routing_union_8_vs_length.png").exists()
    assert not (tmp_path / "recall_routing_gate_mean_vs_length.png").exists()


def test_report_names_failed_and_missing_cells():
    rows = [r for r in sweep() if r["mechanism"] != "selective"]
    rows.append(dict(cell="recall/selective_32/seed0", task="recall", mechanism="selective", budget=32, seed=0,
                     status="failed", error="ValueError: <script>alert(1)</script>", traceback="cells/x/error.txt"))
    page = render_report(rows, title="A <b> sweep", expected=[{"cell": "recall/selective_32/seed0"}, {"cell": "other"}])
    assert "Failed cells (1)" in page and "cells/x/error.txt" in page
    assert "Cells not run (1)" in page and "<li>other</li>" in page
    assert "<script>" not in page and "<b>" not in page
    assert len(images(page)) == 8


@pytest.mark.parametrize("rows", [[], [dict(cell="a", task="recall", mechanism="dense", budget=None, seed=0,
                                            status="failed", error="boom")]])
def test_report_of_nothing(rows):
    page = render_report(rows, title="empty")
    assert "nothing to conclude" in page
    assert not images(page)


def test_one_seed_one_length():
    rows = [r for r in sweep(seeds=(0,)) if r["length"] == 128 and r["mechanism"] == "dense"]
    page = render_report(rows, title="one")
    assert "One seed" in page and "±" not in page
    assert len(images(page)) == 8


def test_verdict_needs_dense_to_have_learned():
    good = "\n".join(verdict(sweep()))
    assert "recall: dense answers 98.5% right at the training length, so the task was learned" in good
    assert "sliding_window 32 falls to 30.5% at 2048 tokens" in good
    assert "selective 64 follows dense: up to 3.0 points below it" in good
    assert "code: selective 32 needs 2.050 there, 0.030 more than dense." in good
    assert re.search(r"forward time with length.*dense 2\.00.*selective 64 1\.00", good)

    bad = sweep(recall=RECALL | {"dense": 0.7})
    assert "proves nothing" in "\n".join(verdict(bad))
    without = "\n".join(verdict([r for r in sweep() if r["mechanism"] != "dense"]))
    assert "recall: dense has no result at the training length: this run proves nothing." in without
    assert "code: dense has no result at 2048 tokens" in without


def test_verdict_says_when_a_control_does_as_well_and_when_selective_does_not_follow():
    text = "\n".join(verdict(sweep(recall=RECALL | {"sliding_window": 0.95, "selective": 0.6})))
    assert "sliding_window 32 stays within 20 points of dense: the task does not need reach" in text
    assert "selective 32 does not follow dense: up to 38.0 points below it" in text


def test_slopes():
    assert fitted_slope([1, 2, 4], [3, 12, 48]) == pytest.approx(2)
    assert fitted_slope([1, 1], [3, 12]) is None
    assert fitted_slope([1, 2], [0.0, 12]) is None
    assert arm_slope(sweep(), "selective", 32, "forward_seconds") == pytest.approx(1)


def test_plots_are_drawn_from_the_rows():
    few, more = sweep(seeds=(0,)), sweep(seeds=(0, 1, 2))
    draws = ((quality_vs_length, "accuracy"), (quality_vs_budget, "accuracy"), (cost_vs_length, "forward_flops"))
    for draw, metric in draws:
        first, again, other = (draw(rows, metric, title="t", ylabel="y") for rows in (few, few, more))
        assert first.startswith(b"\x89PNG")
        assert first == again
        if metric == "accuracy":
            assert first != other


def test_summary_groups_and_formats():
    table = summarise(sweep(), "accuracy", ["mechanism", "length"])
    assert table["dense", 128].values == pytest.approx((0.98, 0.99))
    assert len(table["selective", 128].values) == 4
    assert format_summary(None) == "–"
    assert format_summary(Summary((1.0,)), ".1f") == "1.0"
    assert format_summary(Summary((1.0, 3.0)), ".1f") == "2.0 ± 1.4 [1.0..3.0]"


def test_every_plot_of_the_report_is_a_file_too(tmp_path):
    write_plots(tmp_path / "plots", sweep())
    names = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert len(names) == 8 and "recall_accuracy_vs_length.png" in names


def test_write_report(tmp_path):
    write_report(tmp_path / "report.html", sweep(), title="written")
    assert "<title>written</title>" in (tmp_path / "report.html").read_text(encoding="utf-8")
