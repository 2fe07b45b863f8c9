"""What is done today in place of a long context: retrieve, vote over chunks, or take notes.

Each way puts one question to a reader of short contexts and counts what it read. A reader is any callable
`answer(context, question) -> text`: a model with its prompt and decoding, or a lexical rule in tests. It answers ""
where the context does not say; white space around answers is dropped. The same chunks serve every question about a
haystack; compare several chunk sizes, as no single one is best everywhere.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from subq_jax.checks import check_integer
from subq_jax.tasks.haystack import Encoder

Reader = Callable[[str, str], str]

_SENTENCE_ENDS = re.compile(r"(?<=\n)|(?<=[.!?] )")
_WORD_ENDS = re.compile(r"(?<=\s)(?=\S)")
_CHARACTER_ENDS = re.compile(r"(?s)(?<=.)")
_WORDS = re.compile(r"\w+")


@dataclasses.dataclass(frozen=True)
class Reading:
    """An answer and its price: tokens of all contexts and questions that the reader was given, and its calls."""

    answer: str
    tokens_read: int
    calls: int


def split_text(text: str, size: int, encoder: Encoder, *, overlap: int = 0) -> list[str]:
    """Cuts `text` into chunks of at most `size` tokens, at ends of sentences or lines where it can.

    A sentence longer than a chunk is cut between words, and such a word between characters. Without overlap the chunks
    joined are the text. Tokens are those of the sentences in turn, as in a haystack.

    Args:
      text: any; an empty one has no chunks.
      size: tokens.
      encoder: counts them.
      overlap: the last sentences of a chunk, up to this many tokens, begin the next one too.

    Raises:
      ValueError: for a size below 1, an overlap of half a chunk or more, or a character longer than `size`.
    """
    check_integer("size", size, 1)
    check_integer("overlap", overlap, 0)
    if 2 * overlap >= size:
        raise ValueError(f"overlap must be less than half of size={size}, got {overlap}")
    chunks, chunk, used = [], [], 0
    for unit, tokens in _units(text, size, encoder):
        if chunk and used + tokens > size:
            chunks.append("".join(part for part, _ in chunk))
            chunk = _ending(chunk, min(overlap, size - tokens))
            used = sum(count for _, count in chunk)
        chunk.append((unit, tokens))
        used += tokens
    if chunk:
        chunks.append("".join(part for part, _ in chunk))
    return chunks


class ChunkIndex:
    """Finds the chunks that fit a question by BM25 (Robertson & Zaragoza 2009), with Lucene's k1=1.5 and b=0.75.

    Needs the package `bm25s` (extra `evaluate`). Words are runs of letters, digits and underscores, in lower case.

    Raises:
      ValueError: without chunks.
    """

    def __init__(self, chunks: Sequence[str]):
        import bm25s

        if not chunks:
            raise ValueError("chunks must hold at least one text")
        self.chunks = tuple(chunks)
        self._index = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
        self._index.index([_words(chunk) or [""] for chunk in chunks], show_progress=False)  # it divides by the length

    def best(self, question: str, number: int) -> list[str]:
        """The `number` best chunks (all if there are fewer) in the text's order; among equals the first."""
        check_integer("number", number, 1)
        words = _words(question)
        scores = self._index.get_scores(words) if words else np.zeros(len(self.chunks))
        return [self.chunks[place] for place in sorted(np.argsort(-scores, kind="stable")[:number])]


def retrieve_then_read(reader: Reader, index: ChunkIndex, question: str, encoder: Encoder, *,
                       num_chunks: int) -> Reading:
    """Reads the chunks that BM25 finds, once. The index itself is not counted: it reads no tokens of the reader.

    Raises:
      ValueError: for num_chunks below 1.
    """
    counting = _CountingReader(reader, question, encoder)
    return counting.reading(counting("\n".join(index.best(question, num_chunks))))


def chunk_and_vote(reader: Reader, chunks: Sequence[str], question: str, encoder: Encoder) -> Reading:
    """Reads every chunk; the most frequent answer wins, the earliest among equals.

    Answers are compared without case; empty ones have no vote.

    Raises:
      ValueError: without chunks.
    """
    counting = _CountingReader(reader, question, encoder)
    answers = counting.each(chunks)
    votes = Counter(answer.casefold() for answer in answers)  # keeps the order of first votes
    winner = max(votes, key=votes.get, default="")
    return counting.reading(next((answer for answer in answers if answer.casefold() == winner), ""))


def map_then_reduce(reader: Reader, chunks: Sequence[str], question: str, encoder: Encoder, *, size: int) -> Reading:
    """Reads every chunk, joins the answers as notes, a line each, and reads those.

    Notes longer than a chunk are read in chunks again until they fit; if that does not shorten them, what fits is
    read. A reader that finds nothing anywhere is not asked again: the answer is "".

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
    counting = _CountingReader(reader, question, encoder)
    notes = counting.each(chunks)
    tokens = _tokens(notes, encoder)
    while tokens > size:
        shorter = counting.each(split_text(_joined(notes), size, encoder))
        before, tokens = tokens, _tokens(shorter, encoder)
        if tokens >= before:
            break
        notes = shorter
    if not notes:
        return counting.reading("")
    return counting.reading(counting(split_text(_joined(notes), size, encoder)[0]))


class _CountingReader:
    """A reader of one question that keeps the account."""

    def __init__(self, reader: Reader, question: str, encoder: Encoder):
        self.reader, self.question, self.encoder = reader, question, encoder
        self.tokens_read = self.calls = 0

    def __call__(self, context: str) -> str:
        self.tokens_read += self.encoder.count(context, self.question)
        self.calls += 1
        return self.reader(context, self.question).strip()

    def each(self, chunks: Sequence[str]) -> list[str]:
        """What each chunk answers, where it answers at all."""
        if not chunks:
            raise ValueError("chunks must hold at least one text")
        return [answer for chunk in chunks if (answer := self(chunk))]

    def reading(self, answer: str) -> Reading:
        return Reading(answer, self.tokens_read, self.calls)


def _units(text, size, encoder, cuts=(_SENTENCE_ENDS, _WORD_ENDS, _CHARACTER_ENDS)):
    """Sentences with their tokens; those longer than `size` in words, and such words in characters."""
    for unit in filter(None, cuts[0].split(text)):
        if (tokens := encoder.count(unit)) <= size:
            yield unit, tokens
        elif len(cuts) == 1:
            raise ValueError(f"size must be at least the {tokens} tokens of {unit!r}, got {size}")
        else:
            yield from _units(unit, size, encoder, cuts[1:])


def _ending(chunk, tokens):
    """The last units of a chunk that together have at most so many tokens."""
    kept = []
    for unit, count in reversed(chunk):
        tokens -= count
        if tokens < 0:
            break
        kept.insert(0, (unit, count))
    return kept


def _joined(notes):
    return "".join(f"{note}\n" for note in notes)


def _tokens(notes, encoder):
    return encoder.count(*(f"{note}\n" for note in notes))


def _words(text):
    return _WORDS.findall(text.lower())
