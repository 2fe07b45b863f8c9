"""Prompts for other models, written without one."""

import functools

import pytest
from programs import program

from subq_jax.data.hugging_face import HuggingFaceTokenizer, write_folder
from subq_jax.data.tokenizers import BpeTokenizer, train_bpe
from subq_jax.files import read_rows
from subq_jax.tasks import Request, find_task

generate = functools.partial(program, "generate_tasks", ("--haystacks=2", "--questions=2", "--seed=3"))
RULER = {"index", "input", "outputs", "length", "answer_prefix", "token_position_answer"}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_bpe(["The grass is green. One of the special magic numbers\n" * 9], 300, folder / "bpe.json")
    write_folder(BpeTokenizer(folder / "bpe.json"), folder)
    return folder


def test_rows_are_those_of_the_task(tmp_path, tokenizer):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "story.txt").write_text("Nobody minded the rain. It fell on.\n" * 200)
    (corpus / "story.rst").write_text("Not this one. " * 200)
    tasks = ("niah_multikey_2", "niah_single_2")
    done = generate(tmp_path / "out", f"--tokenizer={tokenizer}", f"--tasks={','.join(tasks)}", "--lengths=900,1300",
                    f"--corpus={corpus}", "--corpus_suffix=.txt")
    assert done.returncode == 0, done.stdout + done.stderr
    ours = HuggingFaceTokenizer(tokenizer)
    files = {path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {str(path) for path in files} == {
        f"{length}/{task}/validation.jsonl" for task in tasks for length in (900, 1300)}
    for path in files:
        length, task, _ = path.parts
        found = read_rows(tmp_path / "out" / path)
        texts = ((corpus / "story.txt").read_text(),)
        haystacks = [find_task(task).build(Request(int(length), ours, 3, i, 2, texts)) for i in range(2)]
        assert found == [row for haystack in haystacks for row in haystack.rows()]
        for row in found:
            assert row.keys() >= RULER and row["length"] == int(length)
            assert all(reference in row["input"] for reference in row["outputs"])
            assert "Not this one" not in row["input"]
            whole = len(ours.encode(row["input"] + row["answer_prefix"])) + find_task(task).answer_tokens
            assert 0.8 * int(length) < whole <= int(length)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--tokenizer=/nonexistent",), "tokenizer must be a tokenizer.json or a folder with one, got /nonexistent"),
        (("--tokenizer=bytes", "--tasks=telepathy"), "task must be one of"),
        (("--tokenizer=bytes", "--lengths=long"), "--lengths must be integers, got ['long']"),
        (("--tokenizer=bytes", "--lengths="), "--lengths must name at least one"),
        (("--tokenizer=bytes", "--corpus=/nonexistent"), "--corpus must be a folder of text, got /nonexistent: "),
        (("--tokenizer=bytes", "--tasks=niah_single_1", "--lengths=90"), "niah_single_1 needs length"),
    ],
)
def test_what_cannot_be_written_is_said_in_one_line(tmp_path, flags, message):
    done = generate(tmp_path, *flags)
    assert done.returncode != 0 and message in done.stdout + done.stderr and "Traceback" not in done.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_file_that_cannot_be_finished_is_not_there(tmp_path):
    """The corpus lasts for the first length and not for the second."""
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "story.txt").write_text("Nobody minded the rain. " * 60)
    done = generate(tmp_path / "out", "--tokenizer=bytes", "--tasks=niah_single_2", "--lengths=1500,3000",
                    f"--corpus={tmp_path / 'corpus'}")
    assert done.returncode != 0
    assert "more tokens of corpus for length=3000: give a larger folder of text as --corpus; this one" in done.stderr
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == ["validation.jsonl"]
