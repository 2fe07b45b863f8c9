"""How cheaply can a trained router's choice be found? `python -m experiments.search_choice --workdir=runs/x`.

Takes a trained run with a router (a workdir of `experiments.train`, or `cells/<name>/training` of a sweep), reads
held-out sequences of the given length once, and looks for the same sampled queries through every tree and every sketch
of the grids. Prints and writes (`search.jsonl` in the run's folder) for each the share of flat's blocks that it finds,
the same weighted by the attention that the layer pays them, how often the choice is certain, and its cost beside
flat's. Sketches are fitted to other held-out sequences. A run that is not finished is trained to its end first.
"""

from pathlib import Path

from absl import app, flags
from absl import logging as absl_logging
from rich.console import Console
from rich.table import Table

from experiments.program import refuse_arguments, run
from subq_jax.evaluation import SketchSearch, TreeSearch, search_statistics
from subq_jax.evaluation.routing import held_out_tokens
from subq_jax.files import write_rows
from subq_jax.training import train
from subq_jax.training.workdir import stored_config

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a training run.")
_LENGTH = flags.DEFINE_integer("length", 131072, "Tokens of a sequence.", lower_bound=2)
_BATCH = flags.DEFINE_integer("batch_size", 1, "Sequences.", lower_bound=1)
_FANOUTS = flags.DEFINE_string("fanouts", "4;8;64;4,4", "Trees: fan-outs from the blocks up, trees apart by ;.")
_BEAMS = flags.DEFINE_list("beams", ["32", "128", "512"], "Nodes kept per level, each tried with each tree.")
_RANKS = flags.DEFINE_list("ranks", ["16", "32", "64"], "Channels of a sketch.")
_KEPT = flags.DEFINE_list("kept", ["64", "256"], "Blocks scored in full, each tried with each rank.")


def searches() -> list[TreeSearch | SketchSearch]:
    """The grids, raising UsageError for what are no numbers."""
    try:
        trees = [tuple(int(x) for x in tree.split(",")) for tree in filter(None, _FANOUTS.value.split(";"))]
        return [TreeSearch(fanouts, int(beam)) for fanouts in trees for beam in _BEAMS.value] + [
            SketchSearch(int(rank), int(kept)) for rank in _RANKS.value for kept in _KEPT.value]
    except ValueError as error:
        raise app.UsageError(f"--fanouts, --beams, --ranks and --kept must be integers: {error}") from None


def main(argv: list[str]) -> None:
    """Runs the search and writes its results."""
    refuse_arguments(argv)
    absl_logging.set_verbosity(absl_logging.WARNING)
    grid, workdir = searches(), Path(_WORKDIR.value).absolute()
    try:
        config = stored_config(workdir)
        model = train(config, workdir).model
        tokens = held_out_tokens(model, config.data, length=_LENGTH.value, batch_size=2 * _BATCH.value,
                                 seed=config.seed)
        half = len(tokens) // 2
        if not half:
            raise ValueError(f"held-out data must have 2 sequences of --length={_LENGTH.value}, got {len(tokens)}")
        found = search_statistics(model, tokens[:half], grid, fitted_to=tokens[half:])
    except (OSError, ValueError) as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None
    rows = [{"length": _LENGTH.value, "search": type(search).__name__} | search._asdict() | stats
            for search, stats in zip(grid, found, strict=True)]
    write_rows(workdir / "search.jsonl", rows)
    show(grid, found)


def show(grid: list, found: list[dict[str, float]]) -> None:
    """Prints what every search found as a table."""
    table = Table("search", "flat's blocks found", "by weight", "certified", "cost")
    for search, stats in zip(grid, found, strict=True):
        if isinstance(search, TreeSearch):
            name = f"tree {','.join(map(str, search.fanouts))} beam {search.beam_width}"
        else:
            name = f"sketch of {search.rank}, {search.kept} kept"
        table.add_row(name, *(f"{stats[key]:.3f}" for key in ("recall", "weight_recall", "certified", "cost")))
    Console().print(table)


if __name__ == "__main__":
    flags.mark_flags_as_required(["workdir"])
    run(main)
