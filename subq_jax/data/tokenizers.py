"""Text to tokens and back: bytes, or a byte-level BPE trained on the training split.

Special tokens stand after the ordinary ones and no text encodes to them.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import numpy as np

from subq_jax.files import write_text

NUM_SPECIAL = 3  # beginning of document, end of document, padding
SMALLEST_BPE = 256 + NUM_SPECIAL


class Tokenizer(Protocol):
    """`token_bytes[id]` int32[V] is the number of UTF-8 bytes of each token; 0 for special tokens."""

    vocab_size: int
    bos_id: int
    eos_id: int
    pad_id: int
    token_bytes: np.ndarray

    def encode(self, text: str) -> np.ndarray: ...

    def decode(self, tokens: Iterable[int]) -> str: ...


class _Specials:
    """Numbers the special tokens after the ordinary ones, whose sizes are `token_bytes`."""

    def __init__(self, token_bytes: Iterable[int]):
        self.token_bytes = np.array([*token_bytes, *[0] * NUM_SPECIAL], np.int32)
        self.vocab_size = len(self.token_bytes)
        self.bos_id, self.eos_id, self.pad_id = range(self.vocab_size - NUM_SPECIAL, self.vocab_size)

    def _ordinary(self, tokens: Iterable[int]) -> list[int]:
        return [int(token) for token in tokens if token < self.bos_id]


class ByteTokenizer(_Specials):
    """One token for each byte of the UTF-8 text."""

    def __init__(self):
        super().__init__([1] * 256)

    def encode(self, text: str) -> np.ndarray:
        """The bytes of `text`, int32[S]."""
        return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32)

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of `tokens` without special tokens; bytes that are not UTF-8 become replacement characters."""
        return bytes(self._ordinary(tokens)).decode("utf-8", errors="replace")

    def hugging_face(self):
        """A new `tokenizers.Tokenizer` with the same ordinary tokens."""
        from tokenizers import models

        characters = dict(zip(_byte_characters(), range(256), strict=True))
        return _byte_level(models.BPE(characters, []))


class BpeTokenizer(_Specials):
    """Byte-level byte-pair encoding (Sennrich et al., 2016, arXiv:1508.07909), read from the file `train_bpe` wrote."""

    def __init__(self, path: Path):
        import tokenizers

        self._bpe = tokenizers.Tokenizer.from_file(str(path))
        # The byte-level alphabet writes each byte as one character, so a token has as many bytes as characters.
        lengths = [len(self._bpe.id_to_token(token)) for token in range(self._bpe.get_vocab_size())]
        super().__init__(lengths)

    def encode(self, text: str) -> np.ndarray:
        """The tokens of `text`, int32[S]."""
        return np.array(self._bpe.encode(text).ids, np.int32)

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """The tokens of each text, int32[S]; on all cores, so that many texts are encoded faster than one by one."""
        return [np.array(encoding.ids, np.int32) for encoding in self._bpe.encode_batch_fast(texts)]

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of `tokens` without special tokens; bytes that are not UTF-8 become replacement characters."""
        return self._bpe.decode(self._ordinary(tokens))

    def hugging_face(self):
        """A new `tokenizers.Tokenizer` with the same ordinary tokens."""
        return type(self._bpe).from_str(self._bpe.to_str())


def train_bpe(texts: Iterable[str], vocab_size: int, path: Path) -> None:
    """Trains a BPE of at most `vocab_size` tokens, special ones included, and writes it to `path` in one step.

    The same texts give the same file. A small text may give fewer tokens.

    Raises:
      ValueError: when `vocab_size` cannot hold every byte.
    """
    from tokenizers import models, pre_tokenizers, trainers

    if vocab_size < SMALLEST_BPE:
        raise ValueError(f"data.bpe_vocab_size must be at least {SMALLEST_BPE}, got {vocab_size}")
    bpe = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - NUM_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    write_text(path, bpe.to_str(pretty=True))


def _byte_level(model):
    """A `tokenizers.Tokenizer` of the model that sees each byte of a text as one character."""
    import tokenizers
    from tokenizers import decoders, pre_tokenizers

    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _byte_characters() -> list[str]:
    """The character for each byte: itself in Latin-1 where that is visible, else one from 256 on, in order."""
    visible = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte if byte in visible else next(others)) for byte in range(256)]
