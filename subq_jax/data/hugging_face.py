"""Hugging Face's tokenizers as this project's, and this project's as Hugging Face's.

Text comes in pieces here (`subq_jax.tasks.haystack`), so nothing may happen at the ends of each that is meant for the
ends of a whole text: no special tokens, no truncation or padding, and no space before the first word, which
SentencePiece-like tokenizers add and take away again. A piece that does not come back from its tokens is refused.
"""

import functools
import json
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from subq_jax.data.tokenizers import BpeTokenizer, ByteTokenizer
from subq_jax.files import write_text

SPACE = "▁"  # how SentencePiece writes one
# Every task has pieces like these: they begin and end with spaces and line ends.
PIECES = ("The grass is green.", " a  b ", "\n", "one\n\ntwo 123")
# Special tokens of a `tokenizer.json` that stands alone, the first that is there; otherwise the folder's config says.
USUAL = {"bos_token": ("<s>", "<bos>", "<|begin_of_text|>", "<|bos|>"),
         "eos_token": ("</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>", "<|eos|>"),
         "pad_token": ("<pad>", "<|pad|>")}
CONFIGS = ("tokenizer_config.json", "special_tokens_map.json")


class HuggingFaceTokenizer:
    """A tokenizer of the `tokenizers` library; `subq_jax.data.tokenizers.Tokenizer` says what it offers.

    A text that spells a special token is encoded as any other text. Without a beginning-of-document or padding token
    the end-of-document token stands for it.

    Args:
      path: a `tokenizer.json`, or the folder of a model with one.
      end_token: the end-of-document token; "" for the one that the folder's config names, or else has a usual name.

    Raises:
      ValueError: when there is no such file, it is none of the library's, or its tokens lose spaces or line ends.
    """

    def __init__(self, path: str | Path, end_token: str = ""):
        import tokenizers

        self._path = _file(Path(path))
        described = _read_json(self._path)
        self._special = {token["content"] for token in described.get("added_tokens", ()) if token["special"]}
        self._names = _special_names(self._path.parent, self._special) | ({"eos_token": end_token} if end_token else {})
        try:
            self._backend = tokenizers.Tokenizer.from_str(json.dumps(_without_ends(described)))
        except Exception as error:  # the library raises nothing more specific
            raise ValueError(f"tokenizer {self._path} is no tokenizer of the tokenizers library: {error}") from error
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = True
        self._byte_level = '"ByteLevel"' in json.dumps(described.get("decoder"))
        self.vocab_size = max(self._backend.get_vocab(with_added_tokens=True).values()) + 1
        for piece in PIECES:
            self.encode(piece)

    def encode(self, text: str) -> np.ndarray:
        """The tokens of `text` and of nothing else, int32[S].

        Raises:
          ValueError: for text that the tokens do not give back, up to Unicode's compatible forms.
        """
        ids = self._backend.encode(text, add_special_tokens=False).ids
        if (decoded := self.decode(ids)) != text and _compatible(decoded) != _compatible(text):
            raise ValueError(f"tokenizer {self._path} must keep text as it is to fit the pieces of a task, but its "
                             f"tokens make {decoded[:60]!r} of {text[:60]!r}")
        return np.array(ids, np.int32)

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of `tokens` without special tokens; bytes that are not UTF-8 become replacement characters."""
        return self._backend.decode([int(token) for token in tokens], skip_special_tokens=True)

    @property
    def eos_id(self) -> int:
        """The end-of-document token; raises ValueError when there is none."""
        return self._id("eos_token")

    @property
    def bos_id(self) -> int:
        return self._id("bos_token" if "bos_token" in self._names else "eos_token")

    @property
    def pad_id(self) -> int:
        return self._id("pad_token" if "pad_token" in self._names else "eos_token")

    @functools.cached_property
    def token_bytes(self) -> np.ndarray:
        """UTF-8 bytes of each token, int32[V]; 0 for special tokens and ids without one."""
        sizes = np.zeros(self.vocab_size, np.int32)
        added = {token.content for token in self._backend.get_added_tokens_decoder().values()}
        for token, number in self._backend.get_vocab(with_added_tokens=True).items():
            if token not in self._special:
                sizes[number] = self._size(token, spelled=token in added)
        for piece in PIECES:
            if (size := sizes[self.encode(piece)].sum()) != len(piece.encode()):
                raise ValueError(f"tokenizer {self._path} must have tokens of known size: {piece!r} has "
                                 f"{len(piece.encode())} bytes, its tokens {size}")
        return sizes

    def _size(self, token: str, *, spelled: bool) -> int:
        if self._byte_level and not spelled:
            return len(token)  # its alphabet writes each byte as one character
        if re.fullmatch("<0x[0-9A-F]{2}>", token):
            return 1
        return len(token.replace(SPACE, " ").encode())

    def _id(self, kind: str) -> int:
        name = self._names.get(kind)
        number = None if name is None else self._backend.token_to_id(name)
        if number is None:
            raise ValueError(f"tokenizer {self._path} must have an end-of-document token, got {name!r}; name one with "
                             f"end_token, of {sorted(self._special)[:20]}")
        return number


def write_folder(tokenizer: ByteTokenizer | BpeTokenizer, folder: Path) -> None:
    """Writes a tokenizer as a folder that Hugging Face's libraries load; every token keeps its id."""
    backend = tokenizer.hugging_face()
    names = {kind: f"<|{kind.removesuffix('_token')}|>" for kind in ("bos_token", "eos_token", "pad_token")}
    backend.add_special_tokens(list(names.values()))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False} | names
    write_text(folder / CONFIGS[0], json.dumps(config, indent=2))
    write_text(folder / "tokenizer.json", backend.to_str())


def _file(path: Path) -> Path:
    if path.is_dir():
        path /= "tokenizer.json"
    if not path.is_file():
        raise ValueError(f"tokenizer must be a tokenizer.json or a folder with one, got {path}; "
                         f"transformers' save_pretrained writes one for most models, and nothing is downloaded here")
    return path


def _read_json(path: Path) -> dict[str, Any]:
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"tokenizer {path} is no JSON: {error}") from error
    if not isinstance(described, dict) or "model" not in described:
        raise ValueError(f"tokenizer {path} is no tokenizer of the tokenizers library: it describes no model")
    return described


def _special_names(folder: Path, special: set[str]) -> dict[str, str]:
    """bos_token, eos_token and pad_token, as far as there are any."""
    for path in (folder / name for name in CONFIGS):
        if path.is_file():
            config = json.loads(path.read_text(encoding="utf-8"))
            found = {kind: config[kind] for kind in USUAL if config.get(kind)}
            if found:
                return {kind: name if isinstance(name, str) else name["content"] for kind, name in found.items()}
    found = {kind: next((name for name in names if name in special), None) for kind, names in USUAL.items()}
    return {kind: name for kind, name in found.items() if name is not None}


def _without_ends(described: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer's description without what adds a space before a text, and what takes one away."""
    changed = {part: _each(described.get(part)) for part in ("normalizer", "pre_tokenizer", "decoder")}
    return described | changed


def _each(step: dict[str, Any] | None) -> dict[str, Any] | None:
    """A step of a tokenizer, or a sequence of them, as it should be for pieces; None for one that goes."""
    if step is None or step["type"] == "Prepend" or (step["type"] == "Strip" and step.get("content", " ") == " "):
        return None
    changes = {"add_prefix_space": False, "prepend_scheme": "never"}
    step = step | {name: value for name, value in changes.items() if name in step}
    for steps in ("normalizers", "pretokenizers", "decoders"):
        if steps in step:
            step[steps] = [kept for kept in map(_each, step[steps]) if kept is not None]
    return step


def _compatible(text: str) -> str:
    return unicodedata.normalize("NFKC", text)
