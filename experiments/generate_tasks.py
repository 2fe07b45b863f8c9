"""Long-context prompts for any model: `python -m experiments.generate_tasks --tokenizer=FOLDER --workdir=prompts`.

Writes the prompts and references of `subq_jax.tasks` without a model, as RULER lays them out, in
`<workdir>/<length>/<task>/validation.jsonl`: a question a row, with RULER's fields and ours. A prompt is `input` and
then `answer_prefix`. The tokenizer is a Hugging Face `tokenizer.json`, or a model's folder with one, on this machine;
nothing is downloaded. A file is there when all of its rows are. `length` counts the tokens of the prompt's pieces and
the room for the answer (the task's `answer_tokens`); special tokens that a model wants around its prompt come on top.
"""

from collections.abc import Iterator
from pathlib import Path

from absl import app, flags
from rich.progress import track

from experiments.program import run
from subq_jax.data.hugging_face import HuggingFaceTokenizer
from subq_jax.data.tokenizers import ByteTokenizer
from subq_jax.files import write_rows
from subq_jax.tasks import Request, Task, find_task
from subq_jax.tasks.code import source_documents
from subq_jax.tasks.haystack import TextTokenizer

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for the prompts.")
_TOKENIZER = flags.DEFINE_string("tokenizer", None, "A tokenizer.json or a folder with one; 'bytes' for bytes.")
_TASKS = flags.DEFINE_list("tasks", ["niah_single_1", "vt", "fwe"], "Names of `subq_jax.tasks.TASKS`.")
_LENGTHS = flags.DEFINE_list("lengths", ["4096", "8192"], "Tokens of a prompt with its answer.")
_HAYSTACKS = flags.DEFINE_integer("haystacks", 10, "Haystacks of each task and length.", lower_bound=1)
_QUESTIONS = flags.DEFINE_integer("questions", 1, "Questions about a haystack, where it has as many.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Chooses the haystacks.", lower_bound=0)
_CORPUS = flags.DEFINE_string("corpus", "", "Folder of text for haystacks; empty for none.")
_SUFFIX = flags.DEFINE_string("corpus_suffix", "", "Of the corpus only files whose names end so.")


def rows(task: Task, length: int, tokenizer: TextTokenizer, corpus: tuple[str, ...]) -> Iterator[dict]:
    """The rows of a task at a length, haystack by haystack."""
    for index in track(range(_HAYSTACKS.value), f"{task.name} {length}"):
        yield from task.build(Request(length, tokenizer, _SEED.value, index, _QUESTIONS.value, corpus)).rows()


def main(argv: list[str]) -> None:
    """Writes a file for each task and length."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    if any(not x.isdigit() for x in _LENGTHS.value):
        raise app.UsageError(f"--lengths must be integers, got {_LENGTHS.value}")
    try:
        tasks = [find_task(name) for name in _TASKS.value]
        tokenizer = ByteTokenizer() if _TOKENIZER.value == "bytes" else HuggingFaceTokenizer(_TOKENIZER.value)
        corpus = source_documents(_CORPUS.value, _SUFFIX.value) if _CORPUS.value else ()
        for length in map(int, _LENGTHS.value):
            for task in tasks:
                path = Path(_WORKDIR.value) / str(length) / task.name / "validation.jsonl"
                write_rows(path, rows(task, length, tokenizer, corpus))
        print(f"Prompts: {Path(_WORKDIR.value).absolute()}")
    except (OSError, ValueError) as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None


if __name__ == "__main__":
    flags.mark_flags_as_required(["workdir", "tokenizer"])
    run(main)
