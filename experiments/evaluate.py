"""Long-context tasks for trained models: `python -m experiments.evaluate --runs=runs/a,runs/b --workdir=runs/eval`.

Takes finished runs of `experiments.train` on text (or `cells/<name>/training` of a sweep) and asks all of them the same
questions about the same haystacks. Each answer becomes a row of `samples.jsonl` as soon as its haystack is done, so a
command that was cut off goes on where it stopped; then come `scores.jsonl`, plots and a self-contained `report.html`.
Models are told apart by mechanism, budget and seed. One folder holds one choice of haystacks: `--seed`, `--questions`
and the corpus stay as they were, everything else may be added later. `--corpus` is a folder of text that no run has
seen, for tasks whose haystacks are made of it. `--no_context` and `--workarounds=retrieval,vote,notes` ask the same
models the same questions without the context, and by what long contexts are to replace, at every one of
`--chunk_sizes`.
"""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

from absl import app, flags
from absl import logging as absl_logging
from rich.console import Console
from rich.progress import track
from rich.table import Table

from experiments.program import run
from experiments.trained_model import TrainedModel
from subq_jax.evaluation.controls import Control, answer_with, check_workarounds, controls_of
from subq_jax.evaluation.summary import (
    best_workarounds,
    compare_models_and_controls,
    depth_table,
    effective_lengths,
    score_table,
)
from subq_jax.files import append_rows, read_rows, write_rows, write_text
from subq_jax.reporting.evaluation import templates, write_evaluation, write_evaluation_plots
from subq_jax.reporting.results import arm_name
from subq_jax.tasks import Request, Task, find_task
from subq_jax.tasks.code import source_documents

_RUNS = flags.DEFINE_list("runs", [], "Folders of training runs.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for samples, scores and report.")
_TASKS = flags.DEFINE_list("tasks", ["phonebook", "mqar", "counting"], "Names of `subq_jax.tasks.TASKS`.")
_LENGTHS = flags.DEFINE_list("lengths", ["2048", "8192"], "Tokens of a prompt with its answer.")
_HAYSTACKS = flags.DEFINE_integer("haystacks", 10, "Haystacks of each task and length.", lower_bound=1)
_QUESTIONS = flags.DEFINE_integer("questions", 4, "Questions about a haystack, where it has as many.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Chooses the haystacks.", lower_bound=0)
_CORPUS = flags.DEFINE_string("corpus", "", "Folder of text for haystacks; empty for none.")
_SUFFIX = flags.DEFINE_string("corpus_suffix", "", "Of the corpus only files whose names end so.")
_NO_CONTEXT = flags.DEFINE_bool("no_context", False, "Also ask every question without its context.")
_WORKAROUNDS = flags.DEFINE_list("workarounds", [], "Also answer by these: retrieval, vote, notes.")
_CHUNK_SIZES = flags.DEFINE_list("chunk_sizes", ["256", "512", "1024"], "Tokens of a chunk, for --workarounds.")
_AGAINST = flags.DEFINE_string("against", "dense", "Mechanism that the others are compared with.")
_MARGIN = flags.DEFINE_float("margin", 0.02, "Difference of scores that counts as equal.", lower_bound=0.0)


def asked(tasks: list[Task], lengths: list[int]) -> Iterator[tuple[Task, int, int]]:
    """(task, length, index of the haystack) of everything that is asked."""
    return itertools.product(tasks, lengths, range(_HAYSTACKS.value))


def asked_of(length: int) -> list[Control]:
    """How every question of a length is answered."""
    return controls_of(length, no_context=_NO_CONTEXT.value, ways=_WORKAROUNDS.value,
                       chunk_sizes=[int(x) for x in _CHUNK_SIZES.value])


def check_distinct(name: str, values: list) -> None:
    """Raises ValueError for a value given twice: its samples would be too."""
    if len(set(values)) < len(values):
        raise ValueError(f"--{name} must be distinct, got {values}")


def haystack_flags(path: Path) -> dict:
    """The flags that choose the haystacks; ValueError where those stored at `path` were others.

    Samples of other haystacks would pass for answers to the same prompts.
    """
    ours = {name: flags.FLAGS[name].value for name in ("seed", "questions", "corpus", "corpus_suffix")}
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else ours
    for name, value in ours.items():
        if stored.get(name) != value:
            raise ValueError(f"--{name} must be {stored.get(name)!r}, as the samples in {path.parent} have it, "
                             f"got {value!r}; choose another workdir")
    return ours


def check_arms(models: list[TrainedModel]) -> None:
    """Raises ValueError for two runs that no sample could tell apart."""
    runs = {}
    for folder, model in zip(_RUNS.value, models, strict=True):
        first = runs.setdefault(tuple(model.arm.items()), folder)
        if first != folder:
            raise ValueError(f"--runs must differ in mechanism, budget or seed, got {first} and {folder}: {model.arm}")


def evaluate_runs(
    models: list[TrainedModel], tasks: list[Task], lengths: list[int], samples: Path, console: Console
) -> None:
    """Appends what is not yet there to `samples`."""
    rows = read_rows(samples)
    write_rows(samples, rows)  # without a last line cut short, which the next would continue
    done = {(row["task"], row["length"], row["haystack"], row["mechanism"], row["budget"], row["seed"],
             row.get("control")) for row in rows}
    corpus = source_documents(_CORPUS.value, _SUFFIX.value) if _CORPUS.value else ()
    with samples.open("a", encoding="utf-8") as file:
        for task, length, index in track(list(asked(tasks, lengths)), "haystacks", console=console):
            haystacks = {}
            for model in models:
                arm = (task.name, length, index, *(model.arm[x] for x in ("mechanism", "budget", "seed")))
                missing = [control for control in asked_of(length) if (*arm, control.name) not in done]
                if not missing:
                    continue
                if model.text not in haystacks:
                    request = Request(length, model.tokenizer, _SEED.value, index, _QUESTIONS.value, corpus)
                    haystacks[model.text] = task.build(request)
                template = {"template": "seen" if task.name in model.taught else "unseen"}
                for rows in answer_with(model.answering, task, haystacks[model.text], missing):
                    append_rows(file, [row | model.arm | template for row in rows])


def report(samples: list[dict], workdir: Path, console: Console) -> None:
    """Writes tables, plots and the page, and prints the scores."""
    samples = samples + best_workarounds(samples)
    scores = score_table(samples)
    lengths = effective_lengths(scores)
    located = [row for row in samples if row["depth"] is not None]
    depths = depth_table(located) if located else []
    compared = compare_models_and_controls(samples, against=_AGAINST.value, margin=_MARGIN.value)
    write_rows(workdir / "scores.jsonl", scores)
    write_evaluation(workdir / "report.html", scores, title="Long-context evaluation", lengths=lengths,
                     compared=compared, depths=depths, config={name: flags.FLAGS[name].value for name in (
                         "runs", "tasks", "lengths", "haystacks", "questions", "seed", "corpus", "corpus_suffix",
                         "no_context", "workarounds", "chunk_sizes", "against", "margin")})
    write_evaluation_plots(workdir / "plots", scores, lengths=lengths, depths=depths)
    table = Table()  # prices are in the report
    for column in ("task", "length", "arm", "score", "95% interval", "samples", "template"):
        table.add_column(column, overflow="fold")
    for row in scores:
        interval = "-" if row["low"] is None else f"{row['low']:.3f} to {row['high']:.3f}"
        table.add_row(row["task"] or "all tasks", str(row["length"]),
                      arm_name(row["mechanism"], row["budget"], row["control"]), f"{row['mean']:.3f}", interval,
                      str(row["samples"]), templates(row))
    console.print(table)
    arms = sorted({(row["mechanism"], row["budget"] or 0) for row in samples})
    if len(arms) > 1 and [mechanism for mechanism, _ in arms].count(_AGAINST.value) != 1:
        names = ", ".join(arm_name(mechanism, budget or None) for mechanism, budget in arms)
        console.print("Models are not compared with each other: --against must be a mechanism with one budget here, "
                      f"got {_AGAINST.value}; there are {names}", soft_wrap=True, markup=False)
    console.print(f"Report: {workdir / 'report.html'}", soft_wrap=True)


def main(argv: list[str]) -> None:
    """Runs the evaluation and writes its results."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    absl_logging.set_verbosity(absl_logging.WARNING)
    if not _RUNS.value or any(not x.isdigit() for x in _LENGTHS.value):
        raise app.UsageError(f"--runs must name a run and --lengths integers, got {_RUNS.value} and {_LENGTHS.value}")
    if any(not x.isdigit() for x in _CHUNK_SIZES.value):
        raise app.UsageError(f"--chunk_sizes must be integers, got {_CHUNK_SIZES.value}")
    console, workdir = Console(), Path(_WORKDIR.value).absolute()
    try:
        tasks = [find_task(name) for name in _TASKS.value]
        check_workarounds(_WORKAROUNDS.value, [int(x) for x in _CHUNK_SIZES.value])
        for name, values in (("runs", _RUNS), ("tasks", _TASKS)):
            check_distinct(name, values.value)
        check_distinct("lengths", lengths := [int(x) for x in _LENGTHS.value])
        chosen = haystack_flags(workdir / "haystacks.json")
        models = [TrainedModel(Path(folder).absolute()) for folder in _RUNS.value]
        check_arms(models)
        write_text(workdir / "haystacks.json", json.dumps(chosen) + "\n")
        evaluate_runs(models, tasks, lengths, workdir / "samples.jsonl", console)
        report(read_rows(workdir / "samples.jsonl"), workdir, console)
    except (OSError, ValueError) as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None


if __name__ == "__main__":
    flags.mark_flags_as_required(["workdir"])
    run(main)
