"""The folder of a run: the config it belongs to, and the one process that works in it."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from subq_jax.files import exclusive, write_text

_SHOWN = 5
_MISSING = type("Missing", (), {"__repr__": lambda self: "missing"})()  # in place of a field's value


def claim_workdir(workdir: Path, config: ConfigDict, data_fingerprint: str, *, write: bool = True) -> None:
    """Stores the config in a fresh `workdir`, or checks that the one stored there is the same.

    Every field counts, `training.steps` included: the cosine depends on it, so a longer run is another run.

    Args:
      workdir: the folder; made when missing.
      config: the config as given.
      data_fingerprint: from `data_info`; a source folder that changed makes another run of the same config.
      write: False on all hosts but the first.

    Raises:
      ValueError: for a folder of another config, whose differing fields are named, those that both have first; for a
        damaged config.json; and for a folder that cannot be used.
    """
    path = workdir / "config.json"
    # Through JSON and back, so that tuples compare equal to the lists they are read as.
    ours = json.loads(json.dumps({"config": config.to_dict(), "data_fingerprint": data_fingerprint}))
    if path.exists():
        differing = [line for _, line in sorted(_differences(_read_config(path), ours), key=lambda found: found[0])]
        if differing:
            more = f" and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
            raise ValueError(
                f"workdir {workdir} belongs to another config: {'; '.join(differing[:_SHOWN])}{more}. "
                f"Choose another workdir, or give the config that it was started with"
            )
    elif write:
        with _usable(workdir):
            write_text(path, json.dumps(ours, indent=2, sort_keys=True) + "\n")


def stored_config(workdir: Path) -> ConfigDict:
    """The config that the run in `workdir` was started with; raises ValueError, saying what is missing, else."""
    path = workdir / "config.json"
    if not path.is_file():
        raise ValueError(f"workdir {workdir} must hold a run, got no file config.json there")
    stored = _read_config(path)
    if not isinstance(stored, dict) or not isinstance(stored.get("config"), dict):
        raise ValueError(f'{path} must be the config of a run, with a mapping "config", got {str(stored)[:80]}')
    return ConfigDict(stored["config"])


def finished_config(workdir: Path) -> ConfigDict:
    """The config of the run in `workdir` whose training is done; raises ValueError, saying what is missing, else."""
    config = stored_config(workdir)
    try:
        last = config.training.steps
    except AttributeError as error:
        raise ValueError(f"{workdir / 'config.json'} must be the config of a run, got one without {error}") from error
    if not (workdir / "checkpoints" / str(last)).is_dir():
        raise ValueError(f"workdir {workdir} must hold a finished run, got no checkpoint of its last step, {last}: "
                         "start its training again with the same command")
    return config


@contextlib.contextmanager
def only_process_in(workdir: Path) -> Iterator[None]:
    """Holds `workdir` for this process; the hold ends with the process, however it ends.

    Raises:
      ValueError: when another process works in the folder, or it cannot be used.
    """
    with contextlib.ExitStack() as stack:
        with _usable(workdir):
            try:
                stack.enter_context(exclusive(workdir, wait=False))
            except BlockingIOError:
                raise ValueError(f"workdir {workdir} is in use: another process works in it") from None
        yield


@contextlib.contextmanager
def _usable(workdir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(f"workdir {workdir} cannot be used: {error}") from error


def _read_config(path: Path) -> Any:
    try:
        with _usable(path.parent):
            return json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}. Mend it, or choose another workdir") from error


def _differences(stored: Any, given: Any, name: str = "") -> list[tuple[bool, str]]:
    """Fields that differ: whether one side has none, and what to say."""
    if isinstance(stored, dict) and isinstance(given, dict):
        names = sorted(set(stored) | set(given))
        return [
            line
            for key in names
            for line in _differences(
                stored.get(key, _MISSING), given.get(key, _MISSING), f"{name}.{key}" if name else key)
        ]
    if stored == given:
        return []
    return [(_MISSING in (stored, given), f"{name.removeprefix('config.')} is {stored!r} there, {given!r} here")]
