"""Long-context tasks for trained models: `python -m experiments.evaluate --runs=runs/a,runs/b --workdir=runs/eval`.

Takes finished runs of `experiments.train` on text (or `cells/<name>/training` of a sweep) and asks all of them the same
questions about the same haystacks. Each answer becomes a row of `samples.jsonl` as soon as its haystack is done, so a
command that was cut off goes on where it stopped; then come `scores.jsonl`, plots and a self-contained `report.html`.
Models are told apart by mechanism, budget and seed. `--corpus` is a folder of text that no run has seen, for tasks
whose haystacks are made of it.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path

from absl import app, flags
from absl import logging as absl_logging
from rich.console import Console
from rich.progress import track
from rich.table import Table

from experiments.program import run
from subq_jax.data.config import DataConfig
from subq_jax.evaluation.answering import answer_questions
from subq_jax.evaluation.summary import comparisons, depth_table, effective_lengths, score_table
from subq_jax.files import append_rows, read_rows, write_rows
from subq_jax.inference.reader import Reader
from subq_jax.reporting.evaluation import write_evaluation, write_evaluation_plots
from subq_jax.reporting.results import arm_name
from subq_jax.tasks import Request, Task, find_task
from subq_jax.training import train
from subq_jax.training.workdir import stored_config

_RUNS = flags.DEFINE_list("runs", [], "Folders of training runs.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for samples, scores and report.")
_TASKS = flags.DEFINE_list("tasks", ["phonebook", "mqar", "counting"], "Names of `subq_jax.tasks.TASKS`.")
_LENGTHS = flags.DEFINE_list("lengths", ["2048", "8192"], "Tokens of a prompt with its answer.")
_HAYSTACKS = flags.DEFINE_integer("haystacks", 10, "Haystacks of each task and length.", lower_bound=1)
_QUESTIONS = flags.DEFINE_integer("questions", 4, "Questions about a haystack, where it has as many.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Chooses the haystacks.", lower_bound=0)
_CORPUS = flags.DEFINE_string("corpus", "", "Folder of text for haystacks; empty for none.")
_SUFFIX = flags.DEFINE_string("corpus_suffix", "", "Of the corpus only files whose names end so.")
_AGAINST = flags.DEFINE_string("against", "dense", "Mechanism that the others are compared with.")
_MARGIN = flags.DEFINE_float("margin", 0.02, "Difference of scores that counts as equal.", lower_bound=0.0)


class Model:
    """A trained run as it answers: its arm, its tokenizer, `text` (equal where tokenizers are) and a reader."""

    def __init__(self, workdir: Path):
        from subq_jax.data.text_pipeline import TokenisedSplit

        config = stored_config(workdir)
        data = DataConfig.from_mapping(config.data)
        if data.task != "text":
            raise ValueError(f"{workdir} must be a run on text, got data.task={data.task!r}")
        self.arm = {"mechanism": config.model.mechanism, "seed": config.seed,
                    "budget": None if config.model.mechanism == "dense" else config.model.budget}
        split = TokenisedSplit.load(data, "validation")
        self.tokenizer, self.text = split.tokenizer, split.fingerprint
        self.reader = Reader(train(config, workdir, show_progress=False).model)


def load_corpus(folder: str, suffix: str) -> tuple[str, ...]:
    """The documents of a folder, none for ""."""
    from subq_jax.source_folder import read_texts

    return read_texts(folder, suffix) if folder else ()


def asked(tasks: list[Task], lengths: list[int]) -> Iterator[tuple[Task, int, int]]:
    """(task, length, index of the haystack) of everything that is asked."""
    return itertools.product(tasks, lengths, range(_HAYSTACKS.value))


def evaluate_runs(models: list[Model], tasks: list[Task], lengths: list[int], samples: Path, console: Console) -> None:
    """Appends what is not yet there to `samples`."""
    rows = read_rows(samples) if samples.exists() else []
    done = {(row["task"], row["length"], row["haystack"], row["mechanism"], row["budget"], row["seed"]) for row in rows}
    corpus = load_corpus(_CORPUS.value, _SUFFIX.value)
    with samples.open("a", encoding="utf-8") as file:
        for task, length, index in track(list(asked(tasks, lengths)), "haystacks", console=console):
            haystacks = {}
            for model in models:
                if (task.name, length, index, *(model.arm[x] for x in ("mechanism", "budget", "seed"))) in done:
                    continue
                if model.text not in haystacks:
                    request = Request(length, model.tokenizer, _SEED.value, index, _QUESTIONS.value, corpus)
                    haystacks[model.text] = task.build(request)
                rows = answer_questions(model.reader, model.tokenizer, task, haystacks[model.text])
                append_rows(file, [row | model.arm for row in rows])


def report(samples: list[dict], workdir: Path, console: Console) -> None:
    """Writes tables, plots and the page, and prints the scores."""
    scores = score_table(samples)
    lengths = effective_lengths(scores)
    located = [row for row in samples if row["depth"] is not None]
    depths = depth_table(located) if located else []
    others = {row["mechanism"] for row in samples} - {_AGAINST.value}
    budgets = {row["budget"] for row in samples if row["mechanism"] == _AGAINST.value}
    compared = comparisons(samples, against=(_AGAINST.value, budgets.pop()), margin=_MARGIN.value) if (
        others and len(budgets) == 1) else []
    write_rows(workdir / "scores.jsonl", scores)
    write_evaluation(workdir / "report.html", scores, title="Long-context evaluation", lengths=lengths,
                     compared=compared, depths=depths, config={name: flags.FLAGS[name].value for name in (
                         "runs", "tasks", "lengths", "haystacks", "questions", "seed", "corpus")})
    write_evaluation_plots(workdir / "plots", scores, lengths=lengths, depths=depths)
    table = Table("task", "length", "arm", "score", "95% interval", "samples", "haystacks")
    for row in scores:
        interval = "-" if row["low"] is None else f"{row['low']:.3f} to {row['high']:.3f}"
        table.add_row(row["task"] or "all tasks", str(row["length"]), arm_name(row["mechanism"], row["budget"]),
                      f"{row['mean']:.3f}", interval, str(row["samples"]), str(row["haystacks"]))
    console.print(table)
    console.print(f"Report: {workdir / 'report.html'}", soft_wrap=True)


def main(argv: list[str]) -> None:
    """Runs the evaluation and writes its results."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    absl_logging.set_verbosity(absl_logging.WARNING)
    if not _RUNS.value or any(not x.isdigit() for x in _LENGTHS.value):
        raise app.UsageError(f"--runs must name a run and --lengths integers, got {_RUNS.value} and {_LENGTHS.value}")
    console, workdir = Console(), Path(_WORKDIR.value).absolute()
    try:
        tasks = [find_task(name) for name in _TASKS.value]
        models = [Model(Path(folder).absolute()) for folder in _RUNS.value]
        workdir.mkdir(parents=True, exist_ok=True)
        evaluate_runs(models, tasks, [int(x) for x in _LENGTHS.value], workdir / "samples.jsonl", console)
        report(read_rows(workdir / "samples.jsonl"), workdir, console)
    except (OSError, ValueError) as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None


if __name__ == "__main__":
    flags.mark_flags_as_required(["workdir"])
    run(main)
