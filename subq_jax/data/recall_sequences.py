"""One batch of recall: keys bound to values among random words of the same vocabulary, and questions about them.

`mqar` is multi-query associative recall (Arora et al., 2023, arXiv:2312.04927) with the pairs spread through the
sequence: one-word keys, one-word values. A question is the key again; the model must say the value next. An asked key
occurs nowhere else in its sequence, so every question has exactly one answer.

`needles` binds `key_tokens` words to `value_tokens` words: `[MARK key value]` is a needle, `[ASK key value]` a
question. All words come from one vocabulary, so neither key nor value stands out, and keys differ within a sequence.

In training, questions follow their pair at any distance (many answers per sequence, short and long ones); in
evaluation all pairs come first, questions fill the last quarter, and every key is asked at most once. Positions are
uniform over all placements without overlap and unaligned to any block.
"""

import functools

import numpy as np

from subq_jax.data.config import DataConfig

MARK, ASK = 0, 1
HELD_OUT = 8  # one key (needles) or pairing (mqar) in so many is kept for evaluation
KEY_HINT_WEIGHT = 0.5


def generate(
    config: DataConfig,
    rng: np.random.Generator,
    rows: int,
    length: int,
    num_pairs: int,
    num_queries: int,
    held_out: bool,
) -> dict[str, np.ndarray]:
    """One batch `[rows, length]` of `config.task`; `held_out` chooses evaluation keys and layout.

    Raises:
      ValueError: when pairs and questions do not fit into `length`, or the vocabulary has too few keys.
    """
    check_fit(config, length, num_pairs, num_queries)
    make_records = _mqar_records if config.task == "mqar" else _needle_records
    filler, pairs, questions, weights = make_records(config, rng, rows, length, num_pairs, held_out)
    width = pairs.shape[-1]

    asked = _asked(rng, rows, num_pairs, num_queries)
    pair_at, query_at = _layout(rng, asked, num_pairs, length, width, separate=held_out)
    row = np.arange(rows)[:, None, None]
    offsets = np.arange(width)
    inputs = filler
    inputs[row, pair_at[..., None] + offsets] = pairs
    inputs[row, query_at[..., None] + offsets] = questions[row[..., 0], asked]

    loss_weights = np.zeros((rows, length), np.float32)
    loss_weights[row, query_at[..., None] + offsets[:-1]] = weights
    targets = np.concatenate([inputs[:, 1:], inputs[:, :1]], axis=1)
    return dict(
        inputs=inputs,
        targets=targets,
        loss_weights=loss_weights,
        answer_mask=loss_weights == 1.0,
        segment_ids=np.zeros((rows, length), np.int32),
    )


def is_held_out_key(codes: np.ndarray) -> np.ndarray:
    """Whether each needle's key, written as one integer, belongs to evaluation."""
    return _hash(codes) % np.uint64(HELD_OUT) == 0


def is_held_out_pairing(keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Whether each (key, value) of mqar belongs to evaluation: for every key the same share of the values."""
    return (_hash(keys) + values.astype(np.uint64)) % np.uint64(HELD_OUT) == 0


def _hash(codes: np.ndarray) -> np.ndarray:
    mixed = codes.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # splitmix64's finaliser
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))


def _mqar_records(config, rng, rows, length, num_pairs, held_out):
    """Filler [rows, length], pairs and questions [rows, num_pairs, 2], weights of a question's first token [1].

    The lower half of the vocabulary serves as keys, the upper half as values, and filler comes from both, less the
    keys bound in the sequence. Single tokens cannot be held out from training, so pairings (key, value) are.
    """
    vocab, num_keys = config.vocab_size, config.vocab_size // 2
    words = rng.permuted(np.tile(np.arange(num_keys, dtype=np.int32), (rows, 1)), axis=1)
    keys, free_keys = words[:, :num_pairs], words[:, num_pairs:]
    values = _redraw(
        lambda n: rng.integers(num_keys, vocab, n),
        (rows, num_pairs),
        lambda drawn: is_held_out_pairing(keys, drawn) != held_out,
    )
    pairs = np.stack([keys, values], axis=-1).astype(np.int32)
    filler = rng.integers(num_pairs, vocab, (rows, length), dtype=np.int32)  # below num_keys: an index into free_keys
    key_like = filler < num_keys
    filler[key_like] = free_keys[np.nonzero(key_like)[0], filler[key_like] - num_pairs]
    return filler, pairs, pairs, np.ones(1, np.float32)


def _needle_records(config, rng, rows, length, num_pairs, held_out):
    """As `_mqar_records`; records are [rows, num_pairs, 1 + key_tokens + value_tokens]."""
    base = config.vocab_size - 2
    codes = _redraw(
        lambda n: rng.integers(0, base**config.key_tokens, n),
        (rows, num_pairs),
        lambda drawn: (is_held_out_key(drawn) != held_out) | _repeats(drawn),
    )
    keys = codes[..., None] // base ** np.arange(config.key_tokens) % base + 2
    values = rng.integers(2, config.vocab_size, (rows, num_pairs, config.value_tokens))
    needles = np.concatenate([np.full((rows, num_pairs, 1), MARK), keys, values], axis=-1).astype(np.int32)
    questions = needles.copy()
    questions[..., 0] = ASK
    filler = rng.integers(2, config.vocab_size, (rows, length), dtype=np.int32)
    # The first word of a key is the asker's free choice; its later words can be looked up, which gives training an
    # easy first goal.
    weights = np.array([0.0] + [KEY_HINT_WEIGHT] * (config.key_tokens - 1) + [1.0] * config.value_tokens, np.float32)
    return filler, needles, questions, weights


def _redraw(draw, shape, refused):
    """Draws integers of `shape` anew until `refused(drawn) -> bool[shape]` is nowhere true."""
    drawn = draw(shape)
    while (bad := refused(drawn)).any():
        drawn[bad] = draw(np.count_nonzero(bad))
    return drawn


def _repeats(codes):
    """True at every code that an earlier column of the same row holds already."""
    order = np.argsort(codes, axis=1, kind="stable")
    ordered = np.take_along_axis(codes, order, axis=1)
    repeated = np.zeros(codes.shape, bool)
    np.put_along_axis(repeated, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
    return repeated


def _asked(rng, rows, num_pairs, num_queries):
    """Which pair each question asks for, [rows, num_queries]: no pair a second time before all were asked."""
    rounds = -(-num_queries // num_pairs)
    pairs = np.tile(np.arange(num_pairs), (rows * rounds, 1))
    return rng.permuted(pairs, axis=1).reshape(rows, -1)[:, :num_queries]


def _layout(rng, asked, num_pairs, length, width, separate):
    """First positions of pairs [rows, num_pairs] and questions [rows, num_queries], each question after its pair."""
    rows, num_queries = asked.shape
    if separate:
        border = min(max(length * 3 // 4, num_pairs * width), length - num_queries * width)
        pair_at = rng.permuted(_scatter(rng, rows, num_pairs, border, width), axis=1)
        return pair_at, border + _scatter(rng, rows, num_queries, length - border, width)
    # Rank imagined times: a question's time is uniform between its pair's and the end.
    pair_time = rng.random((rows, num_pairs))
    asked_time = np.take_along_axis(pair_time, asked, axis=1)
    query_time = 1.0 - (1.0 - asked_time) * rng.random((rows, num_queries))
    rank = np.argsort(np.argsort(np.concatenate([pair_time, query_time], axis=1), axis=1), axis=1)
    positions = np.take_along_axis(_scatter(rng, rows, num_pairs + num_queries, length, width), rank, axis=1)
    return positions[:, :num_pairs], positions[:, num_pairs:]


def _scatter(rng, rows, count, space, width):
    """Sorted first positions [rows, count] of records in `space`, uniform over all placements without overlap."""
    slots = space - count * (width - 1)
    chosen = np.argpartition(rng.random((rows, slots)), count - 1, axis=1)[:, :count]
    return np.sort(chosen, axis=1) + np.arange(count) * (width - 1)


@functools.lru_cache
def _num_held_out_keys(num_keys: int) -> int:
    return int(is_held_out_key(np.arange(min(num_keys, 2**16))).sum())  # a lower bound, enough for any sequence


def check_fit(config: DataConfig, length: int, num_pairs: int, num_queries: int) -> None:
    """Raises `ValueError` unless `length` tokens have room for the pairs and questions, and the vocabulary for keys."""
    if config.task == "mqar":
        width, most_pairs = 2, config.vocab_size // 2 - 1
        if config.vocab_size < 2 * HELD_OUT:  # every key needs a held-out value
            raise ValueError(f"data.vocab_size must be at least {2 * HELD_OUT} for mqar, got {config.vocab_size}")
    else:
        width = 1 + config.key_tokens + config.value_tokens
        if config.vocab_size < 4:
            raise ValueError(f"data.vocab_size must be at least 4 for needles, got {config.vocab_size}")
        num_keys = (config.vocab_size - 2) ** config.key_tokens
        if num_keys >= 2**62:
            raise ValueError(f"data.key_tokens={config.key_tokens} gives more than 2**62 keys; take fewer or shorter")
        most_pairs = _num_held_out_keys(num_keys) // 2  # so that distinct ones are found fast
    if num_pairs > most_pairs:
        raise ValueError(
            f"num_pairs must be at most {most_pairs} with data.vocab_size={config.vocab_size}, got {num_pairs}"
        )
    if (num_pairs + num_queries) * width > length:
        raise ValueError(
            f"length must be at least {(num_pairs + num_queries) * width} for {num_pairs} pairs and {num_queries} "
            f"questions of {width} tokens, got {length}"
        )
