"""Does a model trained on text use what stands far back? `python -m experiments.far_context --workdir=runs/x`.

Takes a trained run (a workdir of `experiments.train`, or `cells/<name>/training` of a sweep) and scores held-out text
of the given length: by position, and on tokens that end a run of `--ngram` tokens whose last occurrence in the document
is nearer or farther than `--window`. Prints the parts and writes them (`far_context.jsonl` in the run's folder). The
same flags give the same tokens in every part for every run of the same data, so that arms can be compared. A run that
is not finished is trained to its end first.
"""

from pathlib import Path

from absl import flags
from absl import logging as absl_logging
from rich.console import Console
from rich.table import Table

from experiments.program import refuse_arguments, run
from subq_jax.data import make_eval_batches
from subq_jax.evaluation.far_context import far_context
from subq_jax.files import write_rows
from subq_jax.training import train
from subq_jax.training.workdir import stored_config

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a training run on text.")
_LENGTH = flags.DEFINE_integer("length", 8192, "Tokens of a sequence.", lower_bound=2)
_BATCHES = flags.DEFINE_integer("num_batches", 16, "Batches, where the held-out text has as many.", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch_size", 4, "Sequences of a batch.", lower_bound=1)
_WINDOW = flags.DEFINE_integer("window", 512, "Farthest distance that counts as near, in tokens.", lower_bound=1)
_NGRAM = flags.DEFINE_integer("ngram", 8, "Tokens of a run that repeats; a tokenizer of words needs fewer.",
                              lower_bound=1)


def main(argv: list[str]) -> None:
    """Scores the run and writes its results."""
    refuse_arguments(argv)
    absl_logging.set_verbosity(absl_logging.WARNING)
    workdir = Path(_WORKDIR.value).absolute()
    try:
        config = stored_config(workdir)
        if config.data.task != "text":
            raise ValueError(f"{workdir} must be a run on text, got data.task={config.data.task!r}")
        model = train(config, workdir, show_progress=False).model
        batches = make_eval_batches(
            config.data, seed=config.seed, block_size=model.config.block_size, length=_LENGTH.value,
            num_batches=_BATCHES.value, batch_size=_BATCH.value)
        parts = far_context(model, batches, window=_WINDOW.value, ngram=_NGRAM.value)
    except (OSError, ValueError) as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None
    for part in parts:  # powers of two reach further than the text
        part["last"] = part["last"] and min(part["last"], _LENGTH.value + 1)
    asked = {"length": _LENGTH.value, "window": _WINDOW.value, "ngram": _NGRAM.value}
    write_rows(workdir / "far_context.jsonl", [asked | part for part in parts])
    show(parts)


def show(parts: list[dict]) -> None:
    """Prints the losses as a table."""
    names = {"none": "repeats nothing", "near": f"repeats within {_WINDOW.value}",
             "far": f"repeats beyond {_WINDOW.value}"}
    table = Table("tokens", "number", "nats a token", "bits per byte")
    for part in parts:
        name = names[part["antecedent"]] if part["antecedent"] else f"read {part['first']} to {part['last'] - 1}"
        bits = "-" if part["bits_per_byte"] is None else f"{part['bits_per_byte']:.3f}"
        table.add_row(name, str(part["num_tokens"]), f"{part['loss']:.3f}", bits)
    Console().print(table)


if __name__ == "__main__":
    flags.mark_flags_as_required(["workdir"])
    run(main)
