"""Questions about generated contexts as training data: tasks of `subq_jax.tasks`, with keys that evaluation never has.

A row is the beginning-of-document token, a context, and then question, answer's prefix, answer and end-of-document
token, again and again. The loss covers answers and their ends and, at a small weight, everything else. A share of the
rows may be ordinary text instead. Batches depend only on (seed, step), so that the state of the iterator is a count.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator

import grain
import numpy as np

from subq_jax.data import text_pipeline
from subq_jax.data.code_corpus import data_folder
from subq_jax.data.config import DataConfig, check_stages
from subq_jax.data.tokenizers import BpeTokenizer, ByteTokenizer, Tokenizer, train_bpe
from subq_jax.files import exclusive
from subq_jax.tasks import Haystack, Request, find_task

VERSION = 1
REMEMBERED_PIECES = 200_000
VOCABULARY_HAYSTACKS, VOCABULARY_LENGTH = 8, 131_072
PROBES = 8  # haystacks by which the room for further questions is measured
REDRAWS = 20


class QuestionRows:
    """Makes rows of any length and number.

    Args:
      config: the data section.
      tokenizer: of the text.
      seed: of the rows; training and held-out rows of one seed differ all the same.
      held_out: see `Request`.
    """

    def __init__(self, config: DataConfig, tokenizer: Tokenizer, *, seed: int, held_out: bool):
        self._config, self._seed, self._held_out = config, seed, held_out
        self._tokenizer = _Remembering(tokenizer)
        self._shape = functools.cache(self._measured_shape)

    def batch(self, rows: range, length: int) -> dict[str, np.ndarray]:
        """The rows of these numbers, `length` tokens each."""
        made = [self.row(number, length) for number in rows]
        return {name: np.stack([row[name] for row in made]) for name in made[0]}

    def row(self, number: int, length: int) -> dict[str, np.ndarray]:
        """Row `number`, one-dimensional arrays [length] of a batch; the tasks take turns.

        Raises:
          ValueError: where the task does not fit into `length`.
        """
        tasks = self._config.question_tasks
        index, place = divmod(number, len(tasks))
        haystack = self._draw(tasks[place], index, *self._shape(tasks[place], length))
        tokens = [np.array([self._tokenizer.bos_id], np.int32), haystack.tokens]
        answered = [np.zeros(len(haystack.tokens) + 1, bool)]
        room = length + 1 - len(answered[0])
        for asked, answer in self._turns(haystack):
            room -= len(asked) + len(answer)
            if room < 0:
                break
            tokens += [asked, answer]
            answered += [np.zeros(len(asked), bool), np.ones(len(answer), bool)]
        tokens, answered = np.concatenate(tokens), np.concatenate(answered)
        missing = length + 1 - len(tokens)
        padded = np.pad(tokens, (0, missing), constant_values=self._tokenizer.pad_id)
        answered = np.pad(answered, (0, missing))[1:]
        is_text = np.arange(length) < len(tokens) - 1
        weights = np.where(answered, 1.0, self._config.context_weight * is_text).astype(np.float32)
        return dict(inputs=padded[:-1], targets=padded[1:], loss_weights=weights, answer_mask=answered,
                    segment_ids=np.where(is_text, 0, -1).astype(np.int32))

    def _draw(self, task: str, index: int, length: int, num_questions: int) -> Haystack:
        """A haystack; in place of one that happens to need more room than the probes did, another."""
        for redrawn in range(index, index + REDRAWS * 2**32, 2**32):
            try:
                return self._build(task, redrawn, length, num_questions)
            except ValueError as error:
                reason = error
        raise reason

    def _build(self, task: str, index: int, length: int, num_questions: int) -> Haystack:
        return find_task(task).build(
            Request(length, self._tokenizer, self._seed, index, num_questions, held_out=self._held_out))

    def _turns(self, haystack: Haystack):
        """The tokens of each question with its prefix, and those of its answer with the end."""
        encode, end = self._tokenizer.encode, np.array([self._tokenizer.eos_id], np.int32)
        for question in haystack.questions:
            yield (np.concatenate([encode(question.text), encode(question.answer_prefix)]),
                   np.concatenate([encode(" " + ", ".join(question.outputs)), end]))

    def _measured_shape(self, task: str, length: int) -> tuple[int, int]:
        """Tokens of a haystack, and its questions, that fill a row.

        A haystack keeps room for its longest question and as many tokens as a model may answer with; a row has true
        answers instead and more questions. They are fewer than wanted where the further ones would take half of the
        row, or the task has no room for them.

        Raises:
          ValueError: where not even one question fits.
        """
        decoded = find_task(task).answer_tokens
        for num_questions in range(self._config.num_questions, 0, -1):
            try:
                probes = [self._build(task, index, length + decoded, num_questions) for index in range(PROBES)]
                turns = [[(len(asked), len(answer)) for asked, answer in self._turns(probe)] for probe in probes]
                further = max(sum(map(sum, row)) - min(map(sum, row)) for row in turns)
                if further > length // 2:
                    continue
                filled = length + decoded - further - max(answer for row in turns for _, answer in row)
                for index in range(PROBES):
                    self._build(task, index, filled, num_questions)
                return filled, num_questions
            except ValueError as error:
                reason = error
        raise ValueError(f"{task} does not fit into rows of {length} tokens") from reason


class _Remembering:
    """A tokenizer that encodes a piece that it knows from memory."""

    def __init__(self, tokenizer: Tokenizer):
        self.bos_id, self.eos_id, self.pad_id = tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id
        self.encode: Callable[[str], np.ndarray] = functools.lru_cache(REMEMBERED_PIECES)(tokenizer.encode)
        self.decode = tokenizer.decode


def train_iterator(
    config: DataConfig, *, seed: int, block_size: int, process_index: int = 0, process_count: int = 1
) -> grain.DatasetIterator:
    """Endless training batches: see `subq_jax.data.make_train_iterator`. Rows of text come first.

    Raises:
      ValueError: where the processes cannot share either kind of row evenly, or a task does not fit into a stage.
    """
    check_stages(config, block_size)
    num_text = round(config.text_share * config.batch_size)
    for name, rows in (("text", num_text), ("questions", config.batch_size - num_text)):
        if rows % process_count:
            raise ValueError(f"data.text_share={config.text_share} of data.batch_size={config.batch_size} makes {rows} "
                             f"rows of {name}, no multiple of {process_count} processes")
    rows = QuestionRows(config, tokenizer_of(config), seed=seed, held_out=False)
    for length in {config.seq_len, *(entry[1] for entry in config.curriculum)}:
        rows.batch(range(len(config.question_tasks)), length)  # the first time of a length measures, and may refuse

    def batch(step, text):
        length = config.length_at(step)
        share = (config.batch_size - num_text) * config.seq_len // length // process_count
        first = (step * process_count + process_index) * share  # a stage's rows are numbered anew: its lengths differ
        asked = rows.batch(range(first, first + share), length)
        return {name: np.concatenate([text[name], asked[name]]) for name in asked} if num_text else asked

    if num_text:
        text = dataclasses.replace(config, task="text", batch_size=num_text)
        dataset = text_pipeline.train_dataset(text, seed=seed, block_size=block_size, process_index=process_index,
                                              process_count=process_count)
    else:
        dataset = grain.MapDataset.range(1).repeat()  # Grain drops elements that are None
    return text_pipeline.prefetched(dataset.map_with_index(batch))


def eval_batches(config: DataConfig, *, seed: int, length: int, num_batches: int, batch_size: int) -> list[dict]:
    """Held-out batches of questions alone: see `subq_jax.data.make_eval_batches`."""
    rows = QuestionRows(config, tokenizer_of(config), seed=seed, held_out=True)
    return [rows.batch(range(batch * batch_size, (batch + 1) * batch_size), length) for batch in range(num_batches)]


def tokenizer_of(config: DataConfig) -> Tokenizer:
    """The tokenizer; a BPE is that of the corpus where rows of it are mixed in, and else one of the tasks' own text."""
    if config.tokenizer == "bytes":
        return ByteTokenizer()
    if config.text_share:
        return text_pipeline.TokenisedSplit.load(config, "validation").tokenizer
    folder = data_folder(config.data_dir) / "questions"
    file = folder / f"bpe-{config.bpe_vocab_size}-{'-'.join(sorted(set(config.question_tasks)))}-v{VERSION}.json"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive(folder):
            if not file.exists():
                train_bpe(_texts(config), config.bpe_vocab_size, file)
    return BpeTokenizer(file)


def _texts(config: DataConfig) -> Iterator[str]:
    """Haystacks of the tasks with their questions and answers, to learn a vocabulary from."""
    for task, index in itertools.product(sorted(set(config.question_tasks)), range(VOCABULARY_HAYSTACKS)):
        request = Request(VOCABULARY_LENGTH, ByteTokenizer(), 0, index, num_questions=16, held_out=False)
        haystack = find_task(task).build(request)
        yield haystack.context
        for question in haystack.questions:
            yield f"{question.text}{question.answer_prefix} {', '.join(question.outputs)}"
