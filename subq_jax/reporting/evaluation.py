"""A self-contained HTML report of a long-context evaluation, from the tables of its scores and comparisons."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from subq_jax.files import write_text
from subq_jax.reporting import plots
from subq_jax.reporting.page import bullets, element, image, page, record, table
from subq_jax.reporting.results import Row, arm_name, arms

_ALL_TASKS = "mean over tasks"
_INTERVALS = ("Intervals: Wilson's for independent right or wrong answers, else by resampling haystacks and seeds. "
              "Equivalent: the 90% interval of the paired difference, widened by what haystacks too rare to be drawn "
              "may change, lies within the margin (two one-sided tests, 5%).")
_PRICES = ("Prices are those of one question asked alone, so that a context counts whole for each of its questions. "
           "Tokens read: of all contexts and prompts given to the model, mean over answers. FLOPs: analytic, of the "
           "forward passes over what was read and written, mean. Seconds: median.")
_EVIDENCE = ("Evidence chosen: of the key blocks with evidence that are neither sink nor local, the share that at "
             "least one query predicting the answer chose, for at least one KV head of at least one layer that "
             "chooses; mean over answers. learned_router chooses single tokens.")
_TEMPLATES = ("Tasks of the training: their wording was learned; keys, values and haystacks are of evaluation alone.")
_BEST = ("Best work-around: the way and chunk size with the best mean score on all other haystacks of the task and "
         "length, chosen anew for each haystack, so that no answer takes part in the choice of what it is scored "
         "under. The others are listed at every size, none chosen.")


def write_evaluation(path: str | os.PathLike, scores: Sequence[Row], **sections: Any) -> None:
    """Writes `render_evaluation(scores, **sections)` to `path`, atomically."""
    write_text(path, render_evaluation(scores, **sections))


def render_evaluation(scores: Sequence[Row], *, title: str, lengths: Sequence[Row] = (), compared: Sequence[Row] = (),
                      depths: Sequence[Row] = (), config: Mapping[str, Any] | None = None,
                      versions: Mapping[str, str] | None = None, notes: Sequence[str] = ()) -> str:
    """Renders the report.

    Args:
      scores: of `score_table`.
      title: heading of the page.
      lengths: of `effective_lengths`.
      compared: of `comparisons`.
      depths: of `depth_table`.
      config: what was run, JSON-able.
      versions: of `reporting.versions`.
      notes: sentences on how it was measured.

    Raises:
      ValueError: without scores.
    """
    _check_scores(scores)
    found = _effective_sentences(lengths) + _comparison_sentences(compared)
    body = ["<h2>What this evaluation shows</h2>", bullets(found)] if found else []
    pictures = _pictures(scores, lengths, depths)
    for task in _tasks(scores):
        body.append(element("h2", f"Task: {task}" if task is not None else _ALL_TASKS.capitalize()))
        body += [image(png, description) for of, _, description, png in pictures if of == task]
        here = [row for row in scores if row["task"] == task]
        body.append(_score_table(here))
        if any(row.get("further_scores") for row in here):
            body += ["<h3>What else was measured of the answers</h3>", _further_table(here)]
        if any(_templates(row) != "-" for row in here):
            body += ["<h3>Templates of training and others</h3>", _template_table(here)]
        if any(row["tokens_read"] is not None for row in here):
            body += ["<h3>What an answer costs, and what it is worth</h3>", _price_table(here)]
        here = [row for row in compared if row["task"] == task]
        if here:
            body += ["<h3>Compared on the same prompts</h3>", *map(_comparison_table, _by_other(here))]
    several = f"{len(compared)} comparisons were made; p-values are of single ones." if len(compared) > 1 else None
    said = [(_PRICES, "tokens_read"), (_EVIDENCE, "evidence_recall"), (_TEMPLATES, "seen_mean")]
    explained = [text for text, name in said if any(row[name] is not None for row in scores)]
    explained += [_BEST] * any((row["control"] or "").startswith("best") for row in scores)
    return page(title, body + record(config, versions, [_INTERVALS, *explained, *filter(None, [several]), *notes]))


def write_evaluation_plots(folder: str | os.PathLike, scores: Sequence[Row], *, lengths: Sequence[Row] = (),
                           depths: Sequence[Row] = ()) -> None:
    """Writes every plot of the report into `folder` as a PNG file, for instance `niah_score_vs_length.png`.

    Raises:
      ValueError: without scores.
    """
    _check_scores(scores)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for task, name, _, png in _pictures(scores, lengths, depths):
        (folder / f"{'all_tasks' if task is None else task}_{name}.png").write_bytes(png)


def _check_scores(scores):
    if not scores:
        raise ValueError("scores must hold at least one row")


def _pictures(scores, lengths, depths):
    """(task, file's name, description, PNG) of every plot."""
    pictures = []
    threshold = next((row["threshold"] for row in lengths), None)
    scores, controlled = [row for row in scores if row["control"] is None], scores
    depths = [row for row in depths if row["control"] is None]
    for task in _tasks(scores):
        here = [row for row in scores if row["task"] == task]
        description = f"{_ALL_TASKS if task is None else task}: score against length"
        judged = task is None or len(_tasks(scores)) == 1  # what the effective length goes by
        pictures.append((task, "score_vs_length", description,
                         plots.scores_vs_length(here, title=description, threshold=threshold if judged else None)))
        for arm in arms(row for row in controlled if row["control"] is not None):
            asked = [row for row in controlled if row["task"] == task and (row["mechanism"], row["budget"]) == arm]
            name = arm_name(*arm)
            title = f"{_ALL_TASKS if task is None else task}, {name}: whole context and controls"
            pictures.append((task, f"controls_vs_length_{name.replace(' ', '_')}", title,
                             plots.controls_vs_length(_ordered(asked), title=title)))
        if task is None:
            by_task = [row for row in scores if row["task"] is not None]
            pictures += [(task, *_map(by_task, "task", arm)) for arm in arms(by_task)]
        deep = [row for row in depths if row["task"] == task]
        pictures += [(task, *_map(deep, "depth", arm)) for arm in arms(deep)]
    return pictures


def _map(rows, field, arm):
    """(file's name, description, PNG): an arm's scores, and how many answers they are of, by `field` and length."""
    here = {(row[field], row["length"]): row for row in rows if (row["mechanism"], row["budget"]) == arm}
    names, lengths = (sorted({key[axis] for key in here}) for axis in (0, 1))
    shown = [f"{name:.0%}" if field == "depth" else name for name in names]
    description = f"{arm_name(*arm)}: score (answers) by {field} and length"
    laid_out = lambda value: [[here.get((name, length), {}).get(value) for length in lengths] for name in names]
    png = plots.heat_map(laid_out("mean"), counts=laid_out("samples"), title=description,
                         xlabel="length (tokens)", ylabel="depth of the evidence" if field == "depth" else field,
                         columns=[plots.length_name(length) for length in lengths], rows=shown)
    return f"{field}_by_length_{arm_name(*arm).replace(' ', '_')}", description, png


def _tasks(scores):
    """All tasks by name, their mean first."""
    tasks = {row["task"] for row in scores}
    return [None] * (None in tasks) + sorted(tasks - {None})


def _score_table(rows):
    lengths = sorted({row["length"] for row in rows})
    lines = []
    for arm in _all_arms(rows):
        here = {row["length"]: row for row in rows if _arm(row) == arm}
        counts = [_range([row[name] for row in here.values()]) for name in ("samples", "haystacks", "seeds")]
        lines.append([arm_name(*arm), *(_with_interval(here.get(length), "mean") for length in lengths), *counts])
    if rows[0]["chance"] is not None:
        lines.append(["guessing", *[f"{rows[0]['chance']:.3f}"] * len(lengths), "–", "–", "–"])
    return table(["arm", *lengths, "samples", "haystacks", "seeds"], lines)


def _further_table(rows):
    names = list(dict.fromkeys(name for row in rows for name in row["further_scores"]))
    lines = [[arm_name(*_arm(row)), row["length"], f"{row['mean']:.3f}",
              *(_or_dash(row["further_scores"].get(name), ".3f") for name in names)] for row in _ordered(rows)]
    return table(["arm", "length", "score", *names], lines)


def _price_table(rows):
    lines = [[arm_name(*_arm(row)), row["length"], f"{row['mean']:.3f}", _or_dash(row["tokens_read"], ",.0f"),
              _or_dash(row["flops"], ".3g"), _or_dash(row["seconds"], ".3g"), _or_dash(row["evidence_recall"], ".3f")]
             for row in _ordered(rows)]
    return table(["arm", "length", "score", "tokens read", "FLOPs", "seconds", "evidence chosen"], lines)


def _templates(row):
    """What the model knew of the tasks' templates: "seen", "unseen", or the means of either where there are both."""
    seen, unseen = row["seen_mean"], row["unseen_mean"]
    if seen is not None and unseen is not None:
        return f"seen {seen:.3f}, unseen {unseen:.3f}"
    return "seen" if seen is not None else "unseen" if unseen is not None else "-"


def _template_table(rows):
    lines = [[arm_name(*_arm(row)), row["length"], _or_dash(row["seen_mean"], ".3f"),
              _or_dash(row["unseen_mean"], ".3f")] for row in _ordered(rows)]
    return table(["arm", "length", "score, tasks of the training", "score, other tasks"], lines)


def _comparison_table(rows):
    other = _other_name(rows[0])
    header = ["arm", "length", f"difference to {other}", f"equivalent within {rows[0]['margin']:g}", "right alone",
              f"{other} right alone", "McNemar's p", "pairs", "unpaired"]
    lines = []
    for row in _ordered(rows):
        verdict = {True: "yes", False: "not shown", None: "–"}[row["equivalent"]]
        lines.append([arm_name(*_arm(row)), row["length"], _with_interval(row, "difference", "+.3f"), verdict,
                      _or_dash(row["only_arm"], "d"), _or_dash(row["only_other"], "d"),
                      _or_dash(row["p_value"], ".2g"), row["pairs"], row["unpaired"]])
    return table(header, lines)


def _arm(row):
    return row["mechanism"], row["budget"], row["control"]


def _all_arms(rows):
    """(mechanism, budget, control) present: models in their usual order, each with its controls after it."""
    numbers_as_such = lambda text: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text or "")]
    controls = sorted({row["control"] for row in rows}, key=numbers_as_such)
    present = {_arm(row) for row in rows}
    return [(*pair, control) for pair in arms(rows) for control in controls if (*pair, control) in present]


def _ordered(rows):
    """The rows by arm and length."""
    order = {arm: place for place, arm in enumerate(_all_arms(rows))}
    return sorted(rows, key=lambda row: (order[_arm(row)], row["length"]))


def _by_other(compared):
    """Comparisons with each other arm."""
    others = dict.fromkeys(map(_other_name, compared))
    return [[row for row in compared if _other_name(row) == other] for other in others]


def _other_name(row):
    return arm_name(row["other_mechanism"], row["other_budget"], row["other_control"])


def _has_no_chunk_size(row):
    """Whether the arm is worth a sentence: single chunk sizes of a work-around stand in the tables."""
    return not any(character.isdigit() for character in row["control"] or "")


def _effective_sentences(lengths):
    sentences = []
    for row in filter(_has_no_chunk_size, lengths):
        name, reached = arm_name(*_arm(row)), row["effective_length"]
        if reached is None:
            sentences.append(f"{name}: no effective length, below {row['threshold']:g} from the shortest on.")
        else:
            end = ", the longest measured" if reached == row["longest"] else f" of {row['longest']} measured"
            sentences.append(f"{name}: effective length {reached} tokens{end} (score at or above "
                             f"{row['threshold']:g}).")
    return sentences


def _comparison_sentences(compared):
    sentences = []
    judged = [row for row in filter(_has_no_chunk_size, compared) if row["task"] is not None and row["low"] is not None]
    for with_one in _by_other(judged):
        for arm in _all_arms(with_one):
            rows = [row for row in with_one if _arm(row) == arm]
            equivalent, worse, better = (sum(map(test, rows)) for test in (
                lambda row: row["equivalent"], lambda row: row["high"] < 0, lambda row: row["low"] > 0))
            sentences.append(f"{arm_name(*arm)}: equivalent to {_other_name(rows[0])} within {rows[0]['margin']:g} in "
                             f"{equivalent} of {len(rows)} pairs of task and length; the interval of the difference is "
                             f"below 0 in {worse}, above 0 in {better}.")
    return sentences


def _with_interval(row, field, style=".3f"):
    if row is None:
        return "–"
    if row["low"] is None:
        return f"{row[field]:{style}}"
    return f"{row[field]:{style}} [{row['low']:{style}}..{row['high']:{style}}]"


def _range(numbers):
    low, high = min(numbers), max(numbers)
    return f"{low}" if low == high else f"{low}–{high}"


def _or_dash(value, style):
    return "–" if value is None else f"{value:{style}}"
