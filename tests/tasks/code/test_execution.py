"""Code that a model wrote runs with limits."""

import time

import pytest

from subq_jax.tasks.code.execution import Doctests

DOCTESTS = Doctests("a.py", "a", ">>> double(2)\n4\n", {"helper.py": "TWO = 2\n"})


def run(body, doctests=DOCTESTS):
    return doctests.pass_with(f"def double(x):\n    {body}\n", seconds=2, mebibytes=256)


def test_the_right_body_passes():
    assert run("return 2 * x") and run("import helper; return helper.TWO * x")
    assert not run("return 3 * x")


@pytest.mark.parametrize("body", [
    "import os; os._exit(0)", "raise SystemExit", "return (", "import os; os.write(1, b'[1, 0]'); os._exit(0)",
    "open('big', 'wb').write(bytes(1 << 24)); return 2 * x"])
def test_what_does_not_finish_fails(body):
    assert not run(body)


@pytest.mark.parametrize("report", ['{"a": 1, "b": 2}', "[null, 0]", "[" * 100_000])
def test_what_is_written_in_place_of_the_result_fails(report):
    body = f"""import os
    for file in range(3, 20):
        try:
            os.write(file, b"\\n" + {report.encode()!r})
        except OSError:
            pass
    os._exit(0)"""
    assert not run(body)


def test_a_process_that_goes_on_writing_ends_no_evaluation():
    assert run("""import os, time
    if os.fork() == 0:
        os.setsid()
        end = time.monotonic() + 3
        while time.monotonic() < end:
            try:
                os.makedirs("more/and/more", exist_ok=True)
                open(f"more/and/more/{time.monotonic()}", "w").close()
            except OSError:
                pass
        os._exit(0)
    time.sleep(0.3)
    return 2 * x""")


@pytest.mark.parametrize("body", [
    "while True: pass", "import time; time.sleep(60)", "import os; os.fork(); import time; time.sleep(60)"])
def test_endless_bodies_are_stopped(body):
    start = time.monotonic()
    assert not run(body) and time.monotonic() - start < 10


@pytest.mark.parametrize("body", ["return len(bytearray(1 << 30)) and 2 * x", "y = [x]\n    while True: y = y + y"])
def test_bodies_that_take_all_memory_are_stopped(body):
    assert not run(body)


def test_no_examples_prove_nothing():
    assert not run("return 4", Doctests("a.py", "a", "No examples."))
