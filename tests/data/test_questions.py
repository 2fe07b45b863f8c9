"""Questions as training data: what a row holds, whose keys it has, and that a stream can be shared and continued."""

import re
import shutil

import numpy as np
import pytest

from subq_jax.data import data_info, make_eval_batches, make_train_iterator
from subq_jax.data.tokenizers import ByteTokenizer
from subq_jax.tasks import TEACHABLE

BYTES = ByteTokenizer()
CONFIG = dict(task="questions", seq_len=768, batch_size=8, question_tasks=TEACHABLE, num_questions=3)
KEYS = {
    name: r"for ([\w-]+) is: " for name in TEACHABLE
} | {"phonebook": r"^([A-Z]\w+ [A-Z]\. \w+): ", "mqar": r"^([a-z]{5}) \d{4}$"}


def iterator(block_size=16, **changes):
    shares = {name: changes.pop(name) for name in ("process_index", "process_count") if name in changes}
    return make_train_iterator(CONFIG | changes, seed=0, block_size=block_size, **shares)


def turns(batch, row):
    """The texts of a row between its ends of answers, and the answers."""
    inputs, targets, answered = (batch[name][row] for name in ("inputs", "targets", "answer_mask"))
    edges = np.flatnonzero(np.diff(np.concatenate([[0], answered, [0]])))
    starts, ends = edges[::2], edges[1::2]
    asked = [inputs[end:start + 1] for end, start in zip([0, *ends[:-1]], starts, strict=True)]
    return list(map(BYTES.decode, asked)), [targets[start:end] for start, end in zip(starts, ends, strict=True)]


@pytest.mark.parametrize("task", TEACHABLE)
def test_a_row_is_context_questions_and_answers(task):
    batch = next(iterator(question_tasks=(task,), seq_len=1536))
    for row in range(8):
        (first, *further), answers = turns(batch, row)
        context = first[:first.rindex("\nWhat")]
        assert len(answers) == (1 if task == "niah_single_1" else 3)
        for question, answer in zip([first[len(context):], *further], answers, strict=True):
            assert answer[-1] == BYTES.eos_id and BYTES.decode(answer).startswith(" ")
            values = BYTES.decode(answer)[1:].split(", ")
            keys = re.findall(KEYS[task], context, re.MULTILINE)
            asked = [key for key in keys if re.search(rf"\b{key}\b", question.replace("\n", " "))]
            assert len(asked) == len(values)
            for key in asked:
                assert any(re.search(rf"\b{key}(:| is:)? {value}\b", context) for value in values)


def test_answers_are_learned_and_the_rest_a_little():
    batch = next(iterator(context_weight=0.25))
    is_text = batch["segment_ids"] == 0
    np.testing.assert_array_equal(batch["targets"] != BYTES.pad_id, is_text)
    np.testing.assert_array_equal(batch["loss_weights"], np.where(batch["answer_mask"], 1, 0.25 * is_text))
    assert np.array_equal(batch["inputs"][:, 1:][is_text[:, 1:]], batch["targets"][:, :-1][is_text[:, 1:]])
    assert is_text.mean() > 0.6  # rows are nearly full


@pytest.mark.parametrize("task", TEACHABLE)
def test_evaluation_asks_about_no_key_of_training(task):
    config = CONFIG | {"question_tasks": (task,), "seq_len": 1024}
    rows = iterator(**config)
    training, held_out = ([BYTES.decode(row) for batch in batches for row in batch["inputs"]] for batches in (
        [next(rows) for _ in range(6)],
        make_eval_batches(config, seed=0, block_size=16, length=1024, num_batches=6, batch_size=8)))
    seen, asked = ({key for text in texts for key in re.findall(KEYS[task], text, re.MULTILINE)}
                   for texts in (training, held_out))
    assert min(len(seen), len(asked)) >= 48 and not seen & asked


def test_processes_share_the_rows_and_a_stream_goes_on_where_it_was():
    whole, halves = iterator(), [iterator(process_index=i, process_count=2) for i in range(2)]
    for _ in range(2):
        batch, parts = next(whole), list(map(next, halves))
        for name in batch:
            np.testing.assert_array_equal(batch[name], np.concatenate([part[name] for part in parts]))
    state, expected = whole.get_state(), next(whole)
    again = iterator()
    again.set_state(state)
    np.testing.assert_array_equal(next(again)["inputs"], expected["inputs"])
    assert not np.array_equal(next(again)["inputs"], expected["inputs"])


def test_a_curriculum_of_lengths():
    rows = iterator(question_tasks=("phonebook",), curriculum=((0, 384), (1, 768)))
    assert [next(rows)["inputs"].shape for _ in range(2)] == [(16, 384), (8, 768)]


def test_text_beside_questions(source_folder, data_dir):
    mixed = dict(source=str(source_folder), data_dir=str(data_dir), text_share=0.25, question_tasks=("mqar",))
    batch = next(iterator(**mixed))
    texts = [BYTES.decode(row) for row in batch["inputs"]]
    assert ["def f" in text for text in texts] == [True] * 2 + [False] * 6
    assert ["Each line gives" in text for text in texts] == [False] * 2 + [True] * 6
    text = next(make_train_iterator(CONFIG | mixed | {"task": "text", "batch_size": 2}, seed=0, block_size=16))
    for name in text:
        np.testing.assert_array_equal(batch[name][:2], text[name])
    assert all("Each line gives" in BYTES.decode(row) for row in make_eval_batches(
        CONFIG | mixed, seed=0, block_size=16, length=768, num_batches=1, batch_size=4)[0]["inputs"])


def test_a_corpus_that_changed_makes_other_data(source_folder, data_dir, tmp_path):
    folder = tmp_path / "source"
    shutil.copytree(source_folder, folder)
    mixed = CONFIG | dict(source=str(folder), data_dir=str(data_dir), text_share=0.25, question_tasks=("mqar",))
    before = data_info(mixed).fingerprint
    assert before == data_info(mixed).fingerprint
    (folder / "package0" / "module0.py").write_text("changed = True\n")
    assert before != data_info(mixed).fingerprint


def test_a_vocabulary_of_the_tasks_own(tmp_path, monkeypatch):
    monkeypatch.setattr("subq_jax.data.questions.VOCABULARY_LENGTH", 4096)
    config = CONFIG | {"question_tasks": ("phonebook",), "tokenizer": "bpe", "bpe_vocab_size": 600,
                       "data_dir": str(tmp_path)}
    info = data_info(config)
    assert info.vocab_size == 600 and info == data_info(config)
    assert info.fingerprint != data_info(config | {"bpe_vocab_size": 601}).fingerprint
    batch = next(make_train_iterator(config, seed=0, block_size=16))
    assert (batch["inputs"] < 600).all() and (batch["inputs"] >= 256).mean() > 0.5


@pytest.mark.parametrize(("wrong", "message"), [
    (dict(question_tasks=()), "question_tasks must be some of .*phonebook.*got"),
    (dict(question_tasks=("vt",)), "question_tasks must be some of .*got .'vt'"),
    (dict(question_tasks="mqar"), "question_tasks must be some of"),
    (dict(text_share=1.5), "text_share must be in"),
    (dict(context_weight=-1.0), "context_weight must be in"),
    (dict(num_questions=0), "num_questions must be an integer >= 1"),
    (dict(seq_len=64), "phonebook does not fit into rows of 64"),
    (dict(curriculum=((0, 100), (5, 768))), "curriculum lengths must divide"),
    (dict(text_share=0.125, process_count=2), "1 rows of text, no multiple of 2 processes")])
def test_what_cannot_be_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        iterator(**wrong)
