"""What every task is made of: a haystack read once, and the questions about it.

A prompt is `context, question, answer_prefix`. Text becomes tokens one piece at a time: the tokens of a context are
those of its pieces in turn. So lengths are exact and additive for any tokenizer, 12 million tokens cost seconds
(a piece that repeats is encoded once), and a piece's place in tokens is known.
"""

import dataclasses
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

import numpy as np

from subq_jax.checks import check_integer

INT32_BYTES = 4
PIECES = ("One piece.", " Another", ".\n", "And one.")  # to try tokenizers with

Span = tuple[int, int]  # first token, and the one after the last, of the context
TRAINING_KEYS = 8  # one in so many


class TextTokenizer(Protocol):
    """What tasks need of a tokenizer; those of `subq_jax.data.tokenizers` and Hugging Face's adapted ones have it."""

    def encode(self, text: str) -> np.ndarray:
        """The tokens of a text, int [T], without special ones."""

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens; special ones have none."""


def encode_all(tokenizer: TextTokenizer, texts: list[str]) -> list[np.ndarray]:
    """The tokens of each text, int [T]; on all cores where the tokenizer has `encode_batch`."""
    encode = getattr(tokenizer, "encode_batch", None)
    return encode(texts) if encode else [tokenizer.encode(text) for text in texts]


@dataclasses.dataclass(frozen=True)
class Question:
    """One question about a haystack.

    Attributes:
      text: follows the context.
      answer_prefix: the beginning of the answer, given to the model.
      outputs: the references, in RULER's sense: what the answer should hold.
      evidence: where in the context stands what the answer needs.
      wrong: answers that the context offers beside the right one, for the score of wrong instances.
    """

    text: str
    answer_prefix: str
    outputs: tuple[str, ...]
    evidence: tuple[Span, ...] = ()
    wrong: tuple[str, ...] = ()

    def further_fields(self) -> dict:
        """What a row needs beside the fields that all rows have, to be scored by itself; for JSON."""
        return {}


Score = Callable[[str, Question], float]


@dataclasses.dataclass(frozen=True, eq=False)
class Haystack:
    """A context and its questions; each prompt with room for the answer is at most `length` tokens.

    Attributes:
      task: the task's name.
      index: which haystack of the seed.
      pieces: the context's text.
      tokens: int32 [S], the context's tokens.
      questions: at least one.
      length: the length asked for, in tokens.
      wanted: questions asked for, by which rows are numbered: no two of a study share an `index`, though some haystacks
        have fewer to ask.
    """

    task: str
    index: int
    pieces: tuple[str, ...]
    tokens: np.ndarray
    questions: tuple[Question, ...]
    length: int
    wanted: int = 1

    @property
    def context(self) -> str:
        """The whole text before the questions."""
        return "".join(self.pieces)

    def rows(self) -> Iterator[dict]:
        """One row a question, with the fields of RULER's JSONL files and `task`, `haystack`, `evidence`, `wrong`.

        A row is all that `subq_jax.tasks.score_row` needs; `code_body` has a field `body` for it.
        `token_position_answer` is where the first evidence begins; in RULER's files it is where the answer itself does.
        `length` is the length asked for, which samples go by; there it is the prompt's own and the room for the answer.
        """
        context = self.context
        for number, question in enumerate(self.questions):
            yield {"input": context + question.text} | self.row(number) | question.further_fields()

    def row(self, number: int) -> dict:
        """The row of question `number` without `input`, which the task makes again from seed, length and index."""
        question = self.questions[number]
        return {
            "index": self.index * max(self.wanted, len(self.questions)) + number, "outputs": list(question.outputs),
            "length": self.length, "answer_prefix": question.answer_prefix,
            "token_position_answer": question.evidence[0][0] if question.evidence else -1, "task": self.task,
            "haystack": self.index, "evidence": [list(span) for span in question.evidence],
            "wrong": list(question.wrong)}


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """What a haystack is asked to be.

    Attributes:
      length: tokens of a prompt and its answer at most.
      tokenizer: turns text into tokens.
      seed: of a study; `index` numbers the haystacks of a seed and length.
      num_questions: how many are asked about one haystack; a task may have fewer to ask.
      corpus: natural text, a document each, for tasks whose haystack is made of it; never seen in training.
      held_out: whether keys are those that evaluation alone asks about, or those of training.

    Raises:
      ValueError: for a number out of range or a document with lone surrogates, naming it.
    """

    length: int
    tokenizer: TextTokenizer
    seed: int = 0
    index: int = 0
    num_questions: int = 1
    corpus: tuple[str, ...] = ()
    held_out: bool = True

    def __post_init__(self):
        for name, floor in (("length", 1), ("seed", 0), ("index", 0), ("num_questions", 1)):
            check_integer(name, getattr(self, name), floor)
        for number, document in enumerate(self.corpus):
            try:
                document.isascii() or document.encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"corpus[{number}] must be text that UTF-8 can write: {error}") from None

    def rng(self, task: str) -> np.random.Generator:
        """The source of everything random in this haystack of `task`."""
        training = () if self.held_out else (1,)
        return np.random.default_rng((self.seed, zlib.crc32(task.encode()), self.length, self.index, *training))

    def admits(self, key: str) -> bool:
        """Whether a haystack of this request may hold `key`: an eighth of all keys is for training, the rest is not."""
        return (zlib.crc32(key.encode()) % TRAINING_KEYS != 0) == self.held_out


@dataclasses.dataclass(frozen=True)
class Task:
    """A kind of haystack and question.

    Attributes:
      name: unique.
      build: makes a haystack; raises ValueError if the length is below the task's minimum or the corpus too small,
        saying by how much.
      score: of an answer's text to a question, 0 to 1.
      answer_tokens: how many tokens an answer may take, RULER's `tokens_to_generate`.
      source: who defined the task, and how this one differs.
      further_scores: what else an answer is measured by, such as its likeness to wrong instances, 0 to 1 each; by name.
      chance: the score of guessing, by lot among answers of the form asked for or as `source` says; None where it was
        not counted, or is no single number.
    """

    name: str
    build: Callable[[Request], Haystack]
    score: Score
    answer_tokens: int
    source: str
    further_scores: Mapping[str, Score] = dataclasses.field(default_factory=dict)
    chance: float | None = None


class Encoder:
    """Encodes pieces of text, each distinct one once: tasks measure a piece first and use it much later.

    Raises:
      ValueError: for a tokenizer that adds to pieces what is not there, as those do that begin every text with a space.
    """

    def __init__(self, tokenizer: TextTokenizer):
        given = tokenizer.decode(np.concatenate([tokenizer.encode(piece) for piece in PIECES]))
        if given != "".join(PIECES):
            raise ValueError(f"tokenizer must give back {''.join(PIECES)!r} from pieces encoded apart, got {given!r}")
        self._tokenizer = tokenizer
        self._known: dict[str, bytes] = {}  # of int32: small, and quickly joined

    def learn(self, texts: Iterable[str]) -> None:
        """Encodes texts that will be asked for together."""
        new = list({text: None for text in texts if text not in self._known})
        self._known.update(zip(new, map(_as_bytes, encode_all(self._tokenizer, new)), strict=True))

    def joined(self, texts: Iterable[str]) -> tuple[np.ndarray, list[int]]:
        """The tokens of the texts in turn, int32 [S], and how many the texts have, each encoded on its own."""
        encoded = [self._encode(text) for text in texts]
        return np.frombuffer(bytearray().join(encoded), np.int32), [len(tokens) // INT32_BYTES for tokens in encoded]

    def count(self, *texts: str) -> int:
        """Tokens of the texts, each encoded on its own."""
        return sum([len(self._encode(text)) for text in texts]) // INT32_BYTES

    def _encode(self, text: str) -> bytes:
        if (tokens := self._known.get(text)) is None:
            tokens = self._known[text] = _as_bytes(self._tokenizer.encode(text))
        return tokens


def _as_bytes(tokens: np.ndarray) -> bytes:
    return np.asarray(tokens, np.int32).tobytes()


def assemble(request: Request, task: str, pieces: Iterable[str], ask: Callable[[list[Span]], Iterable[Question]],
             encoder: Encoder, answer_tokens: int) -> Haystack:
    """The haystack of `pieces`; `ask` gets the span of every piece and returns the questions.

    Raises:
      ValueError: when a prompt with its answer is longer than asked: the task's own sums are wrong.
    """
    pieces = tuple(pieces)
    tokens, sizes = encoder.joined(pieces)
    ends = np.cumsum(sizes).tolist()
    spans = list(zip([0, *ends[:-1]], ends, strict=True))
    questions = tuple(ask(spans))
    haystack = Haystack(task, request.index, pieces, tokens, questions, request.length, request.num_questions)
    for question in questions:
        used = len(haystack.tokens) + encoder.count(question.text, question.answer_prefix) + answer_tokens
        if used > request.length:
            raise ValueError(f"{task} needs {used} tokens where length={request.length}")
    return haystack


def corpus_too_small(request: Request, task: str, missing: int, more: str = "") -> ValueError:
    """The error of a task whose corpus lacks so many tokens; `more` ends the sentence."""
    return ValueError(f"{task} needs {missing} more tokens of corpus for length={request.length}{more}: give a larger "
                      f"folder of text as --corpus; this one has {len(request.corpus)} documents")


def room_for_context(request: Request, task: str, encoder: Encoder, answer_tokens: int, *fixed: str) -> int:
    """Tokens left for the filling of a context, beside the `fixed` texts of the prompt and the answer.

    Raises:
      ValueError: when nothing is left, saying how many tokens are needed.
    """
    used = encoder.count(*fixed) + answer_tokens
    if used >= request.length:
        raise ValueError(f"{task} needs length > {used} with this tokenizer, got {request.length}")
    return request.length - used
