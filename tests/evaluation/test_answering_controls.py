"""Work-arounds and the control without context, with readers whose right answers are known."""

import re

import numpy as np
import pytest

from subq_jax.data.tokenizers import ByteTokenizer
from subq_jax.evaluation.answering import AnsweringModel, Price, answer_questions
from subq_jax.evaluation.comparisons import best_workarounds, comparisons
from subq_jax.evaluation.controls import WHOLE, answer_with, check_workarounds, controls_of
from subq_jax.evaluation.samples import Arm
from subq_jax.evaluation.summary import score_table
from subq_jax.evaluation.workarounds import split_text
from subq_jax.inference.reader import Read, Reader, Said
from subq_jax.model.config import DecoderConfig
from subq_jax.model.flops import forward_flops
from subq_jax.tasks import Request, find_task
from subq_jax.tasks.haystack import Encoder

TOKENIZER = ByteTokenizer()
CONFIG = DecoderConfig(vocab_size=TOKENIZER.vocab_size, mechanism="dense")
LENGTH, SIZES = 2048, (256, 512, 1024)
TASK = find_task("phonebook")
HAYSTACK = TASK.build(Request(LENGTH, TOKENIZER, num_questions=3))


class Parrot:
    """Reads up to `sight` tokens; says the number that it read after the name, and else guesses, with little trust."""

    def __init__(self, sight=10**9):
        self.sight, self.contexts, self.asked = sight, [], 0

    def read(self, context, capacity):
        assert len(context) <= capacity and context[0] == TOKENIZER.bos_id
        self.contexts.append(len(context))
        return Read(TOKENIZER.decode(context[: self.sight]), None, len(context), capacity)

    def greedy(self, read, prompt, num_tokens, end):
        assert read.length + len(prompt) + num_tokens <= read.capacity
        self.asked += 1
        name = TOKENIZER.decode(prompt).rsplit("number of ", 1)[1].removesuffix(" is")
        found = re.search(re.escape(name) + r"\D*?([\d-]+)", read.cache)
        said, sure = (found.group(1), 0.9) if found else ("555-0000", 0.2)
        tokens = np.array([*TOKENIZER.encode(" " + said), end])
        return Said(tokens, np.log(np.full(len(tokens), sure, np.float32)))


def answers(parrot, *controls):
    model = AnsweringModel(parrot, TOKENIZER, CONFIG)
    return {rows[0]["control"]: rows for rows in answer_with(model, TASK, HAYSTACK, controls)}


def scores(rows):
    return [row["score"] for row in rows]


ALL = controls_of(LENGTH, no_context=True, ways=("retrieval", "vote", "notes"), chunk_sizes=SIZES)


def test_what_stands_in_the_context_is_found_by_every_way_and_by_none_without():
    pytest.importorskip("bm25s")
    found = answers(Parrot(), *ALL)
    assert list(found) == [None, "no context", *(f"retrieval {1024 // n}x{n}" for n in SIZES),
                           *(f"{way} {n}" for way in ("vote", "notes") for n in SIZES)]
    assert {name: scores(rows) for name, rows in found.items()} == {
        name: [0.0 if name == "no context" else 1.0] * 3 for name in found}
    assert all(row["depth"] > 0 and row["task"] == "phonebook" for rows in found.values() for row in rows)


def test_a_reader_that_sees_little_needs_short_chunks():
    found = answers(Parrot(sight=300), *(control for control in ALL if control.way != "retrieval"))
    assert scores(found["vote 256"]) == scores(found["notes 256"]) == [1.0] * 3
    assert sum(scores(found[None])) < 3 > sum(scores(found["vote 1024"]))


def test_prices_are_those_of_a_question_asked_alone():
    parrot = Parrot()
    pytest.importorskip("bm25s")
    found = answers(parrot, *ALL)
    flops = lambda read, written: forward_flops(CONFIG, read + written - 1)["total"]
    for number, question in enumerate(HAYSTACK.questions):
        prompt = len(question.text) + len(question.answer_prefix)
        whole, nothing, vote = (found[name][number] for name in (None, "no context", "vote 512"))
        written = len(whole["answer"]) + 1
        assert whole["tokens_read"] == 1 + len(HAYSTACK.tokens) + prompt and whole["tokens_written"] == written
        assert whole["flops"] == flops(whole["tokens_read"], written)
        assert nothing["tokens_read"] == 1 + prompt
        chunks = len(split_text(HAYSTACK.context, 512, Encoder(TOKENIZER)))
        assert vote["tokens_read"] == len(HAYSTACK.tokens) + chunks * (1 + prompt) and chunks >= 4
        assert vote["flops"] < whole["flops"]  # attention is quadratic
        assert found["notes 512"][number]["tokens_read"] > vote["tokens_read"]
        retrieval = found["retrieval 2x512"][number]
        assert 1 + prompt < retrieval["tokens_read"] <= 1 + 1024 + 1 + prompt
        assert all(rows[number]["seconds"] > 0 for rows in found.values())


def test_chunks_are_read_once_for_all_questions_and_ways():
    parrot = Parrot()
    answers(parrot, *(control for control in ALL if control.way == "vote"))
    read, asked = len(parrot.contexts), parrot.asked
    both = Parrot()
    answers(both, *(control for control in ALL if control.way in ("vote", "notes")))
    assert asked == 3 * read
    assert len(both.contexts) == read + 3 * 3  # notes, of each question at each size


def test_controls_are_arms_for_the_statistics():
    rows = []
    for index in range(3):
        haystack = TASK.build(Request(LENGTH, TOKENIZER, index=index, num_questions=2))
        model = AnsweringModel(Parrot(sight=300), TOKENIZER, CONFIG)
        for found in answer_with(model, TASK, haystack, [control for control in ALL if control.way != "retrieval"]):
            rows += [row | {"mechanism": "dense", "budget": None, "seed": 0} for row in found]
    rows += best_workarounds(rows)
    table = {row["control"]: row for row in score_table(rows)}
    assert table["no context"]["mean"] == 0 and table["vote 256"]["mean"] == 1
    assert table["best work-around"]["samples"] == 6 and table["best work-around"]["mean"] > 0
    compared = {row["control"]: row for row in comparisons(rows, against=Arm("dense"), margin=0.05)}
    assert compared["vote 256"]["difference"] == 1 - table[None]["mean"] > 0 and compared["vote 256"]["pairs"] == 6


@pytest.mark.slow
def test_a_real_model_answers_under_every_control():
    from tiny_decoder import decoder

    model = decoder("selective", vocab_size=TOKENIZER.vocab_size, num_layers=1, layer_pattern=("selective",))
    answering = AnsweringModel(Reader(model, chunk=4), TOKENIZER, model.config)
    haystack = TASK.build(Request(255, TOKENIZER, num_questions=2))  # all caches hold 256 tokens
    controls = controls_of(255, no_context=True, ways=("vote",), chunk_sizes=(32, 64, 255))
    found = {rows[0]["control"]: rows for rows in answer_with(answering, TASK, haystack, controls)}
    assert list(found) == [None, "no context", "vote 32", "vote 64"]  # a chunk of 255 would be the context
    assert found[None] == [row | {"seconds": here["seconds"]} for row, here in zip(
        answer_questions(answering, TASK, haystack), found[None], strict=True)]
    assert all(0 <= row["evidence_recall"] <= 1 for row in found[None])
    assert {row["evidence_recall"] for name, rows in found.items() if name for row in rows} == {None}


def test_a_chunk_of_the_length_is_no_chunk():
    assert controls_of(200, no_context=False, ways=("vote",), chunk_sizes=SIZES) == [WHOLE]


@pytest.mark.parametrize("ways, sizes, message", [
    (("rag",), SIZES, "workarounds must be of ('retrieval', 'vote', 'notes'), got 'rag'"),
    (("vote", "vote"), SIZES, "workarounds must be distinct"),
    (("vote",), (256, 256), "chunk_sizes must be distinct"),
    (("vote",), (0,), "chunk_sizes must be an integer >= 1, got 0"),
    (("vote",), (), "chunk_sizes must name a size"),
])
def test_wrong_controls_are_refused(ways, sizes, message):
    with pytest.raises(ValueError) as error:
        check_workarounds(ways, sizes)
    assert message in str(error.value)


def test_retrieval_without_its_package_is_refused(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check_workarounds(("vote",), SIZES)
    with pytest.raises(ValueError, match="workarounds=retrieval needs the package bm25s"):
        check_workarounds(("retrieval",), SIZES)


def test_prices_add_up():
    assert Price(1, 2, 3.0, 4.0) + Price(10, 20, 30.0, 40.0) == Price(11, 22, 33.0, 44.0)
