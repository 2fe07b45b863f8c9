"""What is done today in place of a long context: retrieve, vote over chunks, or take notes.

Each way puts one question to a reader of short contexts and adds up the price of its replies. A reader is any callable
`answer(context, question) -> Reply`: a model with its prompt and decoding, or a lexical rule in tests. The same chunks
serve every question about a haystack; compare several chunk sizes, as no single one is best everywhere.

Most chunks do not say what is asked, and a greedy model answers nevertheless. So a reply counts as said only if it is
not empty and the model was never in doubt: each of its first tokens had at least a probability of `SURE`. The least
probability is looked at, not the mean, because doubt shows at the first token of a name or number, and what follows is
copied with certainty (a test that FLARE makes too, arXiv 2305.06983). Where no reply is sure, the surest alone counts.
"""

import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from subq_jax.checks import check_integer
from subq_jax.evaluation.answering import Price, Reply
from subq_jax.tasks.haystack import Encoder, Question

Reader = Callable[[str, Question], Reply]

SURE = 0.5  # likelier than all other tokens together

_SENTENCE_ENDS = re.compile(r"(?<=\n)|(?<=[.!?] )(?<!\b[A-Z]\. )")  # the initial of a name ends none
_WORD_ENDS = re.compile(r"(?<=\s)(?=\S)")
_CHARACTER_ENDS = re.compile(r"(?s)(?<=.)")
_WORDS = re.compile(r"\w+")


def split_text(text: str, size: int, encoder: Encoder) -> list[str]:
    """Cuts `text` into chunks of at most `size` tokens, at ends of sentences or lines where it can.

    A sentence longer than a chunk is cut between words, and such a word between characters. The chunks joined are the
    text. Tokens are those of the sentences in turn, as in a haystack.

    Args:
      text: any; an empty one has no chunks.
      size: tokens.
      encoder: counts them.

    Raises:
      ValueError: for a size below 1, or a character longer than `size`.
    """
    check_integer("size", size, 1)
    chunks, chunk, used = [], [], 0
    for unit, tokens in _units(text, size, encoder):
        if chunk and used + tokens > size:
            chunks.append("".join(chunk))
            chunk, used = [], 0
        chunk.append(unit)
        used += tokens
    return [*chunks, "".join(chunk)] if chunk else chunks


class ChunkIndex:
    """Finds the chunks that fit a question by BM25 (Robertson & Zaragoza 2009), with Lucene's k1=1.5 and b=0.75.

    Needs the package `bm25s` (extra `evaluate`). Words are runs of letters, digits and underscores, in lower case.
    `seconds` is how long it took to make.

    Raises:
      ValueError: without chunks.
    """

    def __init__(self, chunks: Sequence[str]):
        import bm25s

        logging.getLogger("bm25s").setLevel(logging.WARNING)  # it announces every index
        if not chunks:
            raise ValueError("chunks must hold at least one text")
        start = time.perf_counter()
        self.chunks = tuple(chunks)
        self._index = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
        self._index.index([_words(chunk) or [""] for chunk in chunks], show_progress=False)  # it divides by the length
        self.seconds = time.perf_counter() - start

    def best(self, question: str, number: int) -> list[str]:
        """The `number` best chunks (all if there are fewer) in the text's order; among equals the first."""
        check_integer("number", number, 1)
        words = _words(question)
        scores = self._index.get_scores(words) if words else np.zeros(len(self.chunks))
        return [self.chunks[place] for place in sorted(np.argsort(-scores, kind="stable")[:number])]


def retrieve_then_read(reader: Reader, index: ChunkIndex, question: Question, *, num_chunks: int) -> Reply:
    """Reads the chunks that BM25 finds for the question and its answer's prefix, once.

    The price has the seconds of the index and of the search, as it reads no tokens of the reader.

    Raises:
      ValueError: for num_chunks below 1.
    """
    start = time.perf_counter()
    context = "\n".join(index.best(question.text + question.answer_prefix, num_chunks))
    searching = Price(seconds=index.seconds + time.perf_counter() - start)
    reply = reader(context, question)
    return Reply(reply.text, reply.confidence, reply.price + searching)


def chunk_and_vote(reader: Reader, chunks: Sequence[str], question: Question) -> Reply:
    """Reads every chunk; the most frequent of the answers that are said wins, the surest among equals.

    Answers with the same words are equal, as `ChunkIndex` counts words: case, white space and full stops do not matter.

    Raises:
      ValueError: without chunks.
    """
    replies = _read_each(reader, chunks, question)
    said = _said(replies)
    votes = Counter(_ballot(reply) for reply in said)
    winner = max(said, key=lambda reply: (votes[_ballot(reply)], reply.confidence), default=Reply("", 0.0))
    return Reply(winner.text, winner.confidence, _price(replies))


def map_then_reduce(reader: Reader, chunks: Sequence[str], question: Question, encoder: Encoder, *,
                    size: int) -> Reply:
    """Reads every chunk, joins the answers that are said as notes, a line each, and reads those.

    A note is the answer after its prefix, so that it is a sentence where the prefix begins one. Notes longer than a
    chunk are read in chunks again until they fit; if that does not shorten them, what fits is read. A reader that
    answers nothing anywhere is not asked again: the answer is "".

    Args:
      reader: answers the same question of chunks and of notes.
      chunks: of `split_text`.
      question: about the whole.
      encoder: counts tokens.
      size: the most tokens of notes in one reading, such as the chunks' size.

    Raises:
      ValueError: without chunks, or for a size below 1.
    """
    check_integer("size", size, 1)
    replies = _read_each(reader, chunks, question)
    price, notes = _price(replies), _notes(replies, question)
    while encoder.count(notes) > size:
        replies = _read_each(reader, split_text(notes, size, encoder), question)
        price += _price(replies)
        shorter = _notes(replies, question)
        if encoder.count(shorter) >= encoder.count(notes):
            break
        notes = shorter
    if not notes:
        return Reply("", 0.0, price)
    if encoder.count(notes) > size:
        notes = split_text(notes, size, encoder)[0]
    reply = reader(notes, question)
    return Reply(reply.text, reply.confidence, price + reply.price)


def _read_each(reader, chunks, question):
    if not chunks:
        raise ValueError("chunks must hold at least one text")
    return [reader(chunk, question) for chunk in chunks]


def _said(replies):
    """Those that say something: the sure ones, or the surest alone."""
    spoken = [reply for reply in replies if reply.text.strip()]
    sure = [reply for reply in spoken if reply.confidence >= SURE]
    return sure or sorted(spoken, key=lambda reply: -reply.confidence)[:1]


def _ballot(reply):
    return " ".join(_words(reply.text))


def _notes(replies, question):
    return "".join(f"{(question.answer_prefix + reply.text).strip()}\n" for reply in _said(replies))


def _price(replies):
    return sum((reply.price for reply in replies), Price())


def _units(text, size, encoder, cuts=(_SENTENCE_ENDS, _WORD_ENDS, _CHARACTER_ENDS)):
    """Sentences with their tokens; those longer than `size` in words, and such words in characters."""
    for unit in filter(None, cuts[0].split(text)):
        if (tokens := encoder.count(unit)) <= size:
            yield unit, tokens
        elif len(cuts) == 1:
            raise ValueError(f"size must be at least the {tokens} tokens of {unit!r}, got {size}")
        else:
            yield from _units(unit, size, encoder, cuts[1:])


def _words(text):
    return _WORDS.findall(text.lower())
