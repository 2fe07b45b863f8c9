"""What an answer from a long context is compared with: the same model without the context, and its work-arounds.

A control is an arm of its own in the rows of samples: same task, length, haystack and question, with `control` set.

- `no context`: the question alone.
- `retrieval 4x256`: the 4 chunks of 256 tokens that BM25 ranks highest, read at once. There are as many as fill the
  largest chunk size, so that retrieval reads the same number of tokens at every size.
- `vote 256`: every chunk is read, and the most frequent answer wins.
- `notes 256`: every chunk is read, and the answers are read again as notes.

Work-arounds run at chunk sizes below the task's length: a chunk of that length would be the context itself. A chunk is
read once for all questions about a haystack and for all ways that read it, as the long context is; prices are those of
a question asked alone (`answering.Price`), so that neither gains by sharing.
"""

import importlib.util
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from subq_jax.checks import check_integer
from subq_jax.evaluation.answering import AnsweringModel, Reply, answer_questions, answer_row
from subq_jax.evaluation.samples import NO_CONTEXT
from subq_jax.evaluation.workarounds import (
    ChunkIndex,
    chunk_and_vote,
    map_then_reduce,
    retrieve_then_read,
    split_text,
)
from subq_jax.tasks import Haystack, Question, Task
from subq_jax.tasks.haystack import Encoder

WORKAROUNDS = ("retrieval", "vote", "notes")


class Control(NamedTuple):
    """How a question is answered: `whole`, `no context`, or one of WORKAROUNDS over chunks of `size` tokens."""

    way: str
    size: int = 0
    num_chunks: int = 1  # that are read at once

    @property
    def name(self) -> str | None:
        """What stands in the field `control` of samples; None for the whole context."""
        if self.way == "whole":
            return None
        chunks = f" {self.num_chunks}x{self.size}" if self.way == "retrieval" else f" {self.size}"
        return self.way + (chunks if self.size else "")


WHOLE = Control("whole")


def check_workarounds(ways: Sequence[str], chunk_sizes: Sequence[int]) -> None:
    """Raises ValueError for an unknown way, a chunk size below 1 or given twice, none, or a package that is missing."""
    if unknown := [way for way in ways if way not in WORKAROUNDS]:
        raise ValueError(f"workarounds must be of {WORKAROUNDS}, got {unknown[0]!r}")
    for name, values in (("workarounds", ways), ("chunk_sizes", chunk_sizes)):
        if len(set(values)) < len(values):
            raise ValueError(f"{name} must be distinct, got {list(values)}")
    for size in chunk_sizes:
        check_integer("chunk_sizes", size, 1)
    if ways and not chunk_sizes:
        raise ValueError("chunk_sizes must name a size for the work-arounds")
    if "retrieval" in ways and importlib.util.find_spec("bm25s") is None:
        raise ValueError("workarounds=retrieval needs the package bm25s: pip install 'subq_jax[evaluate]'")


def controls_of(length: int, *, no_context: bool, ways: Sequence[str] = (),
                chunk_sizes: Sequence[int] = ()) -> list[Control]:
    """The whole context and all controls of questions at a length."""
    sizes = sorted(size for size in chunk_sizes if size < length)
    at_once = lambda way, size: sizes[-1] // size if way == "retrieval" else 1
    return [WHOLE, *[Control(NO_CONTEXT)] * no_context,
            *(Control(way, size, at_once(way, size)) for way in ways for size in sizes)]


def answer_with(model: AnsweringModel, task: Task, haystack: Haystack,
                controls: Sequence[Control]) -> Iterator[list[dict[str, Any]]]:
    """The rows of each control in turn, one row a question, see `answer_row`.

    Raises:
      ValueError: where the tokenizer has ids that the model does not know.
    """
    workarounds = _Workarounds(model, task, haystack)
    for control in controls:
        if control == WHOLE:
            yield answer_questions(model, task, haystack)
        else:
            replies = workarounds.replies(control)
            yield [answer_row(task, haystack, number, reply) | {"control": control.name}
                   for number, reply in enumerate(replies)]


class _Workarounds:
    """The controls of one haystack; every chunk is read once for all questions and ways."""

    def __init__(self, model: AnsweringModel, task: Task, haystack: Haystack):
        self._model, self._task, self._haystack = model, task, haystack
        self._encoder = Encoder(model.tokenizer)
        self._chunks: dict[int, list[str]] = {}
        self._replies: dict[tuple[str, Question], Reply] = {}

    def replies(self, control: Control) -> list[Reply]:
        questions = self._haystack.questions
        if control.way == NO_CONTEXT:
            return self._read("", questions)
        if control.size not in self._chunks:
            self._chunks[control.size] = split_text(self._haystack.context, control.size, self._encoder)
        chunks = self._chunks[control.size]
        if control.way == "retrieval":
            index = ChunkIndex(chunks)
            return [retrieve_then_read(self._reply, index, question, num_chunks=control.num_chunks)
                    for question in questions]
        for chunk in chunks:
            new = [question for question in questions if (chunk, question) not in self._replies]
            self._replies |= zip(((chunk, question) for question in new), self._read(chunk, new), strict=True)
        if control.way == "vote":
            return [chunk_and_vote(self._reply, chunks, question) for question in questions]
        return [map_then_reduce(self._reply, chunks, question, self._encoder, size=control.size)
                for question in questions]

    def _reply(self, context: str, question: Question) -> Reply:
        """A reply of before, or a new one."""
        return self._replies.get((context, question)) or self._read(context, [question])[0]

    def _read(self, context: str, questions: Sequence[Question]) -> list[Reply]:
        """The replies to questions about a text that is read once."""
        if not questions:
            return []
        tokens = self._model.tokenizer.encode(context) if context else np.zeros(0, np.int32)
        longest = max(len(self._model.prompt(question)) for question in questions)
        capacity = 1 + len(tokens) + longest + self._task.answer_tokens
        read = self._model.read(tokens, capacity)
        return [self._model.answer(read, question, self._task.answer_tokens) for question in questions]
