"""Batches of real text: tokenised once, packed at block boundaries, shuffled, sharded and batched with Grain.

A document becomes `[bos, tokens..., eos]`: inputs are all but the last, targets all but the first, so every byte of
the text and the end are predicted, and never across documents. Packing is done once for a row length, and each epoch
draws the rows in a new order: with attention kept inside segments it does not matter which documents share a row. Grain
handles row numbers only and each batch is gathered in one go, since its cost is per element.
"""

import dataclasses
import functools
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import grain
import numpy as np
import tensorflow_datasets as tfds

from subq_jax.data.code_corpus import prepare
from subq_jax.data.config import DataConfig, check_stages
from subq_jax.data.packing import Packing, pack
from subq_jax.data.tokenizers import SMALLEST_BPE, BpeTokenizer, ByteTokenizer, Tokenizer, train_bpe
from subq_jax.files import exclusive, sync
from subq_jax.tasks.haystack import encode_all

VERSION = 1
PREFETCHED_BATCHES = 4
TOGETHER = 4 << 20  # characters that are encoded at once: enough for all cores, few enough for memory


@dataclasses.dataclass(frozen=True, eq=False)
class TokenisedSplit:
    """All tokens of a split in one stream; document `i` is `tokens[document_starts[i]:document_starts[i + 1]]`."""

    tokens: np.ndarray
    document_starts: np.ndarray
    tokenizer: Tokenizer
    fingerprint: str

    @classmethod
    def load(cls, config: DataConfig, split: str) -> "TokenisedSplit":
        """Prepares the dataset, its tokenizer and the tokens of `split` where they are missing, and opens them.

        Raises:
          ValueError: when the source is unusable or has no such split, which it lacks with too few packages.
        """
        if config.tokenizer == "bpe" and config.bpe_vocab_size < SMALLEST_BPE:
            raise ValueError(f"data.bpe_vocab_size must be at least {SMALLEST_BPE}, got {config.bpe_vocab_size}")
        corpus = prepare(config.source, config.data_dir, config.suffix)
        if split not in tfds.builder_from_directory(corpus).info.splits:
            raise ValueError(
                f"data.source={config.source!r} has no {split} split: it needs at least 3 packages (top-level folders "
                f"or files) with text"
            )
        return _open(corpus, config.tokenizer, config.bpe_vocab_size, split)

    @property
    def bytes_per_token(self) -> float:
        """Mean number of UTF-8 bytes of a target (the end of a document is a target of 0 bytes)."""
        num_targets = len(self.tokens) - (len(self.document_starts) - 1)
        return float(self.tokenizer.token_bytes[self.tokens].sum() / num_targets)

    def gather(self, packing: Packing, rows: np.ndarray, length: int) -> dict[str, np.ndarray]:
        """The batch of the rows numbered `rows`; a negative number is a row of padding."""
        inputs = np.full((len(rows), length), self.tokenizer.pad_id, np.int32)
        targets, segment_ids = inputs.copy(), np.full_like(inputs, -1)
        for i, row in enumerate(rows.tolist()):
            pieces = range(packing.row_pieces[row], packing.row_pieces[row + 1]) if row >= 0 else ()
            for segment, piece in enumerate(pieces):
                start, offset, size = packing.token_start[piece], packing.offset[piece], packing.size[piece]
                inputs[i, offset : offset + size] = self.tokens[start : start + size]
                targets[i, offset : offset + size] = self.tokens[start + 1 : start + 1 + size]
                segment_ids[i, offset : offset + size] = segment
        answer_mask = segment_ids >= 0
        return dict(
            inputs=inputs,
            targets=targets,
            loss_weights=answer_mask.astype(np.float32),
            answer_mask=answer_mask,
            segment_ids=segment_ids,
        )


def train_iterator(config: DataConfig, **shares: int) -> grain.DatasetIterator:
    """Endless shuffled batches of the training split: see `subq_jax.data.make_train_iterator`."""
    return prefetched(train_dataset(config, **shares))


def prefetched(dataset: grain.MapDataset) -> grain.DatasetIterator:
    """The batches of a dataset in turn, a few of them made ahead."""
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=PREFETCHED_BATCHES)))


def train_dataset(
    config: DataConfig, *, seed: int, block_size: int, process_index: int = 0, process_count: int = 1
) -> grain.MapDataset:
    """Training batches by their step.

    Process `i` gets the `i`-th share of the rows of each global batch, which does not depend on `process_count`. A
    shorter stage of the curriculum cuts these rows; what follows a cut does not see what stood before it.
    """
    check_stages(config, block_size)
    split = TokenisedSplit.load(config, "train")
    packing = pack(split.document_starts, config.seq_len, block_size)
    share = config.batch_size // process_count

    def gather(step, rows):
        batch = split.gather(packing, rows[process_index * share : (process_index + 1) * share], config.seq_len)
        return {name: values.reshape(-1, config.length_at(step)) for name, values in batch.items()}

    return (
        grain.MapDataset.range(packing.num_rows)
        .shuffle(seed=seed % 2**32)
        .repeat()  # after the shuffle: every epoch has its own order
        .batch(config.batch_size, drop_remainder=True)  # rounding up the length of an endless dataset overflows
        .map_with_index(gather)
    )


def eval_batches(
    config: DataConfig, *, block_size: int, length: int, num_batches: int, batch_size: int
) -> list[dict[str, np.ndarray]]:
    """Batches of the validation split in a fixed order: see `subq_jax.data.make_eval_batches`."""
    split = TokenisedSplit.load(config, "validation")
    packing = pack(split.document_starts, length, block_size)
    num_batches = min(num_batches, -(-packing.num_rows // batch_size))
    rows = np.arange(num_batches * batch_size)
    rows[rows >= packing.num_rows] = -1
    batches = [split.gather(packing, part, length) for part in np.split(rows, num_batches)]
    for batch in batches:
        batch["target_bytes"] = split.tokenizer.token_bytes[batch["targets"]]
    return batches


@functools.lru_cache(maxsize=8)
def _open(corpus: Path, tokenizer_kind: str, bpe_vocab_size: int, split: str) -> TokenisedSplit:
    """The tokens of a split, from the files beside the dataset, which are written when missing."""
    beside = corpus.parent
    name = "bytes" if tokenizer_kind == "bytes" else f"bpe-{bpe_vocab_size}"
    bpe_file = beside / f"{name}.json"
    folder = beside / f"tokens-{name}-{split}-v{VERSION}"
    if not folder.exists():
        with exclusive(beside):
            if tokenizer_kind == "bpe" and not bpe_file.exists():
                train_bpe(_texts(corpus, "train"), bpe_vocab_size, bpe_file)
            if not folder.exists():
                _write_tokens(_texts(corpus, split), _open_tokenizer(bpe_file, tokenizer_kind), folder)
    tokenizer = _open_tokenizer(bpe_file, tokenizer_kind)
    described = f"{beside.name} {corpus.name} {folder.name} {tokenizer.vocab_size}"
    return TokenisedSplit(
        tokens=np.load(folder / "tokens.npy", mmap_mode="r"),
        document_starts=np.load(folder / "document_starts.npy"),
        tokenizer=tokenizer,
        fingerprint=hashlib.sha256(described.encode()).hexdigest()[:16],
    )


def _open_tokenizer(bpe_file: Path, kind: str) -> Tokenizer:
    return BpeTokenizer(bpe_file) if kind == "bpe" else ByteTokenizer()


def _texts(corpus: Path, split: str) -> Iterator[str]:
    source = tfds.builder_from_directory(corpus).as_data_source(split=split)
    return (source[i]["text"].decode("utf-8") for i in range(len(source)))


def _encoded(texts: Iterator[str], tokenizer: Tokenizer) -> Iterator[np.ndarray]:
    """The tokens of each text."""
    batch, characters = [], 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= TOGETHER:
            yield from encode_all(tokenizer, batch)
            batch, characters = [], 0
    yield from encode_all(tokenizer, batch)


def _write_tokens(texts: Iterator[str], tokenizer: Tokenizer, folder: Path) -> None:
    """Writes the token stream of a split into `folder`, which appears only when complete; the caller holds its lock."""
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.int32
    documents = [
        np.concatenate([[tokenizer.bos_id], tokens, [tokenizer.eos_id]]).astype(dtype)
        for tokens in _encoded(texts, tokenizer)
    ]
    unfinished = folder.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    arrays = {"tokens": np.concatenate(documents), "document_starts": np.cumsum([0, *map(len, documents)])}
    for name, array in arrays.items():
        with (unfinished / f"{name}.npy").open("wb") as file:
            np.save(file, array)
            sync(file)
    os.replace(unfinished, folder)
