"""Synthetic recall as data: endless training batches by a curriculum, and held-out ones of any length.

What is in a batch stands in `subq_jax.data.recall_sequences`. Batches depend only on (seed, step, process), so that the
state of the iterator is one integer.
"""

import numpy as np

from subq_jax.data.config import DataConfig
from subq_jax.data.recall_sequences import check_fit, generate

VERSION = 1
_TRAINING, _EVALUATION = 0, 1


class RecallIterator:
    """Endless training batches of a recall task: see `subq_jax.data`.

    Every batch of every curriculum stage holds the same number of tokens, so a jitted step compiles once a stage.
    """

    def __init__(self, config: DataConfig, *, seed: int, process_index: int = 0, process_count: int = 1):
        check(config, process_count)
        self._config, self._seed = config, seed
        self._process_index, self._process_count = process_index, process_count
        self._step = 0

    def __iter__(self):
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        length, num_pairs, num_queries = stage(self._config, self._step)
        rows = self._config.batch_size * self._config.seq_len // length // self._process_count
        rng = np.random.default_rng((self._seed, _TRAINING, self._process_index, self._step))
        self._step += 1
        return generate(self._config, rng, rows, length, num_pairs, num_queries, held_out=False)

    def get_state(self) -> dict[str, int]:
        return {"step": self._step}

    def set_state(self, state: dict[str, int]) -> None:
        self._step = int(state["step"])


def eval_batches(config: DataConfig, *, seed: int, length: int, num_batches: int, batch_size: int) -> list[dict]:
    """Held-out batches with all questions in the last quarter: see `subq_jax.data.make_eval_batches`.

    Longer sequences than `seq_len` keep `num_pairs` and `num_queries`; only the haystack grows.
    """
    check(config)
    num_queries = _num_eval_queries(config)
    return [
        generate(
            config,
            np.random.default_rng((seed, _EVALUATION, length, index)),
            batch_size,
            length,
            config.num_pairs,
            num_queries,
            held_out=True,
        )
        for index in range(num_batches)
    ]


def check_eval_length(config: DataConfig, length: int) -> None:
    """Raises `ValueError` unless held-out sequences of `length` tokens have room for all pairs and questions."""
    check_fit(config, length, config.num_pairs, _num_eval_queries(config))


def stage(config: DataConfig, step: int) -> tuple[int, int, int]:
    """(length, num_pairs, num_queries) of training step `step`."""
    length, num_pairs = config.seq_len, config.num_pairs
    for first_step, stage_length, stage_pairs in config.curriculum:
        if first_step <= step:
            length, num_pairs = stage_length, stage_pairs
    return length, num_pairs, max(1, config.num_queries * length // config.seq_len)


def check(config: DataConfig, process_count: int = 1) -> None:
    """Raises `ValueError` unless every stage of training, and evaluation at its length, can be generated."""
    tokens = config.batch_size * config.seq_len
    for first_step in [entry[0] for entry in config.curriculum] or [0]:
        length, num_pairs, num_queries = stage(config, first_step)
        if tokens % (length * process_count):
            raise ValueError(
                f"data.curriculum length must divide the tokens of a process's batch, "
                f"batch_size*seq_len/process_count={tokens / process_count:g}, got {length}"
            )
        check_fit(config, length, num_pairs, num_queries)
    check_eval_length(config, config.seq_len)


def _num_eval_queries(config: DataConfig) -> int:
    return min(config.num_pairs, config.num_queries)
