"""Tokenizers: no text is lost, special tokens are out of its reach, BPE is trained on the training split alone."""

import numpy as np
import pytest

from subq_jax.data import DataConfig, data_info
from subq_jax.data.text_pipeline import TokenisedSplit
from subq_jax.data.tokenizers import BpeTokenizer, ByteTokenizer, train_bpe

TEXT = "def größe(x):\n\treturn x  # 漢字 🙂 <bos> <eos>\r\n"


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    path = tmp_path_factory.mktemp("bpe") / "bpe-280.json"
    train_bpe([TEXT, "return return returned " * 20], 280, path)
    return BpeTokenizer(path)


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_decode_undoes_encode_and_token_bytes_add_up(kind, bpe):
    tokenizer = ByteTokenizer() if kind == "bytes" else bpe
    tokens = tokenizer.encode(TEXT)
    assert tokens.dtype == np.int32 and tokens.ndim == 1
    assert tokenizer.decode(tokens) == TEXT
    assert tokenizer.decode([tokenizer.bos_id, *tokens, tokenizer.eos_id, tokenizer.pad_id]) == TEXT
    assert tokens.max() < min(tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
    assert tokenizer.token_bytes.shape == (tokenizer.vocab_size,)
    assert tokenizer.token_bytes[tokens].sum() == len(TEXT.encode())


def test_bpe_merges_and_keeps_to_its_size(bpe):
    assert len(bpe.encode("return return")) < 6
    batch = bpe.encode_batch(["return return", "", TEXT])
    assert [tokens.tolist() for tokens in batch] == [bpe.encode(text).tolist() for text in ("return return", "", TEXT)]
    assert bpe.vocab_size == 280
    assert len({bpe.bos_id, bpe.eos_id, bpe.pad_id}) == 3 and bpe.pad_id == 279


def test_bpe_training_is_deterministic(tmp_path, bpe):
    texts = [TEXT * 3, "return return returned " * 20, "ab ba ab ba " * 7]
    for name in ("one", "two"):
        train_bpe(texts, 320, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_bpe_sees_the_training_split_only(text_config, tmp_path, source_folder):
    config = DataConfig.from_mapping(text_config | dict(tokenizer="bpe", bpe_vocab_size=400))
    cached = TokenisedSplit.load(config, "validation").tokenizer
    from subq_jax.source_folder import scan

    training = {d.path for d in scan(str(source_folder)).documents if d.split == "train"}
    train_bpe([(source_folder / path).read_text(encoding="utf-8") for path in sorted(training)], 400, tmp_path / "bpe")
    again = BpeTokenizer(tmp_path / "bpe")
    assert again.encode(TEXT).tolist() == cached.encode(TEXT).tolist()
    assert data_info(config).vocab_size == cached.vocab_size


def test_a_vocabulary_below_the_bytes_is_refused(text_config):
    with pytest.raises(ValueError, match="data.bpe_vocab_size must be at least 259, got 258"):
        data_info(text_config | dict(tokenizer="bpe", bpe_vocab_size=258))
