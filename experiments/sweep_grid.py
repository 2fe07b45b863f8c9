"""The cells of a sweep: what `config.sweep` asks for, multiplied out and checked."""

import dataclasses
import json
from typing import Any

from ml_collections import ConfigDict

from subq_jax.checks import check_integer, check_mapping
from subq_jax.data.config import RECALL_TASKS
from subq_jax.data.recall import check_eval_length
from subq_jax.reporting.results import Row
from subq_jax.training import check_config

_LISTS = ("mechanisms", "budgets", "learning_rates", "seeds", "eval_lengths")
_FIELDS = ("tasks", *_LISTS, "eval_batches", "eval_batch_size", "timing_repeats")


@dataclasses.dataclass(frozen=True)
class Cell:
    """A place in the grid. `config` is a complete training config; `evaluation` holds lengths, batches and sizes."""

    name: str
    task: str
    mechanism: str
    budget: int | None
    seed: int
    config: dict[str, Any]
    evaluation: dict[str, Any]

    def request(self) -> dict[str, Any]:
        """The cell as it reads back from JSON, where tuples are lists."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def place(self) -> Row:
        """What every row of the cell says about where it belongs."""
        return {"cell": self.name, "task": self.task, "mechanism": self.mechanism, "budget": self.budget,
                "seed": self.seed, "learning_rate": self.config["optimizer"]["learning_rate"]}


def grid(config: ConfigDict) -> list[Cell]:
    """The cells of `config`, seeds outermost; a task's overrides are merged into the base config.

    In this order a sweep cut short has every arm, and cells that differ in their seed alone, which share their compiled
    programs, do not compile them side by side.

    Every arm is run at each of `sweep.learning_rates`, or with none given at the config's own. With
    `sweep.timing_repeats=0` forward passes are not timed: cells side by side on one accelerator slow each other down.

    Raises:
      ValueError: for missing or unknown fields of `config.sweep`, and for everything wrong in a cell's config.
    """
    sweep = config.get("sweep", ConfigDict())
    check_mapping("sweep", sweep)
    if set(sweep) != set(_FIELDS):
        raise ValueError(f"config.sweep must have exactly the fields {_FIELDS}, got {tuple(sweep)}")
    check_mapping("sweep.tasks", sweep.tasks)
    for name in ("tasks", *_LISTS):
        if name in _LISTS and not isinstance(sweep[name], list | tuple):
            raise ValueError(f"sweep.{name} must be a tuple of values, got {sweep[name]!r}")
        if not sweep[name] and name != "learning_rates":
            raise ValueError(f"sweep.{name} must not be empty")
        values = list(sweep[name])
        if any(value in values[:i] for i, value in enumerate(values)):
            raise ValueError(f"sweep.{name} must not repeat itself, got {sweep[name]}")
    for name, floor in (("eval_batches", 1), ("eval_batch_size", 1), ("timing_repeats", 0)):
        check_integer(f"sweep.{name}", sweep[name], floor)
    for rate in sweep.learning_rates:
        if type(rate) not in (int, float):
            raise ValueError(f"sweep.learning_rates must be numbers, got {rate!r}")
    for length in sweep.eval_lengths:
        check_integer("sweep.eval_lengths", length)
    evaluation = {"lengths": list(sweep.eval_lengths), "num_batches": sweep.eval_batches,
                  "batch_size": sweep.eval_batch_size, "timing_repeats": sweep.timing_repeats}
    cells = []
    for seed in sweep.seeds:
        for task, overrides in sweep.tasks.items():
            for mechanism in sweep.mechanisms:
                for budget in (None,) if mechanism == "dense" else tuple(sweep.budgets):
                    for rate in tuple(sweep.learning_rates) or (None,):
                        cells.append(_cell(config, task, overrides, mechanism, budget, rate, seed, evaluation))
    names = [cell.name for cell in cells]
    if repeated := sorted(name for name in set(names) if names.count(name) > 1):
        raise ValueError(f"cells must have names of their own; values too close to tell apart make {repeated}")
    return cells


def _cell(config, task, overrides, mechanism, budget, rate, seed, evaluation) -> Cell:
    name = "-".join([task, str(mechanism), *([] if budget is None else [str(budget)]),
                     *([] if rate is None else [f"lr{rate:g}"]), f"seed{seed}"])
    if "/" in name:
        raise ValueError(f"cell {name}: a cell is a folder, and its name must not have a slash")
    check_mapping(f"sweep.tasks.{task}", overrides)
    own = ConfigDict({field: value for field, value in config.to_dict().items() if field != "sweep"})
    try:
        own.update(overrides.to_dict())
        own.seed = seed
        own.model.mechanism = mechanism
        if budget is not None:
            own.model.budget = budget
        if rate is not None:
            own.optimizer.learning_rate = rate
        run = check_config(own)
        if run.data.task in RECALL_TASKS:
            for length in evaluation["lengths"]:
                check_eval_length(run.data, length)
    except (AttributeError, TypeError, ValueError) as error:  # a ConfigDict refuses a value of another type
        raise ValueError(f"cell {name}: {error}") from error
    return Cell(name, task, mechanism, budget, seed, own.to_dict(), evaluation)
