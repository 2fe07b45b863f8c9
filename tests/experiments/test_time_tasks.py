"""The timing of tasks, at a length that takes no time."""

from programs import run

from subq_jax.data.tokenizers import ByteTokenizer
from subq_jax.files import read_rows
from subq_jax.tasks import CODE, SYNTHETIC, TASKS, WITH_CORPUS, Request, find_task


def time_tasks(*flags):
    return run("time_tasks", *flags)


def test_rows_are_written(tmp_path):
    done = time_tasks(f"--output={tmp_path}/rows.jsonl", "--tasks=mqar,cwe", "--length=3000", "--bpe_vocab_size=0")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = read_rows(tmp_path / "rows.jsonl")
    assert [row["task"] for row in rows] == ["mqar", "cwe"]
    for row in rows:
        assert 0 < row["processor_seconds"] < 60 and 2000 < row["tokens"] < 3000 and row["peak_bytes"] > 10**7


def test_tasks_that_need_a_corpus_are_refused():
    assert "must be some of" in time_tasks("--tasks=qa_1").stderr


def test_the_synthetic_tasks_need_no_corpus():
    assert len(CODE) + len(WITH_CORPUS) + len(SYNTHETIC) == len(TASKS)
    for name in SYNTHETIC:
        assert find_task(name).build(Request(10_000, ByteTokenizer())).questions
