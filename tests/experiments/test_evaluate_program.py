"""The evaluation program, on a run of ten steps that knows nothing."""

import functools

import pytest
from programs import program

from subq_jax.evaluation.answering import answer_questions
from subq_jax.files import read_rows
from subq_jax.tasks import Request, find_task

evaluation = functools.partial(program, "evaluate", ("--tasks=phonebook", "--haystacks=2", "--questions=2"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    done = program("train", ("--config=configs/code.py:smoke", "--progress=false"), folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_samples_scores_and_report_are_written_and_resumed(tmp_path, trained):
    done = evaluation(tmp_path, f"--runs={trained}", "--lengths=512")
    assert done.returncode == 0, done.stdout + done.stderr
    samples = read_rows(tmp_path / "samples.jsonl")
    assert [(row["haystack"], row["index"]) for row in samples] == [(0, 0), (0, 1), (1, 2), (1, 3)]
    assert {row["mechanism"] for row in samples} == {"selective"} and all(0 < row["depth"] < 1 for row in samples)
    (scores,) = read_rows(tmp_path / "scores.jsonl")
    assert (scores["task"], scores["length"], scores["samples"], scores["haystacks"]) == ("phonebook", 512, 4, 2)
    assert "Long-context evaluation" in (tmp_path / "report.html").read_text(encoding="utf-8")
    rest = (tmp_path / "samples.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "samples.jsonl").write_text("".join(rest[:2]))  # cut off after the first haystack
    again = evaluation(tmp_path, f"--runs={trained}", "--lengths=512")
    assert again.returncode == 0 and read_rows(tmp_path / "samples.jsonl") == samples


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--tasks=telepathy",), "task must be one of"),
        (("--lengths=long",), "--lengths integers"),
        ((), "FileNotFoundError"),
    ],
)
def test_what_cannot_be_asked_is_said_in_one_line(tmp_path, flags, message):
    done = evaluation(tmp_path, "--runs=/nonexistent", *flags)
    assert done.returncode != 0 and message in done.stdout + done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_length_without_room_is_said_in_one_line(tmp_path, trained):
    done = evaluation(tmp_path, f"--runs={trained}", "--lengths=100")
    assert done.returncode != 0 and "phonebook needs length" in done.stderr and "Traceback" not in done.stderr


def test_a_right_model_scores_everything():
    class Oracle:
        """Says what stands in the context after the answer's prefix, and then the end."""

        def __init__(self, tokenizer):
            self.tokenizer = tokenizer

        def read(self, context, capacity):
            assert len(context) + 64 < capacity and context[0] == self.tokenizer.bos_id
            return self.tokenizer.decode(context)

        def greedy(self, read, prompt, num_tokens):
            name = self.tokenizer.decode(prompt).rsplit("number of ", 1)[1].removesuffix(" is")
            said = read.split(name, 1)[1].split("\n", 1)[0]
            return [*self.tokenizer.encode(said), self.tokenizer.eos_id, *self.tokenizer.encode("noise")]

    from subq_jax.data.tokenizers import ByteTokenizer

    tokenizer, task = ByteTokenizer(), find_task("phonebook")
    haystack = task.build(Request(2048, tokenizer, num_questions=4))
    rows = answer_questions(Oracle(tokenizer), tokenizer, task, haystack)
    assert [row["score"] for row in rows] == [1.0] * 4
    assert all("noise" not in row["answer"] and "input" not in row for row in rows)
