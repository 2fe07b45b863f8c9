"""Recall tasks: one true answer each, held-out keys, the layout of questions, the curriculum and the errors."""

import json

import numpy as np
import pytest

from subq_jax.data import data_info, make_eval_batches, make_train_iterator
from subq_jax.data.recall import stage
from subq_jax.data.recall_sequences import ASK, HELD_OUT, MARK

MQAR = dict(task="mqar", seq_len=128, batch_size=8, vocab_size=64, num_pairs=8, num_queries=16)
NEEDLES = dict(task="needles", seq_len=128, batch_size=8, vocab_size=64, num_pairs=6, num_queries=8)
TASKS = pytest.mark.parametrize("config", [MQAR, NEEDLES], ids=["mqar", "needles"])


def train_batch(config, seed=0, **kwargs):
    return next(make_train_iterator(config, seed=seed, block_size=16, **kwargs))


def eval_batch(config, length=128, seed=0, batch_size=8):
    [batch] = make_eval_batches(config, seed=seed, block_size=16, length=length, num_batches=1, batch_size=batch_size)
    return batch


def batches_of_both_kinds(config):
    return [train_batch(config), eval_batch(config), eval_batch(config, length=1024)]


def solve(config, tokens, t):
    """Answers the question whose answer starts at `t + 1`, from the tokens up to `t` only; (answer, where it stood)."""
    if config["task"] == "mqar":
        found = [s for s in range(t) if tokens[s] == tokens[t]]
        width = 1
    else:
        key = tokens[t - config.get("key_tokens", 2) + 1 : t + 1].tolist()
        found = [
            s + len(key)
            for s in range(t - len(key))
            if tokens[s] in (MARK, ASK) and tokens[s + 1 : s + 1 + len(key)].tolist() == key
        ]
        width = config.get("value_tokens", 2)
    answers = {tuple(tokens[s + 1 : s + 1 + width].tolist()) for s in found}
    assert len(answers) == 1, f"{len(answers)} answers to the question at {t}"
    return answers.pop(), min(found)


def first_answers(config, batch):
    """(row, position of the last key token) of each question."""
    mask = batch["answer_mask"]
    starts = mask & ~np.pad(mask, ((0, 0), (1, 0)))[:, :-1] if config["task"] == "needles" else mask
    return np.argwhere(starts).tolist()


@TASKS
def test_a_lexical_solver_answers_every_question(config):
    for batch in batches_of_both_kinds(config):
        questions = first_answers(config, batch)
        assert len(questions) >= 8 * 6
        for row, t in questions:
            answer, _ = solve(config, batch["inputs"][row], t)
            assert tuple(batch["targets"][row, t : t + len(answer)].tolist()) == answer


@TASKS
def test_targets_are_the_next_inputs_wherever_they_are_supervised(config):
    for batch in batches_of_both_kinds(config):
        rows, at = np.nonzero(batch["loss_weights"])
        assert at.max() < batch["inputs"].shape[1] - 1
        np.testing.assert_array_equal(batch["targets"][rows, at], batch["inputs"][rows, at + 1])
        assert (batch["loss_weights"][batch["answer_mask"]] == 1).all()


def test_later_key_tokens_of_a_needle_question_are_an_easy_goal():
    batch = train_batch(NEEDLES | dict(key_tokens=3, value_tokens=2))
    row, t = first_answers(NEEDLES, batch)[0]
    assert batch["inputs"][row, t - 3] == ASK
    np.testing.assert_array_equal(batch["loss_weights"][row, t - 3 : t + 3], [0, 0.5, 0.5, 1, 1, 0])
    np.testing.assert_array_equal(batch["answer_mask"][row, t - 3 : t + 3], [0, 0, 0, 1, 1, 0])


@TASKS
def test_evaluation_asks_in_the_last_quarter_from_all_over_the_sequence(config):
    length, window = 4096, 128
    batch = eval_batch(config, length=length, batch_size=16)
    distances = []
    for row, t in first_answers(config, batch):
        assert t >= length * 3 // 4
        distances.append(t - solve(config, batch["inputs"][row], t)[1])
    assert np.mean(np.array(distances) > window) > 0.9
    assert max(distances) > 0.9 * length and min(distances) < 0.4 * length


@TASKS
def test_training_asks_near_and_far(config):
    config = config | dict(num_queries=10)
    batches = [train_batch(config, seed=seed) for seed in range(4)]
    distances = np.array(
        [t - solve(config, batch["inputs"][row], t)[1] for batch in batches for row, t in first_answers(config, batch)]
    )
    assert (distances < 24).mean() > 0.1
    assert (distances > 64).mean() > 0.1


@TASKS
def test_positions_are_unaligned_to_blocks(config):
    batch = eval_batch(config, length=1024, batch_size=64)
    starts = np.array([solve(config, batch["inputs"][row], t)[1] for row, t in first_answers(config, batch)])
    assert set(starts % 16) == set(range(16))


def bindings(config, batch):
    """Keys (needles) or (key, value) pairs (mqar) asked for in a batch."""
    tokens, size = batch["inputs"], config.get("key_tokens", 2)
    if config["task"] == "mqar":
        return {(int(tokens[row, t]), int(batch["targets"][row, t])) for row, t in first_answers(config, batch)}
    return {tuple(tokens[row, t - size + 1 : t + 1].tolist()) for row, t in first_answers(config, batch)}


@TASKS
def test_evaluation_keys_never_occur_in_training(config):
    config = config | dict(vocab_size=32)
    iterator = make_train_iterator(config, seed=0, block_size=16)
    trained = set().union(*(bindings(config, next(iterator)) for _ in range(60)))
    evaluated = set().union(*(bindings(config, eval_batch(config, seed=seed)) for seed in range(20)))
    assert len(trained) > 150 and len(evaluated) > 25  # of 16 * 16 * 7/8 and 16 * 16 / 8 (mqar)
    assert not trained & evaluated


@TASKS
def test_every_binding_belongs_to_training_or_evaluation_by_its_share(config):
    config = config | dict(vocab_size=16, num_pairs=2, num_queries=2)
    possible = 8 * 8 if config["task"] == "mqar" else 14 * 14
    evaluated = set().union(*(bindings(config, eval_batch(config, seed=seed, batch_size=64)) for seed in range(8)))
    assert possible / HELD_OUT * 0.5 < len(evaluated) < possible / HELD_OUT * 2


@TASKS
def test_batches_depend_on_seed_step_and_process_only(config):
    def same(a, b):
        return all(np.array_equal(a[name], b[name]) for name in a)

    iterator = make_train_iterator(config, seed=3, block_size=16)
    first, second = next(iterator), next(iterator)
    assert not same(first, second)
    assert same(first, train_batch(config, seed=3))
    assert not same(first, train_batch(config, seed=4))
    state = json.loads(json.dumps(iterator.get_state()))
    third = next(iterator)
    resumed = make_train_iterator(config, seed=3, block_size=64)
    resumed.set_state(state)
    assert same(third, next(resumed))
    shares = [train_batch(config, seed=3, process_index=i, process_count=2) for i in range(2)]
    assert all(share["inputs"].shape == (4, 128) for share in shares)
    assert not same(*shares)
    assert same(eval_batch(config), eval_batch(config))


@TASKS
def test_curriculum_keeps_the_tokens_of_a_batch(config):
    config = config | dict(curriculum=((0, 32, 1), (2, 64, 2), (4, 128, 8)))
    iterator = make_train_iterator(config, seed=0, block_size=16)
    shapes = [next(iterator)["inputs"].shape for _ in range(6)]
    assert shapes == [(32, 32), (32, 32), (16, 64), (16, 64), (8, 128), (8, 128)]


def test_curriculum_keeps_questions_per_token():
    from subq_jax.data import DataConfig

    config = DataConfig.from_mapping(MQAR | dict(curriculum=((0, 32, 4), (5, 256, 16))))
    assert [stage(config, step) for step in (0, 4, 5)] == [(32, 4, 4), (32, 4, 4), (256, 16, 32)]


@TASKS
def test_long_sequences(config):
    batch = eval_batch(config, length=65_536, batch_size=2)
    assert batch["inputs"].shape == (2, 65_536)
    assert len(first_answers(config, batch)) == 2 * min(config["num_pairs"], config["num_queries"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(num_pairs=0), r"data.num_pairs must be an integer >= 1, got 0"),
        (dict(num_queries=float("nan")), r"data.num_queries must be an integer >= 1, got nan"),
        (dict(seq_len=True), r"data.seq_len must be an integer"),
        (dict(num_pairs=60, vocab_size=256), r"length must be at least 152 .* got 128"),
        (dict(num_pairs=32), r"num_pairs must be at most 31 .* got 32"),
        (dict(vocab_size=15, num_pairs=1), r"data.vocab_size must be at least 16 for mqar"),
        (dict(curriculum=((1, 32, 4),)), r"curriculum must start at step 0"),
        (dict(curriculum=((0, 32, 4), (0, 64, 4))), r"rising first_step"),
        (dict(curriculum=((0, 100, 4),)), r"curriculum length must divide"),
        (dict(curriculum=((0, 32),)), r"\(first_step, length, num_pairs\)"),
        (dict(task="copy"), r"data.task must be one of .*mqar.*needles.*text.* got 'copy'"),
        (dict(num_pair=3), r"data has no field \['num_pair'\]; known fields"),
    ],
)
def test_a_wrong_config_is_refused_at_once(change, message):
    with pytest.raises(ValueError, match=message):
        make_train_iterator(MQAR | change, seed=0, block_size=16)


def test_too_many_needles_for_the_keys_are_refused():
    with pytest.raises(ValueError, match="num_pairs must be at most"):
        data_info(NEEDLES | dict(key_tokens=1, vocab_size=34, num_pairs=6))


def test_an_uneven_share_is_refused():
    with pytest.raises(ValueError, match="batch_size must be a multiple of 3"):
        make_train_iterator(MQAR, seed=0, block_size=16, process_count=3)


def test_evaluation_refuses_a_length_without_room():
    with pytest.raises(ValueError, match="length must be at least 32"):
        eval_batch(MQAR, length=16)


def test_the_fingerprint_follows_the_task_fields_only():
    base = data_info(MQAR)
    assert base.vocab_size == 64 and base.bytes_per_token is None
    assert data_info(MQAR | dict(tokenizer="bpe")).fingerprint == base.fingerprint
    assert data_info(MQAR | dict(num_pairs=7)).fingerprint != base.fingerprint
