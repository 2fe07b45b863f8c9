"""The evaluation program, on a run of ten steps that knows nothing."""

import functools
import hashlib
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from programs import ROOT, program

from subq_jax.data.tokenizers import ByteTokenizer
from subq_jax.evaluation.answering import AnsweringModel, answer_questions
from subq_jax.files import read_rows, write_rows
from subq_jax.inference.reader import Read, Said
from subq_jax.model.config import DecoderConfig
from subq_jax.tasks import Request, find_task
from subq_jax.tasks.code import source_documents

evaluation = functools.partial(program, "evaluate", ("--tasks=phonebook", "--haystacks=2", "--questions=2"))


def small_corpus(folder):
    folder.mkdir()
    (folder / "story.txt").write_text("Nobody minded the rain.")
    return folder


def without_clock(rows):
    return [row | {"seconds": 0} for row in rows]


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
    assert {row["template"] for row in samples} == {"unseen"} and scores["seen_mean"] is None
    assert (scores["task"], scores["length"], scores["samples"], scores["haystacks"]) == ("phonebook", 512, 4, 2)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Long-context evaluation" in page and "<td>guessing</td><td>0.000</td>" in page and "guessing" in done.stdout
    assert all(f"<td>{name}</td>" in page for name in ("jax", "flax", "python", "device", "date", "command"))
    assert "-m experiments.evaluate --workdir=" in page and "<h2>Configuration</h2>" in page
    rest = (tmp_path / "samples.jsonl").read_text().splitlines(keepends=True)
    for left in (rest[:2] + [rest[2][:20]], rest[:3]):  # cut off in the second haystack
        (tmp_path / "samples.jsonl").write_text("".join(left))
        again = evaluation(tmp_path, f"--runs={trained}", "--lengths=512")
        assert again.returncode == 0
        assert without_clock(read_rows(tmp_path / "samples.jsonl")) == without_clock(samples)


@pytest.mark.slow
def test_controls_are_asked_and_resumed_one_by_one(tmp_path, trained):
    pytest.importorskip("bm25s")
    flags = (f"--runs={trained}", "--lengths=512", "--no_context", "--workarounds=retrieval,vote,notes",
             "--chunk_sizes=128,256,512")
    done = evaluation(tmp_path, *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    samples = read_rows(tmp_path / "samples.jsonl")
    names = [None, "no context", "retrieval 2x128", "retrieval 1x256", "vote 128", "vote 256", "notes 128", "notes 256"]
    assert [(row["haystack"], row["control"]) for row in samples] == [
        (haystack, name) for haystack in (0, 1) for name in names for _ in range(2)]
    assert all(row["flops"] > 0 and row["seconds"] > 0 for row in samples)
    assert all((row["evidence_recall"] is not None) == (row["control"] is None) for row in samples)
    scores = read_rows(tmp_path / "scores.jsonl")
    assert {row["control"] for row in scores} == {*names, "best work-around"}
    rows = [line for line in done.stdout.splitlines() if "selective" in line and ".." in line]
    assert len(rows) == len(names) + 1, "one line each"
    assert max(map(len, done.stdout.splitlines()[:-1])) <= 80
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "What an answer costs" in page and "no context" in page
    rest = (tmp_path / "samples.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "samples.jsonl").write_text("".join(rest[:6] + rest[8:]))  # one control of one haystack is missing
    again = evaluation(tmp_path, *flags)
    assert again.returncode == 0, again.stderr
    new = read_rows(tmp_path / "samples.jsonl")
    assert without_clock(new) == without_clock(samples[:6] + samples[8:] + samples[6:8])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--workarounds=rag",), "workarounds must be of ('retrieval', 'vote', 'notes'), got 'rag'"),
        (("--workarounds=vote", "--chunk_sizes=0"), "chunk_sizes must be an integer >= 1, got 0"),
        (("--chunk_sizes=large",), "--chunk_sizes must be integers, got ['large']"),
        (("--tasks=telepathy",), "task must be one of"),
        (("--lengths=long",), "--lengths must be integers, got ['long']"),
        (("--lengths=512,0512",), "--lengths must be distinct, got [512, 512]"),
        (("--tasks=mqar,mqar",), "--tasks must be distinct, got ['mqar', 'mqar']"),
        (("--runs=a,a",), "--runs must be distinct, got ['a', 'a']"),
        (("--against=slective",), "--against must be one of ('dense', 'sliding_window', "),
        (("--margin=0",), "--margin must be in (0, 1], got 0"),
        (("--corpus=",), "--runs must be folders of finished runs of experiments.train on text, got /nonexistent: "),
    ],
)
def test_what_cannot_be_asked_is_said_in_one_line(tmp_path, flags, message):
    done = evaluation(tmp_path, "--runs=/nonexistent", *flags)
    assert done.returncode != 0 and message in done.stdout + done.stderr and "Traceback" not in done.stderr


def with_samples(folder, **stored):
    """A folder with one sample, and with what chose its haystacks."""
    (folder / "haystacks.json").write_text(json.dumps({"seed": 0, "questions": 2, "corpus": ""} | stored))
    write_rows(folder / "samples.jsonl", [{"mechanism": "dense"}])


@pytest.mark.parametrize(("flag", "message"), [
    ("--questions=3", "--questions must be 2, as the samples in {} have it, got 3; choose another workdir"),
    ("--seed=1", "--seed must be 0,"),
    ("--corpus=docs", "--corpus must hold the files that the samples in {} are about, of '' then, got others, of"),
    ("--haystacks=3", "--runs must be folders")])
def test_samples_of_other_haystacks_are_not_mixed(tmp_path, flag, message):
    with_samples(tmp_path, corpus_sha256=hashlib.sha256().hexdigest())
    done = evaluation(tmp_path, "--runs=/nonexistent", flag)
    assert done.returncode != 0 and message.format(tmp_path) in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(("stored", "message"), [
    ('{"seed": 0', "haystacks.json is damaged:"), ("[]", "haystacks.json is damaged: it must be a JSON object, got []"),
    ('{"seed": 0, "questions": 2, "corpus": "docs", "corpus_sha256": "0"}',
     "--corpus must hold the files that the samples in")])
def test_haystacks_of_a_corpus_that_changed_are_not_mixed(tmp_path, stored, message):
    with_samples(tmp_path)
    (tmp_path / "haystacks.json").write_text(stored)
    done = evaluation(tmp_path, "--runs=/nonexistent", "--corpus=docs")
    assert done.returncode != 0 and message in done.stderr and "Traceback" not in done.stderr


def test_a_corpus_is_known_by_its_files(tmp_path):
    documents = source_documents(ROOT / "docs", ".md")
    with_samples(tmp_path, corpus="elsewhere", corpus_suffix="", corpus_sha256=hashlib.sha256(
        "\0".join(documents).encode()).hexdigest())
    done = evaluation(tmp_path, "--runs=/nonexistent", "--corpus=./docs/", "--corpus_suffix=.md")
    assert "--runs must be folders of finished runs" in done.stderr


def test_nothing_is_held_to_a_choice_without_samples(tmp_path):
    with_samples(tmp_path, corpus_sha256="0", seed=7)
    (tmp_path / "samples.jsonl").write_text("")
    done = evaluation(tmp_path, "--runs=/nonexistent", "--corpus=docs")
    assert "--runs must be folders of finished runs" in done.stderr


def test_haystacks_of_another_standard_library_are_not_mixed(tmp_path):
    with_samples(tmp_path, library_sha256="0")
    done = evaluation(tmp_path, "--runs=/nonexistent", "--tasks=code_edit")
    assert done.returncode != 0 and "got others, of the standard library; choose another workdir" in done.stderr
    done = evaluation(tmp_path, "--runs=/nonexistent")  # asks nothing about it
    assert "--runs must be folders of finished runs" in done.stderr


@pytest.mark.slow
def test_runs_that_samples_cannot_tell_apart_are_refused(tmp_path, trained):
    (tmp_path / "copy").symlink_to(trained)
    done = evaluation(tmp_path, f"--runs={trained},{tmp_path / 'copy'}", "--lengths=512")
    assert done.returncode != 0 and "--runs must differ in mechanism, budget or seed, got" in done.stderr
    assert not (tmp_path / "samples.jsonl").exists()
    config = json.loads((trained / "config.json").read_text())
    of_another = {"run": "0", "mechanism": "selective", "seed": config["config"]["seed"],
                  "budget": config["config"]["model"]["budget"]}
    write_rows(tmp_path / "samples.jsonl", [of_another])
    done = evaluation(tmp_path, f"--runs={trained}", "--lengths=512")
    assert done.returncode != 0 and f"with samples in {tmp_path}, got {trained}: " in done.stderr
    assert read_rows(tmp_path / "samples.jsonl") == [of_another]


@pytest.mark.slow
def test_what_no_run_can_be_compared_with_is_said_before_it_is_asked(tmp_path, trained):
    write_rows(tmp_path / "samples.jsonl", [{"mechanism": "sliding_window", "budget": 64}])
    done = evaluation(tmp_path, f"--runs={trained}", "--lengths=512", "--against=dense")
    assert done.returncode != 0 and len(done.stderr.splitlines()) == 1
    assert "--against must be a mechanism of the runs, of ['selective', 'sliding_window'], got 'dense'" in done.stderr


@pytest.mark.slow
def test_runs_with_another_tokenizer_are_refused(tmp_path, trained):
    other, out = tmp_path / "bpe", tmp_path / "out"
    done = program("train", ("--config=configs/code.py:smoke", "--progress=false", "--config.data.tokenizer=bpe",
                             "--config.data.bpe_vocab_size=300", "--config.data.source=docs", "--config.seed=1",
                             f"--config.data.data_dir={tmp_path / 'data'}"), other)
    assert done.returncode == 0, done.stderr
    done = evaluation(out, f"--runs={trained},{other}", "--lengths=512")
    assert done.returncode != 0 and len(done.stderr.splitlines()) == 1
    assert f"--runs must have the same tokenizer to be asked about the same haystacks, got another in {other}" in (
        done.stderr)
    assert not (out / "samples.jsonl").exists()
    done = evaluation(out, f"--runs={trained}", "--lengths=512", "--haystacks=1")
    assert done.returncode == 0, done.stderr
    rest = (out / "samples.jsonl").read_text()
    done = evaluation(out, f"--runs={other}", "--lengths=512")
    assert done.returncode != 0 and f"tokenizer that the samples in {out} were made with, got another" in done.stderr
    assert (out / "samples.jsonl").read_text() == rest


@pytest.mark.slow
def test_an_unfinished_run_is_refused_and_not_trained(tmp_path, trained):
    shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "10")
    done = evaluation(tmp_path / "out", f"--runs={tmp_path / 'run'}", "--lengths=512")
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert f"got {tmp_path / 'run'}: " in done.stderr and "no checkpoint of its last step, 10" in done.stderr


@pytest.mark.slow
def test_a_length_without_room_is_said_in_one_line(tmp_path, trained):
    done = evaluation(tmp_path, f"--runs={trained}", "--lengths=100")
    assert done.returncode != 0 and "phonebook needs length" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_nothing_is_asked_where_a_task_cannot_be_built(tmp_path, trained):
    done = evaluation(tmp_path, f"--runs={trained}", "--lengths=512", "--tasks=phonebook,niah_single_2",
                      f"--corpus={small_corpus(tmp_path / 'corpus')}")
    assert done.returncode != 0 and len(done.stderr.splitlines()) == 1
    assert "haystack 0 of niah_single_2 at 512 tokens cannot be built: niah_single_2 needs" in done.stderr
    assert not read_rows(tmp_path / "samples.jsonl")


WITHOUT_SECOND = """
import dataclasses
from experiments import evaluate, task_flags
from subq_jax.tasks import find_task

def build(request):
    if request.index:
        raise ValueError("there is no second")
    return find_task("phonebook").build(request)

task_flags.find_task = lambda name: dataclasses.replace(find_task(name), build=build)
evaluate.run(evaluate.main)
"""


@pytest.mark.slow
def test_what_was_asked_is_reported_where_a_later_haystack_cannot_be_built(tmp_path, trained):
    command = [sys.executable, "-c", WITHOUT_SECOND, f"--workdir={tmp_path}", f"--runs={trained}", "--tasks=phonebook",
               "--lengths=512", "--questions=2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "haystack 1 of phonebook at 512 tokens cannot be built: there is no second" in done.stderr
    assert [row["haystack"] for row in read_rows(tmp_path / "samples.jsonl")] == [0, 0]
    assert (tmp_path / "report.html").exists()


def test_a_right_model_scores_everything():
    class Oracle:
        """Says what stands in the context after the answer's prefix, and then the end."""

        def read(self, context, capacity):
            assert len(context) + 64 < capacity and context[0] == tokenizer.bos_id
            return Read(tokenizer.decode(context), None, len(context), capacity)

        def greedy(self, read, prompt, num_tokens, end):
            name = tokenizer.decode(prompt).rsplit("number of ", 1)[1].removesuffix(" is")
            said = np.array([*tokenizer.encode(read.cache.split(name, 1)[1].split("\n", 1)[0]), end])
            return Said(said, np.zeros(len(said)))

    tokenizer, task = ByteTokenizer(), find_task("phonebook")
    config = DecoderConfig(vocab_size=tokenizer.vocab_size, mechanism="dense")
    haystack = task.build(Request(2048, tokenizer, num_questions=4))
    rows = answer_questions(AnsweringModel(Oracle(), tokenizer, config), task, haystack)
    assert [row["score"] for row in rows] == [1.0] * 4
    assert all(row["answer"].removeprefix(": ") in row["outputs"] and "input" not in row for row in rows)
