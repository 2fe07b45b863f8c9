"""Files that survive kills and other processes."""

import os
import signal
import stat
import subprocess
import sys

import pytest

from subq_jax.files import append_row, exclusive, read_rows, write_rows, write_text

ROWS = [{"step": 1, "text": "ünï\u2028"}, {"step": 2, "text": None}]


def test_files_are_replaced_whole(tmp_path):
    path = tmp_path / "new" / "rows.jsonl"
    assert read_rows(path) == []
    write_rows(path, ROWS)
    assert read_rows(path) == ROWS
    with pytest.raises(TypeError):
        write_rows(path, [{"bad": object()}])
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half of it \udcff")
    with pytest.raises(ZeroDivisionError):
        write_rows(path, ({"step": 1 / (2 - step)} for step in range(4)))
    assert read_rows(path) == ROWS
    assert [file.name for file in path.parent.iterdir()] == ["rows.jsonl"]


def test_written_files_have_the_permissions_of_any_other(tmp_path):
    write_text(tmp_path / "ours", "text")
    (tmp_path / "plain").write_text("text")
    assert len({stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ours", "plain")}) == 1


def test_a_last_line_cut_anywhere_is_left_out(tmp_path):
    path = tmp_path / "rows.jsonl"
    with path.open("a", encoding="utf-8") as file:
        for row in ROWS:
            append_row(file, row)
            assert read_rows(path)[-1] == row
    whole = path.read_bytes()
    first_line = whole.index(b"\n") + 1
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        ends = (first_line - 1, len(whole) - 1)  # only the end of the line is missing there
        assert read_rows(path) == ROWS[: sum(size >= end for end in ends)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"step":', "rows.jsonl:2 is not JSON: .*mend or delete the line"),
        (b"", "rows.jsonl:2 is not JSON"),
        (b'{"step": "\xff"}', "rows.jsonl:2 is not JSON: .*utf-8"),
        (b"[1, 2]", r"rows.jsonl:2 must be a JSON object, got .*\[1, 2\]"),
    ],
)
@pytest.mark.parametrize("after", [b'{"step": 3}\n', b'{"ste', b""])
def test_any_other_damaged_line_is_named(tmp_path, line, message, after):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b"\n" + after)
    with pytest.raises(ValueError, match=message):
        read_rows(path)


def test_a_lock_excludes_until_its_process_is_killed(tmp_path):
    program = (
        "import sys, time; from pathlib import Path; from subq_jax.files import exclusive\n"
        "with exclusive(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "new")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError), exclusive(tmp_path / "new", wait=False):
            pass
        holder.send_signal(signal.SIGKILL)
        with exclusive(tmp_path / "new"):
            assert holder.wait() == -signal.SIGKILL
    with exclusive(tmp_path / "new", wait=False), exclusive(tmp_path, wait=False):
        pass
