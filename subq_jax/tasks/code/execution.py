"""Runs the doctests of a function that a model wrote, in a process with limits.

The limits stop mistakes: endless loops, memory without end, a file without end. They are no sandbox. Code that means to
can delete and read what the user can, use the network, write many files, start processes that outlive it in a session
of their own, or report that all examples passed: score unknown models in a container.
"""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

SECONDS = 10.0
MEBIBYTES = 1024  # of address space
FILE_BYTES = 1 << 20

# Runs in the new process: sets the limits before any code of others is read, and writes its result as the last line.
_DRIVER = """
import doctest, json, os, resource, sys, types
job = json.load(sys.stdin)
for limit, value in ((resource.RLIMIT_CPU, job["cpu_seconds"]), (resource.RLIMIT_AS, job["memory_bytes"]),
                     (resource.RLIMIT_FSIZE, job["file_bytes"]), (resource.RLIMIT_CORE, 0)):
    resource.setrlimit(limit, (value, value))
report = os.fdopen(os.dup(1), "w")
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
sys.path.append(job["folder"])
module = types.ModuleType(job["module"])
module.__package__ = job["package"]
module.__file__ = job["path"]
sys.modules[job["module"]] = module
exec(compile(job["source"], job["path"], "exec"), module.__dict__)
test = doctest.DocTestParser().get_doctest(job["docstring"], dict(module.__dict__), "doctest", None, 0)
result = doctest.DocTestRunner(verbose=False).run(test, out=lambda text: None)
report.write("\\n" + json.dumps([result.attempted, result.failed]))
report.flush()
"""


@dataclasses.dataclass(frozen=True)
class Doctests:
    """Examples and the file whose names they use.

    Attributes:
      path: of the file in its repository.
      module: its dotted name.
      docstring: holds the examples.
      files: path -> text of other files that it may import; the installed ones come first.
    """

    path: str
    module: str
    docstring: str
    files: dict[str, str] = dataclasses.field(default_factory=dict, repr=False, hash=False)

    def pass_with(self, source: str, seconds: float = SECONDS, mebibytes: int = MEBIBYTES) -> bool:
        """Whether every example passes, and there is one, when the file's text is `source`.

        Args:
          source: the file's whole text.
          seconds: of wall clock, after which the process and those it started in its group are killed.
          mebibytes: of address space, for each process.
        """
        # A process in a session of its own may go on writing there, which is no reason to end an evaluation.
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            for path, text in self.files.items():
                (Path(folder) / path).parent.mkdir(parents=True, exist_ok=True)
                (Path(folder) / path).write_text(text, encoding="utf-8")
            is_package = self.path.endswith("__init__.py")
            job = {
                "source": source, "path": self.path, "module": self.module, "docstring": self.docstring,
                "package": self.module if is_package else self.module.rpartition(".")[0],
                "folder": os.path.join(folder, "src" if self.path.startswith("src/") else ""),
                "cpu_seconds": int(seconds) + 1, "memory_bytes": mebibytes << 20, "file_bytes": FILE_BYTES}
            with tempfile.TemporaryFile() as report:
                _run(json.dumps(job).encode(), folder, report, seconds)
                report.seek(0)
                last_line = report.read().rpartition(b"\n")[2]
        try:
            attempted, failed = json.loads(last_line)
            return attempted > 0 and failed == 0
        except (ValueError, TypeError, RecursionError):  # it was killed, the file cannot be run, or wrote here itself
            return False


def _run(job: bytes, folder: str, report, seconds: float) -> None:
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", _DRIVER], stdin=subprocess.PIPE, stdout=report, stderr=subprocess.DEVNULL,
        cwd=folder, env={}, start_new_session=True)
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(job, timeout=seconds)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
