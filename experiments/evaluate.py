"""Long-context tasks for trained models: `python -m experiments.evaluate --runs=runs/a,runs/b --workdir=runs/eval`.

Takes finished runs of `experiments.train` on text (or `cells/<name>/training` of a sweep) and asks all of them the same
questions about the same haystacks. Each answer becomes a row of `samples.jsonl` as soon as its haystack is done, so a
command that was cut off goes on where it stopped and ends with the same rows; then come `scores.jsonl`, plots and a
self-contained `report.html`. Models are told apart by mechanism, budget and seed. One folder holds one choice of
haystacks: `--seed`, `--questions`, corpus and tokenizer stay as they were, everything else may be added later.
`--corpus` is a folder of text that no run has seen, for tasks whose haystacks are made of it. `--no_context` and
`--workarounds=retrieval,vote,notes` ask the same models the same questions without the context, and by what long
contexts are to replace, at every one of `--chunk_sizes`.
"""

import functools
import hashlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

from absl import flags
from absl import logging as absl_logging
from rich.console import Console
from rich.progress import track
from rich.table import Table

from experiments import task_flags
from experiments.program import refuse_arguments, run
from experiments.trained_model import TrainedModel
from subq_jax.attention.mechanisms import MECHANISMS
from subq_jax.evaluation.comparisons import best_workarounds, compare_models_and_controls
from subq_jax.evaluation.controls import Control, answer_with, check_workarounds, controls_of
from subq_jax.evaluation.resuming import finished, group_of, with_group_size
from subq_jax.evaluation.summary import depth_table, effective_lengths, score_table
from subq_jax.files import append_rows, read_rows, write_rows, write_text
from subq_jax.reporting.evaluation import write_evaluation, write_evaluation_plots
from subq_jax.reporting.results import arm_name
from subq_jax.reporting.versions import versions
from subq_jax.tasks import CODE, Haystack, Request, Task, chances
from subq_jax.tasks.code import source_documents
from subq_jax.tasks.haystack import TextTokenizer
from subq_jax.training.workdir import only_process_in

_RUNS = flags.DEFINE_list("runs", [], "Folders of training runs.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for samples, scores and report.")
_NO_CONTEXT = flags.DEFINE_bool("no_context", False, "Also ask every question without its context.")
_WORKAROUNDS = flags.DEFINE_list("workarounds", [], "Also answer by these: retrieval, vote, notes.")
_CHUNK_SIZES = flags.DEFINE_list("chunk_sizes", ["256", "512", "1024"], "Tokens of a chunk, for --workarounds.")
_AGAINST = flags.DEFINE_string("against", "dense", "Mechanism that the others are compared with.")
_MARGIN = flags.DEFINE_float("margin", 0.02, "Difference of scores that counts as equal.")
_RECORDED = ("runs", "tasks", "lengths", "haystacks", "questions", "seed", "corpus", "corpus_suffix", "no_context",
             "workarounds", "chunk_sizes", "against", "margin")
_RESUMED = "Versions and command are those of the last call; answers that were there before it may be of others."


def asked(tasks: list[Task], lengths: list[int]) -> Iterator[tuple[Task, int, int]]:
    """(task, length, index of the haystack) of everything that is asked."""
    return itertools.product(tasks, lengths, range(task_flags.HAYSTACKS.value))


def asked_of(length: int) -> list[Control]:
    """How every question of a length is answered."""
    return controls_of(length, no_context=_NO_CONTEXT.value, ways=_WORKAROUNDS.value,
                       chunk_sizes=task_flags.integers(_CHUNK_SIZES))


def trained_model(folder: str) -> TrainedModel:
    """The model of a folder of --runs; ValueError where no finished run is."""
    try:
        return TrainedModel(Path(folder).absolute())
    except (OSError, ValueError) as error:
        message = f"--runs must be folders of finished runs of experiments.train on text, got {folder}: {error}"
        raise ValueError(message) from error


def haystack_choice(path: Path, corpus: tuple[str, ...], tasks: list[Task], *, enforced: bool) -> dict:
    """What chooses the haystacks, flags and checksums; where `enforced`, ValueError if `path` stores another choice.

    Samples of other haystacks would pass for answers to the same prompts. The corpus is known by what it holds, not by
    where it lies. Tasks about code that have no corpus take the standard library, which differs from one Python to the
    next: its checksum is added when they are asked first.
    """
    chosen = {name: flags.FLAGS[name].value for name in ("seed", "questions", "corpus", "corpus_suffix")}
    checksums = {"corpus_sha256": checksum(corpus)}
    if not corpus and any(task.name in CODE for task in tasks):
        checksums["library_sha256"] = checksum(source_documents())
    if not (enforced and path.exists()):
        return chosen | checksums
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(stored, dict):
            raise ValueError(f"it must be a JSON object, got {stored!r}")
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}; mend it, or choose another workdir") from error
    for name in ("seed", "questions"):
        if stored.get(name) != chosen[name]:
            raise ValueError(f"--{name} must be {stored.get(name)!r}, as the samples in {path.parent} have it, "
                             f"got {chosen[name]!r}; choose another workdir")
    for name, value in checksums.items():
        if stored.get(name, value) != value:
            source = "the standard library" if name == "library_sha256" else repr(chosen["corpus"])
            raise ValueError(f"--corpus must hold the files that the samples in {path.parent} are about, of "
                             f"{stored.get('corpus')!r} then, got others, of {source}; choose another workdir")
    return stored | chosen | checksums


def checksum(documents: tuple[str, ...]) -> str:
    return hashlib.sha256("\0".join(documents).encode()).hexdigest()


def shared_tokenizer(models: list[TrainedModel], of_samples: str | None, workdir: Path) -> str:
    """The checksum of the runs' tokenizer; ValueError where there are several, or the samples have another.

    Haystacks are made of tokens: under another tokenizer the same numbers stand for other prompts.
    """
    tokenizer = models[0].tokenizer_sha256
    for folder, model in zip(_RUNS.value, models, strict=True):
        if model.tokenizer_sha256 != tokenizer:
            raise ValueError(f"--runs must have the same tokenizer to be asked about the same haystacks, got another "
                             f"in {folder} than in {_RUNS.value[0]}; choose a workdir for each")
    if of_samples not in (None, tokenizer):
        raise ValueError(f"--runs must have the tokenizer that the samples in {workdir} were made with, got another in "
                         f"{_RUNS.value[0]}; choose another workdir")
    return tokenizer


def check_arms(models: list[TrainedModel]) -> None:
    """Raises ValueError for two runs that no sample could tell apart."""
    runs = {}
    for folder, model in zip(_RUNS.value, models, strict=True):
        first = runs.setdefault(tuple(model.arm.items()), folder)
        if first != folder:
            raise ValueError(f"--runs must differ in mechanism, budget or seed, got {first} and {folder}: {model.arm}")


def check_same_runs(models: list[TrainedModel], rows: list[dict], workdir: Path) -> None:
    """Raises ValueError for a run whose arm another run has in the samples: its answers would never be asked for."""
    for folder, model in zip(_RUNS.value, models, strict=True):
        of_arm = {row.get("run", model.run) for row in rows if model.arm.items() <= row.items()}
        if of_arm - {model.run}:
            raise ValueError(f"--runs must differ in mechanism, budget or seed from other runs with samples in "
                             f"{workdir}, got {folder}: {model.arm}; choose another workdir")


def check_against(models: list[TrainedModel], rows: list[dict]) -> None:
    """Raises ValueError where --against was given and is none of several arms, asked now or before."""
    arms = {(row["mechanism"], row.get("budget")) for row in [*rows, *(model.arm for model in models)]}
    mechanisms = sorted({mechanism for mechanism, _ in arms})
    if _AGAINST.present and len(arms) > 1 and _AGAINST.value not in mechanisms:
        raise ValueError(f"--against must be a mechanism of the runs, of {mechanisms}, got {_AGAINST.value!r}")


def haystack_of(task: Task, length: int, index: int, tokenizer: TextTokenizer, corpus: tuple[str, ...]) -> Haystack:
    """A haystack; ValueError, naming the task and the length, where it cannot be built."""
    request = Request(length, tokenizer, task_flags.SEED.value, index, task_flags.QUESTIONS.value, corpus)
    try:
        return task.build(request)
    except ValueError as error:
        raise ValueError(f"haystack {index} of {task.name} at {length} tokens cannot be built: {error}") from error


def evaluate_runs(
    models: list[TrainedModel], tasks: list[Task], lengths: list[int], corpus: tuple[str, ...], samples: Path,
    console: Console
) -> None:
    """Appends what is not yet there to `samples`; ValueError, before anything is asked, where no haystack can be built.
    """
    done = set(map(group_of, read_rows(samples)))
    missing = []
    for task, length, index in asked(tasks, lengths):
        cell = {"task": task.name, "length": length, "haystack": index}
        of_models = [(model, [control for control in asked_of(length)
                              if group_of(cell | model.arm | {"control": control.name}) not in done])
                     for model in models]
        missing.append((task, length, index, [(model, controls) for model, controls in of_models if controls]))
    build = functools.partial(haystack_of, tokenizer=models[0].tokenizer, corpus=corpus)
    for task, length in {(task.name, length): (task, length) for task, length, _, here in missing if here}.values():
        build(task, length, 0)
    with samples.open("a", encoding="utf-8") as file:
        for task, length, index, here in track(missing, "haystacks", console=console):
            haystack = build(task, length, index) if here else None
            for model, controls in here:
                known = {"run": model.run, "template": "seen" if task.name in model.taught else "unseen"}
                for rows in answer_with(model.answering, task, haystack, controls):
                    append_rows(file, with_group_size([row | model.arm | known for row in rows]))


def report(samples: list[dict], workdir: Path, console: Console) -> None:
    """Writes tables, plots and the page, and prints the scores."""
    samples = samples + best_workarounds(samples)
    scores = score_table(samples, chance=chances({row["task"] for row in samples}))
    lengths = effective_lengths(scores)
    located = [row for row in samples if row["depth"] is not None]
    depths = depth_table(located) if located else []
    compared = compare_models_and_controls(samples, against=_AGAINST.value, margin=_MARGIN.value)
    write_rows(workdir / "scores.jsonl", scores)
    write_evaluation(workdir / "report.html", scores, title="Long-context evaluation", lengths=lengths,
                     compared=compared, depths=depths, config={name: flags.FLAGS[name].value for name in _RECORDED},
                     versions=versions(), notes=[_RESUMED])
    write_evaluation_plots(workdir / "plots", scores, lengths=lengths, depths=depths)
    show(scores, console)
    arms = sorted({(row["mechanism"], row["budget"] or 0) for row in samples})
    if len(arms) > 1 and [mechanism for mechanism, _ in arms].count(_AGAINST.value) != 1:
        names = ", ".join(arm_name(mechanism, budget or None) for mechanism, budget in arms)
        console.print("Models are not compared with each other: --against must be a mechanism with one budget here, "
                      f"got {_AGAINST.value}; there are {names}", soft_wrap=True, markup=False)
    console.print(f"Report: {workdir / 'report.html'}", soft_wrap=True)


def show(scores: list[dict], console: Console) -> None:
    """Prints a table of each task; prices and means by template are in the report."""
    for task, rows in itertools.groupby(scores, lambda row: row["task"]):
        rows = list(rows)
        chance = rows[0]["chance"]
        title = (task or "all tasks") + ("" if chance is None else f" (guessing: {chance:.3f})")
        table = Table(title=title, title_justify="left")
        for column in ("length", "arm", "score", "95% interval", "samples"):
            table.add_column(column, overflow="fold", no_wrap=column != "arm")
        for row in rows:
            interval = "-" if row["low"] is None else f"{row['low']:.3f}..{row['high']:.3f}"
            table.add_row(str(row["length"]), arm_name(row["mechanism"], row["budget"], row["control"]),
                          f"{row['mean']:.3f}", interval, str(row["samples"]))
        console.print(table)


def main(argv: list[str]) -> None:
    """Runs the evaluation and writes its results."""
    refuse_arguments(argv)
    absl_logging.set_verbosity(absl_logging.WARNING)
    console, workdir = Console(), Path(_WORKDIR.value).absolute()
    try:
        tasks, lengths = task_flags.asked_tasks(), task_flags.integers(task_flags.LENGTHS)
        check_workarounds(_WORKAROUNDS.value, task_flags.integers(_CHUNK_SIZES))
        task_flags.distinct(_RUNS)
        if _AGAINST.value not in MECHANISMS:
            raise ValueError(f"--against must be one of {MECHANISMS}, got {_AGAINST.value!r}")
        if not 0 < _MARGIN.value <= 1:
            raise ValueError(f"--margin must be in (0, 1], got {_MARGIN.value:g}")
        with only_process_in(workdir):
            corpus = task_flags.corpus()
            samples = workdir / "samples.jsonl"
            rows = finished(read_rows(samples))
            chosen = haystack_choice(workdir / "haystacks.json", corpus, tasks, enforced=bool(rows))
            models = [trained_model(folder) for folder in _RUNS.value]
            check_arms(models)
            check_same_runs(models, rows, workdir)
            check_against(models, rows)
            chosen["tokenizer_sha256"] = shared_tokenizer(models, chosen.get("tokenizer_sha256"), workdir)
            write_text(workdir / "haystacks.json", json.dumps(chosen) + "\n")
            write_rows(samples, rows)  # without what was cut short
            try:
                evaluate_runs(models, tasks, lengths, corpus, samples, console)
            except ValueError:  # such as a later haystack that cannot be built: what there is has its worth
                if rows := read_rows(samples):
                    report(rows, workdir, console)
                raise
            report(read_rows(samples), workdir, console)
    except (OSError, ValueError) as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None


if __name__ == "__main__":
    flags.mark_flags_as_required(["workdir"])
    run(main)
