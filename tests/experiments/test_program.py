"""A wrong flag ends in one line that says what is wrong."""

import importlib.util
import re

import pytest
from programs import run


@pytest.mark.parametrize("program", ["train", "sweep"])
@pytest.mark.parametrize(("flags", "message"), [
    (["--config=nope.py"], "--config=nope.py: .*No such file or directory"),
    (["--config=configs/recall.py:nope"], "--config=configs/recall.py:nope: .*must be 'smoke' or nothing, got 'nope'"),
    (["--config=configs/base.py"], "--config=configs/base.py: .*has no attribute 'get_config'"),
    (["--config=configs/readme_sweep.py", "--config.model.widht=3"], "--config.model.widht=3: .*widht"),
    (["--config=configs/readme_sweep.py", "--config.model.width=x"], "--config.model.width=x: .*width"),
])
def test_wrong_configs_are_named(tmp_path, program, flags, message):
    done = run(program, f"--workdir={tmp_path / 'run'}", *flags)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert re.search(message, done.stderr.strip().splitlines()[-1])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("program", "flags", "message"), [
    ("evaluate", ["--workdir=w", "--task=vt"], "Unknown command line flag 'task'. Did you mean: tasks"),
    ("evaluate", [], "flag --workdir=None"),
    ("evaluate", ["--workdir=w", "--runs", "a", "b"], "unexpected arguments ['b']: values of a list are separated by"),
    ("generate_tasks", ["--workdir=w", "--tokenizer=bytes", "--tasks", "vt", "cwe"], "unexpected arguments ['cwe']: "),
    ("far_context", ["--workdir=w", "x"], "unexpected arguments ['x']: "),
    ("time_tasks", ["x"], "unexpected arguments ['x']: "), ("time_tasks", ["--tasks=qa_1"], "must be some of"),
    ("compile_tpu", ["--roofline", "--heads=16"], "--heads pairs such as 16/1, got"),
    ("compile_tpu", ["--roofline", "--passes=grad"], "--passes must be of"),
    ("compile_tpu", ["--roofline", "--chips=v5e:2x2"], "--chips must be of ('v5e', 'v5p', 'v6e', 'tpu7x'), got"),
])
def test_wrong_flags_are_named(program, flags, message):
    done = run(program, *flags)
    said = (done.stdout + done.stderr).strip().splitlines()[-1]
    assert done.returncode != 0 and message in said and not said.startswith(":")
    assert "Traceback" not in done.stderr


def test_more_than_flags_is_one_line():
    done = run("far_context", "--workdir=w", "x")
    assert len((done.stdout + done.stderr).splitlines()) == 1


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="lm_eval is installed")
def test_without_the_harness_its_extra_is_named():
    done = run("harness", "--model=subq_jax")
    assert done.returncode != 0 and 'pip install -e ".[harness]"' in done.stderr
    assert len(done.stderr.splitlines()) == 1
