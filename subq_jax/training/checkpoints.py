"""Checkpoints of a run: parameters, optimiser, step and the position in the data, saved and restored together."""

import json
import logging
import shutil
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from subq_jax.training.step import TrainState

logger = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints under `folder`, named by the number of steps taken; the newest `keep` stay.

    Saving is asynchronous: the state is copied to the host, and written while training goes on. A checkpoint appears
    under its name only once it is whole, so that a kill never leaves half of one.
    """

    def __init__(self, folder: Path, *, keep: int):
        self._folder = Path(folder).absolute()
        self._keep = keep
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(max_to_keep=self._keep)
        return ocp.CheckpointManager(self._folder, options=options, item_names=("state", "data"))

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self._manager.close()  # waits for what is being written

    @property
    def latest_step(self) -> int | None:
        """The newest step saved or being saved; None when there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState, data_state: dict[str, Any], *, step: int) -> None:
        """Starts saving the state after `step` steps; `data_state` is this process's iterator at that point."""
        processes = _gather(data_state)
        data = {"processes": processes, "checksum": _checksum(state, processes)}
        self._manager.save(
            step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data))
        )

    def restore_latest(self, abstract: TrainState) -> tuple[TrainState, dict[str, Any], int] | None:
        """Restores the newest checkpoint that can be read, saying so when it is not the newest one.

        Unreadable newer ones are moved to `<folder>_unreadable/`, since the run will come past their steps again.

        Args:
          abstract: shapes, types and shardings of the state, see `abstract_state`.

        Returns:
          the state, this process's iterator state and the step; None when there is no checkpoint.

        Raises:
          ValueError: when there are checkpoints and none can be read (all are left in place), or when they were
            written by another number of hosts.
        """
        failures: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                restored = self._manager.restore(
                    step,
                    args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore()),
                )
                processes = restored.data["processes"]
                if _checksum(restored.state, processes) != restored.data["checksum"]:
                    raise ValueError("it does not hold what was saved")
            except Exception as error:  # whatever a damaged file makes the readers below say
                failures[step] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                continue
            if len(processes) != jax.process_count():
                raise ValueError(f"the run was started on {len(processes)} hosts, got {jax.process_count()}")
            if failures:
                self._set_aside(failures, step)
            return restored.state, processes[jax.process_index()], step
        if failures:
            raise ValueError(f"none of the checkpoints in {self._folder} can be read: {failures}")
        return None

    def _set_aside(self, failures: dict[int, str], restored_step: int) -> None:
        aside = self._folder.with_name(self._folder.name + "_unreadable")
        for step, failure in failures.items():
            logger.warning("checkpoint of step %d cannot be read (%s); moved to %s", step, failure, aside)
        logger.warning("falling back to the checkpoint of step %d", restored_step)
        self._manager.close()
        if jax.process_index() == 0:
            aside.mkdir(exist_ok=True)
            for step in failures:
                target = aside / str(step)
                if target.exists():
                    shutil.rmtree(target)
                (self._folder / str(step)).rename(target)
        multihost_utils.sync_global_devices("unreadable checkpoints set aside")
        self._manager = self._open()


def _checksum(state: TrainState, processes: list[dict[str, Any]]) -> list[int]:
    """Checksums of the arrays and of the iterator states: the readers of the files do not notice flipped bits."""
    return [int(_sum_of_bits(state)), zlib.crc32(json.dumps(processes, sort_keys=True).encode())]


@jax.jit
def _sum_of_bits(state: TrainState) -> jax.Array:
    """The bits of all arrays summed as integers, which gives the same on any mesh."""
    total = jnp.zeros((), jnp.uint32)
    for x in jax.tree.leaves(state):
        bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
        total += jnp.sum(bits.astype(jnp.uint32))
    return total


def _gather(data_state: dict[str, Any]) -> list[dict[str, Any]]:
    """The iterator states of all processes, in their order; each process reads its own share of the data."""
    if jax.process_count() == 1:
        return [data_state]
    text = np.frombuffer(json.dumps(data_state).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.array(len(text))).ravel()
    padded = np.pad(text, (0, int(lengths.max()) - len(text)))
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)]
