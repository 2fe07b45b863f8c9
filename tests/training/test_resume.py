"""A run that is killed and started again ends in the same bits as one that was left alone."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_config as config_file
from flax import nnx

from subq_jax.training import train

ROOT = Path(__file__).resolve().parents[2]
# A damaged file cuts Orbax's concurrent readers short, and they complain when they are collected.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

CLOCK_FIELDS = {"tokens_per_second", "mfu"}


def start(workdir):
    command = [sys.executable, "-m", "experiments.train", f"--config={config_file.__file__}"]
    command += [f"--workdir={workdir}", "--noprogress"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def rows_without_clock(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [{name: value for name, value in row.items() if name not in CLOCK_FIELDS} for row in rows]


def arrays(model):
    return [np.asarray(x) for x in jax.tree.leaves(nnx.state(model))]


def same_bits(first, second):
    return all(np.array_equal(a, b) for a, b in zip(arrays(first), arrays(second), strict=True))


def test_killed_run_continues_to_the_same_bits(tmp_path, tiny_config):
    expected = train(tiny_config, tmp_path / "whole", show_progress=False)

    killed = start(tmp_path / "killed")
    metrics = tmp_path / "killed" / "metrics.jsonl"
    deadline = time.monotonic() + 240
    # By then it is past the dense steps, the curriculum's first stage, an evaluation and the checkpoint of step 20.
    while not (metrics.exists() and len(metrics.read_text().splitlines()) >= 24):
        assert killed.poll() is None, f"the run ended too early to be killed: {killed.stderr.read()}"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    killed.stderr.close()
    assert not (tmp_path / "killed" / "checkpoints" / "60").exists()

    resumed = start(tmp_path / "killed")
    _, stderr = resumed.communicate(timeout=240)
    assert resumed.returncode == 0, stderr
    assert "resuming at step" in stderr

    assert rows_without_clock(tmp_path / "killed") == rows_without_clock(tmp_path / "whole")
    finished = train(tiny_config, tmp_path / "killed", show_progress=False)  # only restores: the run is complete
    assert same_bits(finished.model, expected.model)
    assert [row["step"] for row in finished.metrics if "loss" in row] == list(range(1, 61))


@pytest.fixture(scope="module")
def short_config():
    """Two checkpoints and one compilation."""
    config = config_file.get_config()
    config.data.curriculum = ()
    config.model.mechanism = "dense"
    config.training.steps = 10
    config.training.dense_steps = config.training.eval_every = 0
    return config


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory, short_config):
    workdir = tmp_path_factory.mktemp("finished")
    return workdir, train(short_config, workdir, show_progress=False).model


@pytest.mark.parametrize("damage", ["truncated", "other bits than saved", "missing data state"])
def test_damaged_checkpoint_falls_back_to_the_previous_one(tmp_path, short_config, finished_run, caplog, damage):
    finished, expected = finished_run
    workdir = shutil.copytree(finished, tmp_path / "damaged")
    newest = workdir / "checkpoints" / "10"
    if damage == "truncated":
        for path in (newest / "state").rglob("d/*"):  # which of them hold the arrays is Orbax's affair
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "other bits than saved":  # what a silently flipped bit looks like: the checksum does not fit
        saved = json.loads((newest / "data" / "metadata").read_text())
        saved["checksum"][0] ^= 1
        (newest / "data" / "metadata").write_text(json.dumps(saved))
    else:
        (newest / "data" / "metadata").unlink()

    again = train(short_config, workdir, show_progress=False)

    assert "checkpoint of step 10 cannot be read" in caplog.text
    assert "falling back to the checkpoint of step 5" in caplog.text
    assert same_bits(again.model, expected)
    assert (workdir / "checkpoints_unreadable" / "10").is_dir()
    assert (workdir / "checkpoints" / "10").is_dir()
    assert [row["step"] for row in again.metrics if "loss" in row] == list(range(1, 11))


def test_no_readable_checkpoint_is_an_error_that_moves_nothing(tmp_path, short_config, finished_run):
    workdir = shutil.copytree(finished_run[0], tmp_path / "damaged")
    broken = [workdir / "checkpoints" / step / "data" / "metadata" for step in ("5", "10")]
    for path in broken:
        path.write_text("{")
    with pytest.raises(ValueError, match="none of the checkpoints in .* can be read: .*10.*5"):
        train(short_config, workdir, show_progress=False)
    assert [path.read_text() for path in broken] == ["{", "{"]


def test_workdir_of_another_config_is_refused(tmp_path, finished_run, tiny_config):
    workdir = shutil.copytree(finished_run[0], tmp_path / "other")
    stored = (workdir / "config.json").read_text()
    tiny_config.model.width = 24
    with pytest.raises(
        ValueError, match="belongs to another config: .*model.width is 16 there, 24 here; .* and 2 more"
    ):
        train(tiny_config, workdir, show_progress=False)
    assert (workdir / "config.json").read_text() == stored


def test_non_finite_loss_names_the_step_and_keeps_the_last_good_checkpoint(tmp_path, tiny_config):
    tiny_config.training.checkpoint_every = 1
    tiny_config.data.curriculum = ()
    tiny_config.model.mechanism = "dense"
    # The first update is finite but beyond what the second forward pass can hold.
    tiny_config.optimizer.learning_rate = 1e38
    with pytest.raises(FloatingPointError, match=r"loss is (nan|inf).* at step 2; the checkpoint of step 1 is kept"):
        train(tiny_config, tmp_path, show_progress=False)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.isdecimal()] == ["1"]
    assert [row["step"] for row in rows_without_clock(tmp_path)] == [1]


def test_parameters_that_a_step_made_infinite_are_not_saved(tmp_path, tiny_config):
    """Loss and gradient are finite; only the update overflows."""
    tiny_config.training.checkpoint_every = tiny_config.training.steps = 1
    tiny_config.training.dense_steps = tiny_config.optimizer.warmup_steps = 0
    tiny_config.data.curriculum = ()
    tiny_config.model.mechanism = "dense"
    tiny_config.optimizer.learning_rate = 1e39
    with pytest.raises(FloatingPointError, match="the state after it not finite at step 1; no checkpoint was saved"):
        train(tiny_config, tmp_path, show_progress=False)
    assert not any(path.name.isdecimal() for path in (tmp_path / "checkpoints").iterdir())
