"""What every report says about the program, the machine and the call that made it."""

import re
import sys

import jax

from subq_jax.reporting.versions import versions


def test_versions_machine_day_and_command_are_there(monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["/some/where/python", "-m", "experiments.evaluate", "--tasks=a b"])
    found = versions()
    assert found["jax"] == jax.__version__ and found["python"] == sys.version.split()[0] and found["flax"]
    assert found["device"].startswith(jax.devices()[0].platform) and "CPU cores" in found["machine"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", found["date"])
    assert found["command"] == "python -m experiments.evaluate '--tasks=a b'"
