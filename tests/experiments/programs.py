"""Programs as their users run them: in processes of their own."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def program(name, always, workdir, *flags):
    """`python -m experiments.NAME` with the flags that it is always given and those of this run."""
    command = [sys.executable, "-m", f"experiments.{name}", f"--workdir={workdir}", *always, *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def refusal(done, workdir) -> str:
    """What a program said that ended without results; fails for one that did not."""
    assert done.returncode != 0 and not (workdir / "results.jsonl").exists()
    return done.stdout + done.stderr
