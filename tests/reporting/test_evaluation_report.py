"""The report of an evaluation: maps, curves, comparisons, and what stands when parts are missing."""

import base64
import io
import re

import matplotlib.image
import numpy as np
import pytest
from matplotlib.axes import Axes

from subq_jax.evaluation.comparisons import best_workarounds, comparisons
from subq_jax.evaluation.samples import Arm
from subq_jax.evaluation.summary import depth_table, effective_lengths, score_table
from subq_jax.reporting.evaluation import render_evaluation, write_evaluation, write_evaluation_plots
from subq_jax.reporting.plots import heat_map, length_name, scores_vs_length

RIGHT = {("dense", None): 0.99, ("selective", 512): 0.97, ("sliding_window", 512): 0.3}


def study(tasks=("niah", "vt"), lengths=(4096, 65536), haystacks=30):
    return [dict(task=task, length=length, mechanism=mechanism, budget=budget, seed=0, haystack=haystack, index=0,
                 depth=haystack / haystacks, score=float((7 * haystack + len(task)) % 30 < 30 * right))
            for task in tasks for length in lengths for (mechanism, budget), right in RIGHT.items()
            for haystack in range(haystacks)]


def report(rows, **more):
    table = score_table(rows, chance={"niah": 0.01})
    return render_evaluation(table, title="RULER-style <tasks>", lengths=effective_lengths(table),
                             compared=comparisons(rows, against=Arm("dense"), margin=0.15),
                             depths=depth_table(rows, num_bins=5), **more)


def images(page):
    return [matplotlib.image.imread(io.BytesIO(base64.b64decode(data)))
            for data in re.findall(r"data:image/png;base64,([^\"]+)", page)]


def test_a_full_report_is_one_page():
    page = report(study(), config={"seeds": 1}, versions={"jax": "1.2.3"}, notes=["greedy decoding"])
    # Mean over tasks: a curve and three maps by task; each of two tasks: a curve and three maps by depth.
    assert len(images(page)) == 12 and all(image.std() > 0.05 for image in images(page))
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert "RULER-style &lt;tasks&gt;" in page and "greedy decoding" in page and "1.2.3" in page
    assert "dense: effective length 65536 tokens, the longest measured (score at or above 0.856)." in page
    assert "sliding_window 512: no effective length, below 0.856 from the shortest on." in page
    assert "selective 512: equivalent to dense within 0.15 in 4 of 4 pairs of task and length" in page
    assert "in 0 of 4 pairs of task and length; the interval of the difference is below 0 in 4, above 0 in 0." in page
    assert "12 comparisons were made" in page
    assert page.index("Mean over tasks") < page.index("Task: niah") < page.index("Task: vt")
    assert "<td>guessing</td><td>0.010</td>" in page


def test_further_scores_stand_beside_the_score():
    further = {"wrong instance": 0.125, "edit similarity": 1.0}
    rows = [row | {"further_scores": further if row["task"] == "niah" else {}} for row in study()]
    table = score_table(rows)
    assert {row["task"] for row in table if row["further_scores"]} == {"niah"}
    page = render_evaluation(table, title="t")
    assert page.count("What else was measured") == 1 and "<td>0.125</td><td>1.000</td></tr>" in page
    some = [row | {"further_scores": {}} if row["mechanism"] == "dense" else row for row in rows]  # appended before
    page = render_evaluation(score_table(some), title="t")
    assert "<td>–</td><td>–</td></tr>" in page and "<td>0.125</td><td>1.000</td></tr>" in page
    assert "What else was measured" not in render_evaluation(score_table(study()), title="t")


def test_controls_stand_beside_their_model_with_their_price():
    rows = [row | {"template": "seen" if row["task"] == "niah" else "unseen",
                   "tokens_read": row["length"], "flops": 2e12, "seconds": 0.5, "control": None,
                   "evidence_recall": 0.75 if row["mechanism"] == "selective" else None} for row in study()]
    controls = [row | {"control": name, "score": row["score"] * share, "tokens_read": 1234, "evidence_recall": None}
                for row in rows if row["mechanism"] == "selective"
                for name, share in (("no context", 0.0), ("vote 1024", 0.5), ("vote 256", 0.5))]
    controls += best_workarounds(controls)
    table, arm = score_table(rows + controls), Arm("selective", 512)
    page = render_evaluation(table, title="t", depths=depth_table(rows + controls, num_bins=5),
                             compared=comparisons(rows, against=Arm("dense"), margin=0.1)
                             + comparisons([row for row in rows + controls if row["mechanism"] == "selective"],
                                           against=arm, margin=0.1))
    # As without controls, and for the one model that has some a curve of them for the mean and for each task.
    assert len(images(page)) == 12 + 3
    cells = ["selective 512", "4096", "1.000", "4,096", "2e+12", "0.5", "0.750"]
    assert "".join(f"<td>{cell}</td>" for cell in cells) in page
    assert "<td>selective 512, vote 256</td><td>4096</td><td>0.500</td><td>1,234</td>" in page
    order = [page.index(f"<td>selective 512{name}</td>") for name in (
        "", ", best work-around", ", no context", ", vote 256", ", vote 1024")]
    assert order == sorted(order)
    assert "selective 512, no context: equivalent to selective 512 within 0.1 in 0 of 4" in page
    assert "selective 512, best work-around: equivalent to" in page and "vote 256: equivalent to" not in page
    assert "<td>selective 512</td><td>4096</td><td>1.000</td><td>1.000</td>" in page  # means of either kind of template
    assert "difference to selective 512" in page and "difference to dense" in page
    assert "Prices are those of one question asked alone" in page and "Best work-around: the way" in page
    assert "Evidence chosen:" in page and "Prices are" not in render_evaluation(score_table(study()), title="t")


def test_one_task_and_nothing_else():
    page = render_evaluation(score_table(study(tasks=("niah",), lengths=(4096,))), title="One")
    assert len(images(page)) == 1 and "Mean over tasks" not in page and "shows" not in page
    assert "1.000 [0.886..1.000]" in page  # Wilson's interval of 30 of 30


def test_tasks_at_lengths_of_their_own_have_no_mean_and_no_effective_length():
    rows = study(tasks=("niah",), lengths=(4096,)) + study(tasks=("vt",), lengths=(65536,))
    page = report(rows)
    assert "Mean over tasks" not in page and "effective length" not in page and "Task: vt" in page


def test_a_single_haystack_is_shown_without_an_interval():
    rows = [row | {"haystack": 0, "index": row["haystack"]} for row in study()]
    page = report(rows)
    assert "<td>selective 512</td><td>1.000</td>" in page or "<td>selective 512</td><td>0.967</td>" in page
    assert "equivalent to" not in page


def test_files(tmp_path):
    rows = study()
    table = score_table(rows)
    write_evaluation(tmp_path / "report.html", table, title="A study")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == render_evaluation(table, title="A study")
    write_evaluation_plots(tmp_path / "plots", table, depths=depth_table(rows))
    names = {path.name for path in (tmp_path / "plots").iterdir()}
    assert len(names) == 12
    assert {"all_tasks_score_vs_length.png", "all_tasks_task_by_length_dense.png",
            "vt_depth_by_length_selective_512.png"} <= names


def test_a_map_shows_scores_as_brightness():
    shape = dict(title="t", xlabel="x", ylabel="y", columns=["a", "b"], rows=["c"])
    low, high, blank = (matplotlib.image.imread(io.BytesIO(heat_map([[value, value]], counts=[[7, 7]], **shape)))
                        for value in (0.0, 1.0, None))
    half = np.s_[low.shape[0] // 3 : low.shape[0] // 2, low.shape[1] // 4 : low.shape[1] // 2]
    assert low[half].mean() < high[half].mean() < blank[half].mean()


def test_maps_say_how_many_answers_a_cell_has(monkeypatch):
    written = []
    monkeypatch.setattr(Axes, "text", lambda axes, column, row, text, **style: written.append((row, column, text)))
    rows = [row for row in study(tasks=("niah",)) if row["mechanism"] == "dense"]
    rows = [row for row in rows if row["length"] == 4096 or row["depth"] < 0.5]
    rows += [row | {"haystack": 100 + row["haystack"]} for row in rows if row["depth"] < 0.2]
    render_evaluation(score_table(rows), title="t", depths=depth_table(rows, num_bins=2))
    assert [(row, column, text.split()[1]) for row, column, text in written] == [
        (0, 0, "(21)"), (0, 1, "(21)"), (1, 0, "(15)")]


def test_curves_draw_what_has_no_interval():
    rows = [dict(length=length, mechanism="dense", budget=None, mean=0.5, low=None, high=None, chance=None)
            for length in (4096, 8192)]
    sure = [row | {"low": 0.3, "high": 0.8, "chance": 0.1} for row in rows]
    assert scores_vs_length(rows, title="t") != scores_vs_length(sure, title="t", threshold=0.856)


@pytest.mark.parametrize("length, name", [
    (64, "64"), (4096, "4K"), (1536, "1536"), (1 << 20, "1M"), (3 << 19, "1536K"), (12_000_000, "12000000")])
def test_lengths_on_axes(length, name):
    assert length_name(length) == name


@pytest.mark.parametrize("call, message", [
    (lambda: render_evaluation([], title="t"), "scores must hold at least one row"),
    (lambda: heat_map([[1]], counts=[[1]], title="t", xlabel="", ylabel="", columns=["a", "b"], rows=["c"]),
     "values must have 1 rows of 2 columns"),
    (lambda: heat_map([], counts=[], title="t", xlabel="", ylabel="", columns=[], rows=[]), "values must have 0 rows"),
])
def test_wrong_input_is_refused(call, message):
    with pytest.raises(ValueError) as error:
        call()
    assert message in str(error.value)
