"""The flags by which programs choose what to ask: tasks, lengths, haystacks; and their values."""

from absl import flags

from subq_jax.tasks import Task, find_task
from subq_jax.tasks.code import source_documents

TASKS = flags.DEFINE_list("tasks", ["phonebook", "mqar", "counting"], "Names of `subq_jax.tasks.TASKS`.")
LENGTHS = flags.DEFINE_list("lengths", ["2048", "8192"], "Tokens of a prompt with its answer.")
HAYSTACKS = flags.DEFINE_integer("haystacks", 10, "Haystacks of each task and length.", lower_bound=1)
QUESTIONS = flags.DEFINE_integer("questions", 4, "Questions about a haystack, where it has as many.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Chooses the haystacks.", lower_bound=0)
CORPUS = flags.DEFINE_string("corpus", "", "Folder of text for haystacks; empty for none.")
SUFFIX = flags.DEFINE_string("corpus_suffix", "", "Of the corpus only files whose names end so.")


def distinct(flag: flags.FlagHolder, values: list | None = None) -> list:
    """The values of a list flag (or `values`, made of them); ValueError for none, and for one given twice."""
    values = flag.value if values is None else values
    if not values:
        raise ValueError(f"--{flag.name} must name at least one, got {flag.value}")
    if len(set(values)) < len(values):
        raise ValueError(f"--{flag.name} must be distinct, got {values}")
    return values


def integers(flag: flags.FlagHolder) -> list[int]:
    """The values of a list flag as distinct integers; ValueError for others."""
    if any(not (text.isascii() and text.isdigit()) for text in flag.value):
        raise ValueError(f"--{flag.name} must be integers, got {flag.value}")
    return distinct(flag, [int(text) for text in flag.value])


def asked_tasks() -> list[Task]:
    """The tasks of --tasks; ValueError for an unknown one."""
    return [find_task(name) for name in distinct(TASKS)]


def corpus() -> tuple[str, ...]:
    """The documents of --corpus, none without it; ValueError for a folder that has none."""
    if not CORPUS.value:
        return ()
    try:
        return source_documents(CORPUS.value, SUFFIX.value)
    except (OSError, ValueError) as error:
        ending = f" with files that end in {SUFFIX.value!r} (--corpus_suffix)" if SUFFIX.value else ""
        raise ValueError(f"--corpus must be a folder of text{ending}, got {CORPUS.value}: {error}") from error
