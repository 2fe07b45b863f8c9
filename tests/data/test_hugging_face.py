"""Hugging Face's tokenizers, trained here as the well-known ones are: text in pieces stays text."""

import json

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from subq_jax.data.hugging_face import HuggingFaceTokenizer, write_folder
from subq_jax.data.tokenizers import BpeTokenizer, ByteTokenizer, train_bpe
from subq_jax.evaluation.answering import AnsweringModel, answer_questions
from subq_jax.inference.reader import Read, Said
from subq_jax.model.config import DecoderConfig
from subq_jax.tasks import Request, find_task

TEXT = ["The grass is green. The sky is blue.\nHere we go again, 0123456789.", "def f(x):\n    return {x: 'größe'}"] * 9
PIECES = ["One of", " the special", " 42", ".", "\n", "\n\n", "  two  ", "größe 漢字 🙂", "</s><|endoftext|>", " ", ""]
SMALL = dict(vocab_size=400, show_progress=False)


def byte_level(**options):
    """As GPT-2's, Llama 3's and Qwen's."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(**options), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(TEXT, trainers.BpeTrainer(
        initial_alphabet=alphabet, special_tokens=["<|endoftext|>"], **SMALL))
    return made


def spaced():
    """Byte-level with a space before every text and a special token at both ends, as RoBERTa's; cut at 4 tokens."""
    made = byte_level(add_prefix_space=True)
    made.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)])
    made.enable_truncation(4)
    made.enable_padding(length=9, pad_token="<|endoftext|>")
    return made


def sentence_pieces(legacy: bool):
    """BPE over text whose spaces are signs, with bytes for what it lacks, as Llama 2's; the legacy form adds the space
    by a normalizer, the newer one by the pre-tokenizer.
    """
    made = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if legacy:
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    made.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    made.train_from_iterator(TEXT, trainers.BpeTrainer(
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))], **SMALL))
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    described = json.loads(made.to_str())
    described["added_tokens"] = [token for token in described["added_tokens"] if "0x" not in token["content"]]
    return tokenizers.Tokenizer.from_str(json.dumps(described))


def unigram():
    """A decoder of its own for the spaces, and no bytes for unknown signs: as Gemma's and T5's, but with line ends."""
    made = tokenizers.Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    made.decoder = decoders.Metaspace(prepend_scheme="always")
    made.train_from_iterator(TEXT, trainers.UnigramTrainer(
        unk_token="<unk>", special_tokens=["<unk>", "</s>", "<pad>"], **SMALL))
    return made


def word_pieces():
    """As BERT's: spaces and line ends are lost."""
    made = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    made.train_from_iterator(TEXT, trainers.WordPieceTrainer(special_tokens=["[UNK]", "[SEP]"], **SMALL))
    return made


KINDS = {
    "byte-level": (lambda: byte_level(add_prefix_space=False), "<|endoftext|>"),
    "with a space first": (spaced, "<|endoftext|>"),
    "legacy sentence pieces": (lambda: sentence_pieces(legacy=True), "</s>"),
    "sentence pieces": (lambda: sentence_pieces(legacy=False), "</s>"),
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request, tmp_path_factory):
    make, end = KINDS[request.param]
    path = tmp_path_factory.mktemp("kind") / "tokenizer.json"
    path.write_text(made := make().to_str(), encoding="utf-8")
    return HuggingFaceTokenizer(path), tokenizers.Tokenizer.from_str(made), end


def test_pieces_decode_to_the_text(kind):
    tokenizer, plain, end = kind
    encoded = [tokenizer.encode(piece) for piece in PIECES]
    assert all(tokens.dtype == np.int32 and tokens.ndim == 1 for tokens in encoded)
    assert [tokenizer.decode(tokens) for tokens in encoded] == PIECES
    tokens = np.concatenate(encoded)
    assert tokenizer.decode(tokens) == "".join(PIECES)
    assert tokenizer.decode([tokenizer.bos_id, *tokens, tokenizer.eos_id, tokenizer.pad_id]) == "".join(PIECES)
    assert not {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id} & set(tokens.tolist())
    assert tokenizer.eos_id == plain.token_to_id(end)
    assert tokenizer.vocab_size == plain.get_vocab_size() > max(tokens)
    assert tokenizer.token_bytes[tokens].sum() == len("".join(PIECES).encode())
    assert tokenizer.token_bytes.shape == (tokenizer.vocab_size,) and tokenizer.token_bytes[tokenizer.eos_id] == 0


def test_the_tokens_of_a_word_are_those_inside_a_text(kind):
    tokenizer, plain, _ = kind
    plain.no_truncation()
    plain.no_padding()
    inside = plain.encode("go go", add_special_tokens=False).ids
    assert tokenizer.encode(" go").tolist() == inside[-len(tokenizer.encode(" go")):]


@pytest.mark.parametrize("task", ["niah_single_1", "vt", "fwe", "phonebook"])
def test_tasks_are_made_of_it(kind, task):
    tokenizer = kind[0]
    haystack = find_task(task).build(Request(4000, tokenizer))
    assert tokenizer.decode(haystack.tokens) == haystack.context
    (start, end) = haystack.questions[0].evidence[0]
    assert tokenizer.decode(haystack.tokens[start:end]) in haystack.context


def test_a_vocabulary_of_its_own_is_taken_as_far_as_it_goes(tmp_path):
    unigram().save(str(tmp_path / "tokenizer.json"))
    tokenizer = HuggingFaceTokenizer(tmp_path)
    pieces = ["The grass", " is blue.", "\n", "\n\n", "  go  ", " 42", "größe"]
    assert tokenizer.decode(np.concatenate([tokenizer.encode(piece) for piece in pieces])) == "".join(pieces)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 1, 2)
    with pytest.raises(ValueError, match="must keep text as it is to fit the pieces of a task.*'漢字'"):
        tokenizer.encode("漢字")


def test_compatible_forms_are_no_loss(tmp_path):
    made = byte_level(add_prefix_space=False)
    made.normalizer = normalizers.NFC()
    made.save(str(tmp_path / "tokenizer.json"))
    assert HuggingFaceTokenizer(tmp_path).decode(HuggingFaceTokenizer(tmp_path).encode("gro\u0308ße")) == "gr\u00f6ße"


def test_the_folder_says_which_token_ends(tmp_path):
    byte_level(add_prefix_space=False).save(str(tmp_path / "tokenizer.json"))
    config = {"eos_token": {"content": "e"}, "bos_token": None, "pad_token": "p", "model_max_length": 9}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = HuggingFaceTokenizer(tmp_path)
    ids = [int(tokenizer.encode(text)[0]) for text in ("e", "e", "p")]
    assert [tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id] == ids
    assert HuggingFaceTokenizer(tmp_path, end_token="x").eos_id == tokenizer.encode("x")[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "tokenizer must be a tokenizer.json or a folder with one, got .*tokenizer.json"),
        ("not json", "tokenizer .* is no JSON"),
        ("[1]", "describes no model"),
        ('{"model": {"type": "Magic"}}', "is no tokenizer of the tokenizers library"),
        (lambda: word_pieces().to_str(), "must keep text as it is to fit the pieces of a task"),
    ],
)
def test_what_is_no_tokenizer_for_tasks_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content() if callable(content) else content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        HuggingFaceTokenizer(tmp_path)


def test_without_an_end_token_there_are_tasks_but_no_answers(tmp_path):
    train_bpe(TEXT, 300, tmp_path / "bpe.json")
    tokenizer = HuggingFaceTokenizer(tmp_path / "bpe.json")
    assert find_task("niah_single_1").build(Request(1000, tokenizer)).questions
    for name in ("bos_id", "eos_id", "pad_id"):
        with pytest.raises(ValueError, match="must have an end-of-document token, got None"):
            getattr(tokenizer, name)
    with pytest.raises(ValueError, match="must have an end-of-document token, got '</end>'"):
        _ = HuggingFaceTokenizer(tmp_path / "bpe.json", end_token="</end>").eos_id


@pytest.mark.parametrize("name", ["bytes", "bpe"])
def test_our_own_tokenizers_keep_their_ids(tmp_path, name):
    train_bpe(TEXT, 300, tmp_path / "bpe.json")
    ours = ByteTokenizer() if name == "bytes" else BpeTokenizer(tmp_path / "bpe.json")
    write_folder(ours, tmp_path / "folder")
    theirs = HuggingFaceTokenizer(tmp_path / "folder")
    text = "".join(PIECES) + "".join(map(chr, range(1, 400)))
    np.testing.assert_array_equal(theirs.encode(text), ours.encode(text))
    np.testing.assert_array_equal(theirs.token_bytes, ours.token_bytes)
    for number in ("vocab_size", "bos_id", "eos_id", "pad_id"):
        assert getattr(theirs, number) == getattr(ours, number)


def test_answers_are_read_up_to_its_end_token(kind):
    tokenizer, _, _ = kind

    class Model:
        """Says all the references and the end."""

        def read(self, context, capacity):
            assert context[0] == tokenizer.bos_id and len(context) < capacity == 2001
            return Read(tokenizer.decode(context[1:]), None, len(context), capacity)

        def greedy(self, read, prompt, num_tokens, end):
            assert read.cache + tokenizer.decode(prompt) == haystack.context + question.text + question.answer_prefix
            said = np.array([*tokenizer.encode(" ".join(question.outputs)), end])
            return Said(said, np.zeros(len(said)))

    task = find_task("niah_multikey_2")
    haystack = task.build(Request(2000, tokenizer))
    (question,) = haystack.questions
    config = DecoderConfig(vocab_size=tokenizer.vocab_size, mechanism="dense")
    (row,) = answer_questions(AnsweringModel(Model(), tokenizer, config), task, haystack)
    assert (row["answer"], row["score"]) == (question.outputs[0], 1.0)
