"""Which fan-outs and beam find flat's choice? `python -m experiments.search_tree --workdir=runs/x --length=131072`.

Takes a trained run with a router (a workdir of `experiments.train`, or `cells/<name>/training` of a sweep), reads
held-out sequences of the given length once, and searches every tree of the grid for the same sampled queries. Prints
and writes (`trees.jsonl` in the run's folder) for each tree the share of flat's blocks that it finds, the same weighted
by the attention that the layer pays them, how often the choice is certain, and how many summaries a query scores
beside flat's. A run that is not finished is trained to its end first.
"""

import json
from pathlib import Path

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from experiments.program import run
from subq_jax.evaluation import tree_statistics
from subq_jax.evaluation.routing import held_out_tokens
from subq_jax.files import write_rows
from subq_jax.training import train

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a training run.")
_LENGTH = flags.DEFINE_integer("length", 131072, "Tokens of a sequence.", lower_bound=2)
_BATCH = flags.DEFINE_integer("batch_size", 1, "Sequences.", lower_bound=1)
_FANOUTS = flags.DEFINE_string("fanouts", "4;8;64;4,4", "Trees: fan-outs from the blocks up, trees apart by ;.")
_BEAMS = flags.DEFINE_list("beams", ["32", "128", "512", "2048"], "Nodes kept per level, each tried with each tree.")


def trees() -> list[tuple[tuple[int, ...], int]]:
    """The grid as (fanouts, beam_width), raising UsageError for what are no numbers."""
    try:
        every = [tuple(int(x) for x in tree.split(",")) for tree in _FANOUTS.value.split(";")]
        return [(fanouts, int(beam)) for fanouts in every for beam in _BEAMS.value]
    except ValueError as error:
        raise app.UsageError(f"--fanouts and --beams must be integers: {error}") from None


def main(argv: list[str]) -> None:
    """Runs the search and writes its results."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    absl_logging.set_verbosity(absl_logging.WARNING)
    grid, workdir = trees(), Path(_WORKDIR.value).absolute()
    try:
        config = ConfigDict(json.loads((workdir / "config.json").read_text(encoding="utf-8"))["config"])
        model = train(config, workdir).model
        tokens = held_out_tokens(model, config.data, length=_LENGTH.value, batch_size=_BATCH.value, seed=config.seed)
        found = tree_statistics(model, tokens, grid)
    except (OSError, ValueError) as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None
    rows = [{"length": _LENGTH.value, "fanouts": list(fanouts), "beam_width": beam} | stats
            for (fanouts, beam), stats in zip(grid, found, strict=True)]
    write_rows(workdir / "trees.jsonl", rows)
    show(rows)


def show(rows: list[dict]) -> None:
    """Prints the rows as a table."""
    table = Table("fan-outs", "beam", "flat's blocks found", "by weight", "certified", "summaries scored")
    for row in rows:
        table.add_row(", ".join(map(str, row["fanouts"])), str(row["beam_width"]),
                      *(f"{row[name]:.3f}" for name in ("recall", "weight_recall", "certified", "scored")))
    Console().print(table)


if __name__ == "__main__":
    flags.mark_flags_as_required(["workdir"])
    run(main)
