"""A context read once gives what reading it anew for every question gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_decoder import SHAPE, decoder

from subq_jax.attention.mechanisms import MECHANISMS, SELECTING
from subq_jax.inference import reader as reader_module
from subq_jax.inference.reader import SMALL_CACHES, Reader, cache_size, pieces
from subq_jax.model.attention_modules import ChosenBlocks

CONTEXT, CAPACITY, PADDED = 37, 64, 48
forward = nnx.jit(lambda model, tokens: model(tokens))


def tokens(count, seed=0):
    return np.random.default_rng(seed).integers(0, SHAPE["vocab_size"], count)


def fresh_run(model, prompt, count):
    """The greedy continuation of a prompt by full forward passes, padded so that they are one program."""
    for _ in range(count):
        logits = forward(model, jnp.asarray(np.pad(prompt, (0, PADDED - len(prompt))))[None])
        prompt = np.append(prompt, int(logits[0, len(prompt) - 1].argmax()))
    return prompt[-count:]


@pytest.mark.parametrize("mechanism", [
    name if name == "selective" else pytest.param(name, marks=pytest.mark.slow) for name in MECHANISMS])
def test_every_question_gets_the_answer_of_a_fresh_run(mechanism):
    model = decoder(mechanism)
    reader = Reader(model, chunk=4)
    read = reader.read(tokens(CONTEXT), CAPACITY)
    for seed, length in ((1, 5), (2, 5), (1, 5), (3, 0)):
        prompt = tokens(length, seed)
        expected = fresh_run(model, np.concatenate([tokens(CONTEXT), prompt]), 6)
        np.testing.assert_array_equal(reader.greedy(read, prompt, 6).tokens, expected)
        assert reader.agreement(read, prompt, expected).all()
        other = expected.copy()
        other[2] = (other[2] + 1) % SHAPE["vocab_size"]
        assert reader.agreement(read, prompt, other)[:3].tolist() == [True, True, False]


def test_agreement_is_with_the_full_forward():
    model, prompt, answer = decoder("selective"), tokens(4, 1), tokens(9, 2)
    reader = Reader(model, chunk=8)
    agrees = reader.agreement(reader.read(tokens(CONTEXT), CAPACITY), prompt, answer)
    best = forward(model, jnp.asarray(np.concatenate([tokens(CONTEXT), prompt, answer]))[None])[0].argmax(axis=-1)
    np.testing.assert_array_equal(agrees, np.asarray(best)[CONTEXT + 3 : -1] == answer)


def test_an_answer_ends_with_its_last_token_and_says_how_likely_it_was():
    model, prompt = decoder("dense"), tokens(5, 1)
    reader = Reader(model, chunk=8)
    read = reader.read(tokens(CONTEXT), CAPACITY)
    whole = reader.greedy(read, prompt, 6)
    logits = forward(model, jnp.asarray(np.concatenate([tokens(CONTEXT), prompt, whole.tokens]))[None])[0]
    expected = jax.nn.log_softmax(logits)[CONTEXT + 4 + np.arange(6), whole.tokens]
    np.testing.assert_allclose(whole.log_probs, expected, atol=1e-4)
    end = int(whole.tokens[-1])
    cut = reader.greedy(read, prompt, 6, end=end)
    count = whole.tokens.tolist().index(end) + 1
    np.testing.assert_array_equal(cut.tokens, whole.tokens[:count])
    np.testing.assert_array_equal(cut.log_probs, whole.log_probs[:count])


@pytest.mark.parametrize("mechanism", [
    name if name == "selective" else pytest.param(name, marks=pytest.mark.slow) for name in MECHANISMS])
def test_what_was_chosen_is_what_the_full_forward_chooses(mechanism):
    model, prompt, said = decoder(mechanism), tokens(5, 1), tokens(7, 2)
    reader = Reader(model, chunk=4)
    found = reader.chosen(reader.read(tokens(CONTEXT), CAPACITY), prompt, said)
    whole = jnp.asarray(np.concatenate([tokens(CONTEXT), prompt, said[:-1]]))[None]
    graph, weights = nnx.split(model)
    capture = jax.jit(lambda weights: nnx.capture(nnx.merge(graph, weights), ChosenBlocks)(whole)[1])
    expected = [values[0] for values in jax.tree.leaves(capture(weights), is_leaf=lambda x: isinstance(x, tuple))]
    assert len(found) == len(expected) == (mechanism in SELECTING)
    for ours, full in zip(found, expected, strict=True):
        assert ours.shape == (1, 7, *full.shape[2:])
        np.testing.assert_array_equal(ours, full[:, -7:])


@pytest.mark.parametrize("mechanism", ["dense", pytest.param("selective", marks=pytest.mark.slow)])
@pytest.mark.parametrize("prompt_length", [0, 4])
def test_log_probabilities_are_those_of_the_full_forward(mechanism, prompt_length):
    model, prompt, answer = decoder(mechanism), tokens(prompt_length, 1), tokens(9, 2)
    reader = Reader(model, chunk=8)
    read = reader.read(tokens(CONTEXT), CAPACITY)
    logits = forward(model, jnp.asarray(np.concatenate([tokens(CONTEXT), prompt, answer]))[None])[0]
    before = np.asarray(logits, np.float64)[CONTEXT + prompt_length - 1 : -1]
    expected = np.log(np.exp(before)[np.arange(9), answer] / np.exp(before).sum(axis=-1))
    for _ in range(2):  # the first time leaves no trace
        found, agrees = reader.log_probabilities(read, prompt, answer)
        assert found.dtype == np.float32 and found.shape == (9,) and found.max() < 0
        np.testing.assert_allclose(found, expected, atol=2e-5)
        np.testing.assert_array_equal(agrees, before.argmax(axis=-1) == answer)
    one, _ = reader.log_probabilities(read, prompt, answer[:1])
    np.testing.assert_allclose(one, expected[:1], atol=2e-5)


def test_pieces_are_few_shapes_and_cover_everything():
    for length in (1, 2, 37, 64, 255, 256, 1000):
        found = pieces(length, 64)
        assert [start for start, _ in found] == np.cumsum([0, *[size for _, size in found]])[:-1].tolist()
        assert sum(size for _, size in found) == length
        assert {size for _, size in found} <= {1, 4, 64} and len(found) <= length // 64 + 15 + 3


def test_caches_have_few_sizes_with_room_for_all():
    small = {cache_size(capacity) for capacity in range(1, SMALL_CACHES[-1])}
    assert small == set(SMALL_CACHES)
    for capacity in (10_241, 16_384, 131_073, 2**20 + 1, 12_000_000):
        assert capacity <= cache_size(capacity) <= capacity * 17 / 16
        assert cache_size(cache_size(capacity)) == cache_size(capacity)
    assert len({cache_size(capacity) for capacity in range(32_769, 65_537, 100)}) <= 17


@pytest.mark.parametrize("mechanism", [
    name if name in ("selective", "sliding_window") else pytest.param(name, marks=pytest.mark.slow)
    for name in MECHANISMS])
def test_results_depend_on_neither_pieces_nor_caches(mechanism, monkeypatch):
    def asked(chunk, capacities):
        monkeypatch.setattr(reader_module, "SMALL_CACHES", capacities)
        reader = Reader(decoder(mechanism), chunk=chunk)
        read, prompt = reader.read(tokens(CONTEXT), CAPACITY), tokens(5, 1)
        said = reader.greedy(read, prompt, 6)
        return said, reader.log_probabilities(read, prompt, tokens(9, 2)), reader.chosen(read, prompt, said.tokens)

    other = asked(16, (512,))
    for chunk in (1, 64):
        said, (likely, agrees), chosen = asked(chunk, ())
        np.testing.assert_array_equal(said.tokens, other[0].tokens)
        np.testing.assert_allclose(said.log_probs, other[0].log_probs, atol=1e-5)
        np.testing.assert_allclose(likely, other[1][0], atol=1e-5)
        np.testing.assert_array_equal(agrees, other[1][1])
        for ours, theirs in zip(chosen, other[2], strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: r.read(tokens(0), 8), "tokens must be a non-empty int array"),
        (lambda r: r.read(tokens(9), 8), "capacity must be at least 9 for 9 tokens after 0, got 8"),
        (lambda r: r.read(np.array([SHAPE["vocab_size"]]), 8), "tokens must be ids in"),
        (lambda r: r.read(np.array([0.5]), 8), "tokens must be a non-empty int array"),
        (lambda r: r.read(tokens(4), 2e4), "capacity must be an integer >= 1, got 20000.0"),
        (lambda r: r.greedy(r.read(tokens(4), 8), tokens(2), 3), "capacity must be at least 9 for 5 tokens after 4"),
        (lambda r: r.greedy(r.read(tokens(4), 8), tokens(2), 0), "num_tokens must be an integer >= 1"),
        (lambda r: r.agreement(r.read(tokens(4), 8), tokens(2), tokens(0)), "answer must hold a token"),
        (lambda r: r.chosen(r.read(tokens(4), 8), tokens(0), tokens(2)), "prompt and said must hold a token each"),
        (lambda r: r.chosen(r.read(tokens(4), 8), tokens(2), tokens(4)), "capacity must be at least 9"),
        (lambda r: r.log_probabilities(r.read(tokens(4), 8), tokens(2), np.array([SHAPE["vocab_size"]])),
         "tokens must be ids in"),
        (lambda r: r.log_probabilities(r.read(tokens(4), 8), tokens(2), tokens(4)), "capacity must be at least 9"),
        (lambda r: Reader(decoder("dense"), chunk=24), "chunk must be a power of two, got 24"),
    ],
)
def test_what_cannot_be_read_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(Reader(decoder("dense"), chunk=4))
