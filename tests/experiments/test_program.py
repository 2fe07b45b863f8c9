"""A wrong `--config` ends in one line that says what is wrong."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("program", ["train", "sweep"])
@pytest.mark.parametrize(("flags", "message"), [
    (["--config=nope.py"], "--config=nope.py: .*No such file or directory"),
    (["--config=configs/recall.py:nope"], "--config=configs/recall.py:nope: .*must be 'smoke' or nothing, got 'nope'"),
    (["--config=configs/base.py"], "--config=configs/base.py: .*has no attribute 'get_config'"),
    (["--config=configs/readme_sweep.py", "--config.model.widht=3"], "--config.model.widht=3: .*widht"),
    (["--config=configs/readme_sweep.py", "--config.model.width=x"], "--config.model.width=x: .*width"),
])
def test_wrong_configs_are_named(tmp_path, program, flags, message):
    command = [sys.executable, "-m", f"experiments.{program}", f"--workdir={tmp_path / 'run'}", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert re.search(message, done.stderr.strip().splitlines()[-1])
    assert not (tmp_path / "run").exists()
