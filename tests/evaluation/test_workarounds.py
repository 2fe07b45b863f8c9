"""Work-arounds of a long context, with a reader that answers by pattern."""

import re

import pytest

from subq_jax.data.tokenizers import ByteTokenizer
from subq_jax.evaluation.answering import Price, Reply
from subq_jax.evaluation.workarounds import ChunkIndex, chunk_and_vote, map_then_reduce, retrieve_then_read, split_text
from subq_jax.tasks.haystack import Encoder, Question

ENCODER = Encoder(ByteTokenizer())
FILLING = [f"On day {day} the harbour of Oslo saw {day % 7} ships and a slow grey rain. " for day in range(300)]
NEEDLE = "The magic number for copper is 4711. "
QUESTION = Question("What is the magic number for copper?", "", ())


def text(*needles):
    """The filling with needles at even distances."""
    pieces = list(FILLING)
    for place, needle in enumerate(needles, start=1):
        pieces.insert(place * len(FILLING) // (len(needles) + 1) + place, needle)
    return "".join(pieces)


def reply(text, context, question, confidence=1.0):
    """What costs the bytes of context and question, and a second."""
    return Reply(text, confidence, Price(len(context) + len(question.text), 1, 2.0, 1.0))


def reader(context, question):
    """The last number that the context gives for the question's key; "" where it gives none."""
    key = re.search(r"for (\w+)\?", question.text).group(1)
    found = (re.findall(rf"number for {key} is (\d+)", context) or re.findall(r"^(\d+)$", context, re.M) or [""])[-1]
    return reply(found, context, question)


@pytest.mark.parametrize("size", [64, 100, 512, 10**6])
@pytest.mark.parametrize("text", [
    text(NEEDLE), "no end of sentence " * 50, "x" * 500, "one line\nanother\n\n" * 30, "Þórr är å " * 80, "end"])
def test_chunks_are_the_text_and_keep_their_size(text, size):
    chunks = split_text(text, size, ENCODER)
    assert "".join(chunks) == text
    assert all(0 < ENCODER.count(chunk) <= size for chunk in chunks)
    assert len(chunks) == 1 or len(chunks) < 3 * ENCODER.count(text) / size


def test_sentences_stay_whole():
    assert sum(NEEDLE in chunk for chunk in split_text(text(NEEDLE), 256, ENCODER)) == 1
    assert split_text("", 10, ENCODER) == []


@pytest.mark.parametrize("size", [64, 256])
def test_an_initial_ends_no_sentence(size):
    rows = [f"Ada {initial}. Carver: 276-856-{number}\n" for number, initial in enumerate("BCDEFGHIJK" * 9, 1000)]
    chunks = split_text("".join(rows), size, ENCODER)
    assert [row for chunk in chunks for row in chunk.splitlines(keepends=True)] == rows
    assert split_text("Is it B? It is. So", 8, ENCODER) == ["Is it ", "B? ", "It is. ", "So"]


@pytest.mark.parametrize("size", [128, 512, 2048])
def test_retrieval_reads_what_it_finds(size):
    pytest.importorskip("bm25s")
    chunks = split_text(text(NEEDLE, NEEDLE.replace("copper", "silver").replace("4711", "12")), size, ENCODER)
    index = ChunkIndex(chunks)
    said = retrieve_then_read(reader, index, QUESTION, num_chunks=2)
    found = index.best(QUESTION.text, 2)
    assert (said.text, said.price.tokens_written, said.price.flops) == ("4711", 1, 2.0)
    assert said.price.tokens_read == sum(map(len, found)) + 1 + len(QUESTION.text)
    assert 1 < said.price.seconds < 60  # the search beside the reading
    assert [chunk for chunk in chunks if chunk in found] == found
    assert index.best(QUESTION.text, len(chunks) + 5) == chunks
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
    said = chunk_and_vote(reader, chunks, QUESTION)
    assert said.text == "4711"
    read = sum(map(len, chunks)) + len(chunks) * len(QUESTION.text)
    assert said.price == Price(read, len(chunks), 2.0 * len(chunks), float(len(chunks)))


def test_votes_ignore_case_and_the_surest_of_equals_wins():
    ballots = {"a": (" Oslo", 0.8), "b": ("Paris", 0.9), "c": ("", 1.0), "d": ("paris. ", 0.6), "e": ("OSLO\n", 0.7)}

    def vote(chunks):
        read = lambda context, question: reply(*(ballots[context][0], context, question, ballots[context][1]))
        return chunk_and_vote(read, chunks, QUESTION).text

    assert vote("aed") == " Oslo" and vote("bdae") == "Paris" and vote("cab") == "Paris" and vote("cc") == ""


def test_a_chunk_in_doubt_has_no_vote_unless_all_are():
    doubtful = {"a": ("Rome", 0.3), "b": ("Rome", 0.4), "c": ("Oslo", 0.9), "d": ("", 1.0)}
    read = lambda context, question: reply(*(doubtful[context][0], context, question, doubtful[context][1]))
    assert chunk_and_vote(read, "abc", QUESTION).text == "Oslo"
    assert chunk_and_vote(read, "abd", QUESTION).text == "Rome"
    assert chunk_and_vote(read, "abd", QUESTION).confidence == 0.4
    question, notes = Question("Where?", "It is in ", ()), []

    def noting(context, question):
        notes.append(context)
        return read(context, question) if context in doubtful else reply(context, context, question)

    assert map_then_reduce(noting, "abc", question, ENCODER, size=64).text == "It is in Oslo\n" == notes[-1]


@pytest.mark.parametrize("size", [128, 512, 2048])
def test_notes_are_read_again(size):
    chunks = split_text(text(NEEDLE), size, ENCODER)
    said = map_then_reduce(reader, chunks, QUESTION, ENCODER, size=size)
    calls = len(chunks) + 1
    assert said.text == "4711"
    assert said.price == Price(sum(map(len, chunks)) + 5 + calls * len(QUESTION.text), calls, 2.0 * calls, float(calls))
    gold = Question(QUESTION.text.replace("copper", "gold"), "", ())
    nothing = map_then_reduce(reader, chunks, gold, ENCODER, size=size)
    assert (nothing.text, nothing.price.tokens_written) == ("", len(chunks))


def test_long_notes_are_read_in_chunks_until_they_fit():
    contexts = []

    def first_words(context, question):
        contexts.append(context)
        return reply(context[: len(context) // 2], context, question)

    chunks, ask = [f"chunk {number}, of some length. " for number in range(8)], Question("?", "", ())
    said = map_then_reduce(first_words, chunks, ask, ENCODER, size=40)
    assert said.price.tokens_written == len(contexts) > 8 + 1
    assert said.price.tokens_read == sum(map(len, contexts)) + len(contexts)
    assert all(len(context) <= 40 for context in contexts)

    copied = map_then_reduce(lambda context, question: reply(context, context, question), chunks, ask, ENCODER, size=40)
    assert copied.text.strip() == "chunk 0, of some length."  # notes that do not shrink are cut


def test_notes_that_fit_are_read_whole():
    class MergingTokenizer(ByteTokenizer):
        """Has a token for a full stop, a space and what follows, as a BPE for a space and a word."""

        def encode(self, text):
            return super().encode(re.sub(r"\. (?=.)", ".", text))

        def decode(self, tokens):
            return re.sub(r"\.(?=\w)", ". ", super().decode(tokens))

    contexts, notes = [], "One. Two.\n" * 4

    def copying(context, question):
        contexts.append(context)
        return reply(context, context, question)

    encoder = Encoder(MergingTokenizer())
    assert encoder.count(notes) == 36 < sum(encoder.count("One. ", "Two.\n") for _ in range(4))
    map_then_reduce(copying, ["One. Two."] * 4, Question("?", "", ()), encoder, size=36)
    assert contexts[-1] == notes


@pytest.mark.parametrize("call, message", [
    (lambda: split_text("a", 0, ENCODER), "size must be an integer >= 1, got 0"),
    (lambda: split_text("å", 1, ENCODER), "size must be at least the 2 tokens of 'å', got 1"),
    (lambda: chunk_and_vote(reader, [], QUESTION), "chunks must hold at least one text"),
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
