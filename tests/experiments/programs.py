"""Programs as their users run them, each in a process of its own.

Most of them end at once, and importing jax takes longer than they do. One process for all tests has imported it,
without starting a backend, and forks those in which the programs run.
"""

import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

ROOT = Path(__file__).parents[2]
SECONDS = 300  # a program that takes longer is ended
IMPORTED = ("subq_jax.training", "subq_jax.evaluation", "subq_jax.tasks", "subq_jax.reporting.plots", "pdb")


def run(name: str, *arguments: str) -> subprocess.CompletedProcess:
    """`python -m experiments.NAME ARGUMENTS`, in the environment that the first call of all found.

    A negative status is that of a signal, -14 of the time limit.
    """
    module, server = f"experiments.{name}", _server()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps([module, arguments, folder]), file=server.stdin, flush=True)
        line = server.stdout.readline()
        assert line, "the process that forks has ended"
        status = int(line)
        said = [(Path(folder) / name).read_text(encoding="utf-8") for name in ("stdout", "stderr")]
    return subprocess.CompletedProcess([module, *arguments], status, *said)


def program(name, always, workdir, *flags):
    """`python -m experiments.NAME` with the flags that it is always given and those of this run."""
    return run(name, f"--workdir={workdir}", *always, *flags)


def refusal(done, workdir) -> str:
    """What a program said that ended without results; fails for one that did not."""
    assert done.returncode != 0 and not (workdir / "results.jsonl").exists()
    return done.stdout + done.stderr


@functools.cache
def _server() -> subprocess.Popen:
    """The process that forks; it ends with its input."""
    command = [sys.executable, __file__]
    server = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(server.communicate)
    return server


def _serve():
    """Forks a process for every line [module, arguments, folder] and tells how it ended; returns that in the child."""
    for line in sys.stdin:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # jax has threads when a backend starts, and none has
            child = os.fork()
        if not child:
            return json.loads(line)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    return None


def _become(module: str, arguments: list[str], folder: str) -> None:
    """Runs a program as the main one of this process, with its output in files of the folder."""
    signal.alarm(SECONDS)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT), number)
    sys.argv, sys.orig_argv = [module, *arguments], [sys.executable, "-m", module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    for imported in IMPORTED:
        importlib.import_module(imported)
    gc.freeze()  # the children then leave at once what they did not make
    request = _serve()
    if request:
        _become(*request)
