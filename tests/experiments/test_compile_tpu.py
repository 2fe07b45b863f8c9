"""The program that compiles for TPUs names what did not compile, and its exit status says so."""

import subprocess
import sys

import pytest
from programs import ROOT

from experiments.tpu_programs import TOPOLOGIES, why_not
from subq_jax.files import read_rows

pytestmark = [pytest.mark.tpu_compile, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]


def compile_tpu(output, *flags):
    command = [sys.executable, "-m", "experiments.compile_tpu", "--passes=decode", f"--output={output}", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    return done, read_rows(output)


@pytest.mark.parametrize("chip", ["v5e", *(pytest.param(chip, marks=pytest.mark.slow) for chip in TOPOLOGIES
                                           if chip != "v5e")])
def test_what_compiles_is_measured(tmp_path, chip):
    done, (row,) = compile_tpu(tmp_path / "new" / "rows.jsonl", f"--chips={chip}", "--lengths=8192", "--heads=16/1")
    assert done.returncode == 0, done.stderr
    assert row["topology"] == TOPOLOGIES[chip] and row["temp"] > 0
    assert set(row["vmem"]) == {"attend_cache"}


def test_what_does_not_compile_is_named_after_the_rest(tmp_path):
    """A group of 12 heads runs as `xla`, without a kernel; 2^26 tokens are more than the chip's memory."""
    done, rows = compile_tpu(tmp_path / "rows.jsonl", "--chips=v5e", "--lengths=8192,67108864", "--heads=12/1,16/1")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    few, good, few_again, large = rows
    assert all("query heads of a KV head must divide 128, got 12" in row["error"] for row in (few, few_again))
    assert "RESOURCE_EXHAUSTED" in large["error"] and "error" not in good
    assert done.stderr.strip().splitlines()[-1] == (
        "did not compile: v5e decode at 8192 tokens, 12/1 heads; v5e decode at 67108864 tokens, 12/1 heads; "
        "v5e decode at 67108864 tokens, 16/1 heads")


@pytest.mark.parametrize(("flags", "found"), [
    (("--heads=10/4",), "10/4"), (("--roofline", "--heads=16/1,12/1"), "12/1"),
    (("--roofline", "--heads=256/1"), "256/1")])
def test_heads_that_make_no_groups_are_refused(tmp_path, flags, found):
    done, rows = compile_tpu(tmp_path / "rows.jsonl", "--chips=v5e", "--lengths=8192", *flags)
    assert done.returncode != 0 and not rows and "Traceback" not in done.stderr
    said = done.stdout + done.stderr
    assert "--heads must be query heads / KV heads in whole groups" in said and f"got {found}" in said
