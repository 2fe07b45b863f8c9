"""A model answers the questions of a haystack: the context is read once, whatever the number of questions."""

import dataclasses
import time
from typing import Any, NamedTuple

import numpy as np

from subq_jax.attention.mechanisms import SELECTING
from subq_jax.data.tokenizers import Tokenizer
from subq_jax.evaluation.evidence import evidence_recall
from subq_jax.inference.reader import Read, Reader
from subq_jax.model.config import DecoderConfig
from subq_jax.model.flops import forward_flops
from subq_jax.tasks import Haystack, Question, Task

DECIDING_TOKENS = 8  # of an answer: what follows is copied, or another sentence of a model that does not end


@dataclasses.dataclass(frozen=True)
class Price:
    """What an answer costs if its question is asked alone: all that was read for it counts, shared or not.

    Attributes:
      tokens_read: given to the model: beginnings of documents, contexts, questions and prefixes of answers.
      tokens_written: by the model, the end of an answer included.
      flops: of the forward passes over both, analytic; the last token written is not read again.
      seconds: of a clock that saw reading, writing and searching, compilation included where it happened; not the
        making of tokens from text.
    """

    tokens_read: int = 0
    tokens_written: int = 0
    flops: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: "Price") -> "Price":
        return Price(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))


@dataclasses.dataclass(frozen=True)
class Reply:
    """An answer.

    Attributes:
      text: without the answer's prefix; "" where the answer ends before it begins.
      confidence: the least probability that the model gave to one of the first DECIDING_TOKENS tokens, 0 to 1.
      price: what it cost.
      tokens: as the model said it, the end included; none where no model did.
    """

    text: str
    confidence: float = 1.0
    price: Price = Price()
    tokens: tuple[int, ...] = ()


class Context(NamedTuple):
    """A context that was read, and the seconds that it took."""

    read: Read
    seconds: float


class AnsweringModel:
    """A trained model with its tokenizer, as it answers questions about contexts; greedily."""

    def __init__(self, reader: Reader, tokenizer: Tokenizer, config: DecoderConfig):
        self.reader, self.tokenizer, self.config = reader, tokenizer, config
        chooses = config.mechanism in SELECTING and "selective" in config.layer_kinds
        self._selection = config.arm.selection_config() if chooses else None

    def read(self, tokens: np.ndarray, capacity: int) -> Context:
        """Reads the beginning-of-document token and int [S]; `capacity` is of tokens, the later prompt's included.

        Raises:
          ValueError: where the tokenizer has ids that the model does not know, or the capacity is too small.
        """
        start = time.perf_counter()
        read = self.reader.read(np.concatenate([[self.tokenizer.bos_id], tokens]), capacity)
        return Context(read, time.perf_counter() - start)

    def prompt(self, question: Question) -> np.ndarray:
        """The tokens int32 [T] that follow the context."""
        return np.concatenate([self.tokenizer.encode(question.text), self.tokenizer.encode(question.answer_prefix)])

    def answer(self, context: Context, question: Question, num_tokens: int) -> Reply:
        """The answer, which ends with the end-of-document token or after `num_tokens`."""
        prompt, end = self.prompt(question), self.tokenizer.eos_id
        start = time.perf_counter()
        said = self.reader.greedy(context.read, prompt, num_tokens, end)
        seconds = context.seconds + time.perf_counter() - start
        read, written = context.read.length + len(prompt), len(said.tokens)
        flops = forward_flops(self.config, read + written - 1)["total"]
        confidence = float(np.exp(said.log_probs[:DECIDING_TOKENS].min()))
        text = self.tokenizer.decode(said.tokens[: written - (said.tokens[-1] == end)])
        return Reply(text, confidence, Price(read, written, flops, seconds), tuple(said.tokens.tolist()))

    def evidence(self, context: Context, question: Question, reply: Reply) -> dict[str, float | None]:
        """`evidence_recall` and `evidence_always` of the answer; see `evaluation.evidence`."""
        prompt = self.prompt(question)
        if self._selection is None or not question.evidence or not len(prompt):
            return {"evidence_recall": None, "evidence_always": None}
        chosen = self.reader.chosen(context.read, prompt, np.asarray(reply.tokens))
        spans = [(start + 1, end + 1) for start, end in question.evidence]  # after the beginning of the document
        return evidence_recall(chosen, context.read.length + len(prompt) - 1, spans, self._selection)


def answer_questions(model: AnsweringModel, task: Task, haystack: Haystack) -> list[dict[str, Any]]:
    """What the model says to every question about the whole context, and what it scores; a row each, see `answer_row`.

    The model sees the beginning-of-document token, the context, the question and the answer's prefix.

    Raises:
      ValueError: where the tokenizer has ids that the model does not know.
    """
    context, rows = model.read(haystack.tokens, haystack.length + 1), []
    for number, question in enumerate(haystack.questions):
        reply = model.answer(context, question, task.answer_tokens)
        rows.append(answer_row(task, haystack, number, reply) | model.evidence(context, question, reply))
    return rows


def answer_row(task: Task, haystack: Haystack, number: int, reply: Reply) -> dict[str, Any]:
    """The row of a sample.

    Returns:
      `haystack.row` with `answer`: the text said, `score`: 0 to 1, `further_scores`: those of the task, by name,
      `depth`: the share of the context before the first evidence, None where there is none, the fields of `Price`, and
      `control`, `evidence_recall` and `evidence_always` None: of an answer that read the whole context with a model
      that does not choose.
    """
    question = haystack.questions[number]
    depth = question.evidence[0][0] / len(haystack.tokens) if question.evidence else None
    return haystack.row(number) | {
        "answer": reply.text, "score": task.score(reply.text, question), "depth": depth, "control": None,
        "further_scores": {name: score(reply.text, question) for name, score in task.further_scores.items()},
        "evidence_recall": None, "evidence_always": None} | dataclasses.asdict(reply.price)
