"""Long-context prompts for any model: `python -m experiments.generate_tasks --tokenizer=FOLDER --workdir=prompts`.

Writes the prompts and references of `subq_jax.tasks` without a model, as RULER lays them out, in
`<workdir>/<length>/<task>/validation.jsonl`: a question a row, with RULER's fields and ours. A prompt is `input` and
then `answer_prefix`. The tokenizer is a Hugging Face `tokenizer.json`, or a model's folder with one, on this machine;
nothing is downloaded. A file is there when all of its rows are. `length` counts the tokens of the prompt's pieces and
the room for the answer (the task's `answer_tokens`); special tokens that a model wants around its prompt come on top.
"""

from collections.abc import Iterator
from pathlib import Path

from absl import flags
from rich.progress import track

from experiments import task_flags
from experiments.program import refuse_arguments, run
from subq_jax.data.hugging_face import HuggingFaceTokenizer
from subq_jax.data.tokenizers import ByteTokenizer
from subq_jax.files import write_rows
from subq_jax.tasks import Request, Task
from subq_jax.tasks.haystack import TextTokenizer

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for the prompts.")
_TOKENIZER = flags.DEFINE_string("tokenizer", None, "A tokenizer.json or a folder with one; 'bytes' for bytes.")


def rows(task: Task, length: int, tokenizer: TextTokenizer, corpus: tuple[str, ...]) -> Iterator[dict]:
    """The rows of a task at a length, haystack by haystack."""
    for index in track(range(task_flags.HAYSTACKS.value), f"{task.name} {length}"):
        request = Request(length, tokenizer, task_flags.SEED.value, index, task_flags.QUESTIONS.value, corpus)
        yield from task.build(request).rows()


def main(argv: list[str]) -> None:
    """Writes a file for each task and length."""
    refuse_arguments(argv)
    try:
        tasks, lengths = task_flags.asked_tasks(), task_flags.integers(task_flags.LENGTHS)
        tokenizer = ByteTokenizer() if _TOKENIZER.value == "bytes" else HuggingFaceTokenizer(_TOKENIZER.value)
        corpus = task_flags.corpus()
        for length in lengths:
            for task in tasks:
                path = Path(_WORKDIR.value) / str(length) / task.name / "validation.jsonl"
                write_rows(path, rows(task, length, tokenizer, corpus))
        print(f"Prompts: {Path(_WORKDIR.value).absolute()}")
    except (OSError, ValueError) as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None


if __name__ == "__main__":
    flags.mark_flags_as_required(["workdir", "tokenizer"])
    run(main)
