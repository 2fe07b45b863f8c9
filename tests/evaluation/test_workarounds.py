"""Work-arounds of a long context, with a reader that answers by pattern."""

import re

import pytest

from subq_jax.data.tokenizers import ByteTokenizer
from subq_jax.evaluation.workarounds import ChunkIndex, chunk_and_vote, map_then_reduce, retrieve_then_read, split_text
from subq_jax.tasks.haystack import Encoder

ENCODER = Encoder(ByteTokenizer())
FILLING = [f"On day {day} the harbour of Oslo saw {day % 7} ships and a slow grey rain. " for day in range(300)]
NEEDLE = "The magic number for copper is 4711. "
QUESTION = "What is the magic number for copper?"


def text(*needles):
    """The filling with needles at even distances."""
    pieces = list(FILLING)
    for place, needle in enumerate(needles, start=1):
        pieces.insert(place * len(FILLING) // (len(needles) + 1) + place, needle)
    return "".join(pieces)


def reader(context, question):
    """The last number that the context gives for the question's key; "" where it gives none."""
    key = re.search(r"for (\w+)\?", question).group(1)
    return (re.findall(rf"number for {key} is (\d+)", context) or re.findall(r"^(\d+)$", context, re.M) or [""])[-1]


@pytest.mark.parametrize("size", [64, 100, 512, 10**6])
@pytest.mark.parametrize("text", [
    text(NEEDLE), "no end of sentence " * 50, "x" * 500, "one line\nanother\n\n" * 30, "Þórr är å " * 80, "end"])
def test_chunks_are_the_text_and_keep_their_size(text, size):
    chunks = split_text(text, size, ENCODER)
    assert "".join(chunks) == text
    assert all(0 < ENCODER.count(chunk) <= size for chunk in chunks)
    assert len(chunks) == 1 or len(chunks) < 3 * ENCODER.count(text) / size


def test_sentences_stay_whole_and_overlap_repeats_them():
    whole = text(NEEDLE)
    assert sum(NEEDLE in chunk for chunk in split_text(whole, 256, ENCODER)) == 1
    chunks = split_text(whole, 256, ENCODER, overlap=100)
    assert all(ENCODER.count(chunk) <= 256 for chunk in chunks)
    for before, after in zip(chunks, chunks[1:], strict=False):
        shared = next(n for n in range(len(before)) if after.startswith(before[n:]))
        assert 0 < len(before) - shared <= 100
    assert split_text("", 10, ENCODER) == []


@pytest.mark.parametrize("size", [128, 512, 2048])
def test_retrieval_reads_what_it_finds(size):
    pytest.importorskip("bm25s")
    chunks = split_text(text(NEEDLE, NEEDLE.replace("copper", "silver").replace("4711", "12")), size, ENCODER)
    index = ChunkIndex(chunks)
    reading = retrieve_then_read(reader, index, QUESTION, ENCODER, num_chunks=2)
    found = index.best(QUESTION, 2)
    assert (reading.answer, reading.calls) == ("4711", 1)
    assert reading.tokens_read == sum(map(len, found)) + 1 + len(QUESTION)
    assert [chunk for chunk in chunks if chunk in found] == found
    assert index.best(QUESTION, len(chunks) + 5) == chunks
    assert index.best("?!", 2) == chunks[:2]


def test_bm25_by_hand():
    pytest.importorskip("bm25s")
    index = ChunkIndex(["alpha beta", "beta beta gamma", "...", "delta"])
    assert index.best("Beta gamma", 1) == ["beta beta gamma"]
    assert index.best("delta, alpha", 2) == ["alpha beta", "delta"]
    assert index.best("beta", 2) == ["alpha beta", "beta beta gamma"]


@pytest.mark.parametrize("size", [128, 512, 2048])
def test_chunks_vote(size):
    lie = NEEDLE.replace("4711", "9")
    chunks = split_text(text(lie, NEEDLE, NEEDLE.replace("copper", "silver"), NEEDLE), size, ENCODER)
    reading = chunk_and_vote(reader, chunks, QUESTION, ENCODER)
    assert reading.answer == "4711"
    assert reading.calls == len(chunks)
    assert reading.tokens_read == sum(map(len, chunks)) + len(chunks) * len(QUESTION)


def test_votes_ignore_case_and_the_earliest_of_equals_wins():
    ballots = {"a": " Oslo", "b": "Paris", "c": "", "d": "paris ", "e": "OSLO\n"}
    vote = lambda chunks: chunk_and_vote(lambda context, _: ballots[context], chunks, "Where?", ENCODER).answer
    assert vote("abcde") == "Oslo" and vote("bdae") == "Paris" and vote("cad") == "Oslo" and vote("cc") == ""


@pytest.mark.parametrize("size", [128, 512, 2048])
def test_notes_are_read_again(size):
    chunks = split_text(text(NEEDLE), size, ENCODER)
    reading = map_then_reduce(reader, chunks, QUESTION, ENCODER, size=size)
    assert reading == type(reading)("4711", sum(map(len, chunks)) + 5 + (len(chunks) + 1) * len(QUESTION),
                                    len(chunks) + 1)
    nothing = map_then_reduce(reader, chunks, QUESTION.replace("copper", "gold"), ENCODER, size=size)
    assert (nothing.answer, nothing.calls) == ("", len(chunks))


def test_long_notes_are_read_in_chunks_until_they_fit():
    contexts = []

    def first_words(context, question):
        contexts.append(context)
        return context[: len(context) // 2]

    chunks = [f"chunk {number}, of some length. " for number in range(8)]
    reading = map_then_reduce(first_words, chunks, "?", ENCODER, size=40)
    assert reading.calls == len(contexts) > 8 + 1
    assert reading.tokens_read == sum(map(len, contexts)) + len(contexts)
    assert all(len(context) <= 40 for context in contexts)

    copied = map_then_reduce(lambda context, question: context, chunks, "?", ENCODER, size=40)
    assert copied.answer == "chunk 0, of some length."  # notes that do not shrink are cut


@pytest.mark.parametrize("call, message", [
    (lambda: split_text("a", 0, ENCODER), "size must be an integer >= 1, got 0"),
    (lambda: split_text("a", 10, ENCODER, overlap=5), "overlap must be less than half of size=10, got 5"),
    (lambda: split_text("å", 1, ENCODER), "size must be at least the 2 tokens of 'å', got 1"),
    (lambda: chunk_and_vote(reader, [], QUESTION, ENCODER), "chunks must hold at least one text"),
    (lambda: map_then_reduce(reader, [], QUESTION, ENCODER, size=5), "chunks must hold at least one text"),
    (lambda: map_then_reduce(reader, ["a"], QUESTION, ENCODER, size=0), "size must be an integer >= 1, got 0"),
])
def test_wrong_input_is_refused(call, message):
    with pytest.raises(ValueError) as error:
        call()
    assert message in str(error.value)


def test_an_index_needs_chunks_and_a_number():
    pytest.importorskip("bm25s")
    with pytest.raises(ValueError, match="chunks must hold at least one text"):
        ChunkIndex([])
    with pytest.raises(ValueError, match="number must be an integer >= 1, got 0"):
        ChunkIndex(["a"]).best("a", 0)
