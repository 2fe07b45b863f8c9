"""Text batches: packing at block boundaries, targets within documents, epochs, shards, resume, bytes."""

import json

import numpy as np
import pytest

from subq_jax.data import data_info, make_eval_batches
from subq_jax.data.packing import pack
from subq_jax.data.tokenizers import ByteTokenizer
from subq_jax.source_folder import scan

BOS, EOS, PAD = 256, 257, 258


def segments(batch):
    """(inputs, targets, first position) of each segment of each row."""
    for inputs, targets, ids in zip(batch["inputs"], batch["targets"], batch["segment_ids"], strict=True):
        for segment in range(ids.max() + 1):
            at = np.flatnonzero(ids == segment)
            assert np.array_equal(at, np.arange(at[0], at[-1] + 1))
            yield inputs[at], targets[at], int(at[0])


def texts(source_folder, split):
    documents = scan(str(source_folder)).documents
    return [(source_folder / d.path).read_bytes() for d in documents if d.split == split]


def all_rows(iterator, num_rows):
    rows = []
    while len(rows) < num_rows:
        batch = next(iterator)
        rows += [b"".join(batch[name][i].tobytes() for name in sorted(batch)) for i in range(len(batch["inputs"]))]
    return rows


def num_rows_of(source_folder, seq_len=64, block_size=16):
    sizes = [len(text) + 2 for text in texts(source_folder, "train")]
    return pack(np.cumsum([0, *sizes]), seq_len, block_size).num_rows


@pytest.mark.parametrize(("seq_len", "block_size"), [(64, 16), (50, 16), (512, 1), (16, 64)])
def test_an_epoch_holds_every_token_once_in_pieces_at_block_boundaries(
    train_iterator, source_folder, seq_len, block_size
):
    num_rows = num_rows_of(source_folder, seq_len, block_size)
    iterator = train_iterator(dict(seq_len=seq_len, batch_size=num_rows), block_size=block_size)
    batch = next(iterator)
    pieces = []
    for inputs, targets, start in segments(batch):
        assert start % block_size == 0
        assert np.array_equal(inputs[1:], targets[:-1])  # targets never cross a document
        assert EOS not in inputs and BOS not in targets
        pieces.append(bytes(targets[targets < 256].astype(np.uint8)))
    assert sorted(map(len, pieces))[-1] <= seq_len
    assert sum(map(len, pieces)) == sum(map(len, texts(source_folder, "train")))
    whole = texts(source_folder, "train")
    assert all(any(piece in text for text in whole) for piece in pieces)
    if seq_len == 512:
        assert sorted(pieces) == sorted(whole_or_cut(whole, seq_len))


def whole_or_cut(whole, seq_len):
    """Documents as consecutive chunks of `seq_len` targets, the end of the document among them."""
    return [text[i : i + seq_len] for text in whole for i in range(0, len(text) + 1, seq_len)]


def test_padding_counts_for_nothing(train_iterator):
    batch = next(train_iterator(dict(seq_len=512, batch_size=8)))
    padding = batch["segment_ids"] < 0
    assert padding.any()
    assert (batch["inputs"][padding] == PAD).all()
    assert not batch["loss_weights"][padding].any() and (batch["loss_weights"][~padding] == 1).all()
    np.testing.assert_array_equal(batch["answer_mask"], batch["loss_weights"] > 0)
    assert {name: str(value.dtype) for name, value in batch.items()} == dict(
        inputs="int32", targets="int32", loss_weights="float32", answer_mask="bool", segment_ids="int32"
    )


def test_every_epoch_has_all_rows_in_another_order(train_iterator, source_folder):
    num_rows = num_rows_of(source_folder)
    rows = all_rows(train_iterator(dict(batch_size=1)), 2 * num_rows)
    first, second = rows[:num_rows], rows[num_rows:]
    assert len(set(first)) == num_rows
    assert sorted(first) == sorted(second) and first != second
    assert all_rows(train_iterator(dict(batch_size=1), seed=1), num_rows) != first


def test_resume_is_bitwise(train_iterator):
    iterator = train_iterator()
    for _ in range(30):  # beyond the first epoch
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = [next(iterator) for _ in range(5)]
    resumed = train_iterator()
    next(resumed)
    resumed.set_state(state)
    for batch in expected:
        again = next(resumed)
        assert all(np.array_equal(batch[name], again[name]) for name in batch)


def test_shares_of_processes_make_up_the_global_batch(train_iterator):
    whole = train_iterator()
    shares = [train_iterator(process_index=i, process_count=2) for i in range(2)]
    for _ in range(12):
        batch, parts = next(whole), [next(share) for share in shares]
        for name in batch:
            np.testing.assert_array_equal(batch[name], np.concatenate([part[name] for part in parts]))


def test_a_curriculum_cuts_the_same_rows_shorter(train_iterator):
    whole, stages = train_iterator(), train_iterator(dict(curriculum=((0, 16), (2, 32), (20, 64))))
    for step in range(24):  # beyond the first epoch
        batch, cut = next(whole), next(stages)
        length = 16 if step < 2 else 32 if step < 20 else 64
        for name in batch:
            assert cut[name].shape[1] == length
            np.testing.assert_array_equal(batch[name].reshape(-1, length), cut[name])


def test_evaluation_is_the_validation_split_in_order_with_its_bytes(text_config, source_folder):
    arguments = dict(block_size=16, length=64, num_batches=1000, batch_size=3)
    batches = make_eval_batches(text_config, seed=0, **arguments)
    again = make_eval_batches(text_config, seed=1, **arguments)
    assert all(np.array_equal(a[name], b[name]) for a, b in zip(batches, again, strict=True) for name in a)
    validation = texts(source_folder, "validation")
    assert sum(int(batch["target_bytes"].sum()) for batch in batches) == sum(map(len, validation))
    for batch in batches:
        assert batch["inputs"].shape == (3, 64)
        for _, targets, _ in segments(batch):
            assert any(bytes(targets[targets < 256].astype(np.uint8)) in text for text in validation)
    fewer = make_eval_batches(text_config, seed=0, **arguments | dict(num_batches=1))
    assert len(fewer) == 1 and np.array_equal(fewer[0]["inputs"], batches[0]["inputs"])


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_bytes_per_token_is_measured_on_validation(text_config, source_folder, tokenizer):
    config = text_config | dict(tokenizer=tokenizer, bpe_vocab_size=300)
    info = data_info(config)
    batches = make_eval_batches(config, seed=0, block_size=16, length=64, num_batches=1000, batch_size=2)
    num_targets = sum(batch["loss_weights"].sum() for batch in batches)
    num_bytes = sum(map(len, texts(source_folder, "validation")))
    assert info.bytes_per_token == pytest.approx(num_bytes / num_targets)
    assert sum(batch["target_bytes"].sum() for batch in batches) == num_bytes
    assert info.vocab_size == (ByteTokenizer().vocab_size if tokenizer == "bytes" else 300)


def test_a_source_without_validation_is_refused(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "only.txt").write_text("one package")
    config = dict(task="text", seq_len=8, batch_size=1, source=str(tmp_path / "source"), data_dir=str(tmp_path / "d"))
    with pytest.raises(ValueError, match="has no validation split: it needs"):
        data_info(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(tokenizer="words"), r"data.tokenizer must be one of \('bytes', 'bpe'\), got 'words'"),
        (dict(source=None), r"data.source must be a string, got None"),
        (dict(suffix=3), r"data.suffix must be a string, got 3"),
        (dict(suffix=".rs"), r"holds no files to read whose names end in data.suffix='.rs'"),
        (dict(batch_size=0), r"data.batch_size must be an integer >= 1, got 0"),
        (dict(source="/nonexistent/folder"), r"data.source must be a folder"),
        (dict(curriculum=((0, 32, 4),)), r"data.curriculum entries must be \(first_step, length\), got \(0, 32, 4\)"),
        (dict(curriculum=((0, 48),)), r"data.curriculum lengths must divide data.seq_len=64 .* block_size=16, got 48"),
        (dict(curriculum=((0, 8),)), r"data.curriculum lengths must divide data.seq_len=64 .* block_size=16, got 8"),
        (dict(curriculum=((0, 128),)), r"data.curriculum lengths must divide data.seq_len=64 .*, got 128"),
    ],
)
def test_a_wrong_config_is_refused_at_once(train_iterator, change, message):
    with pytest.raises(ValueError, match=message):
        train_iterator(change)
