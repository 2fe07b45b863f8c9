"""Generation with caches is the full forward pass, one token at a time, for every mechanism."""


import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_decoder import ARMS, SHAPE, decoder

from subq_jax.inference.generate import generate

VOCABULARY = SHAPE["vocab_size"]


def tokens(length, batch=2, seed=0):
    return jax.random.randint(jax.random.key(seed), (batch, length), 0, VOCABULARY, jnp.int32)


@nnx.jit
def forward(model, tokens):
    return model(tokens)


@nnx.jit
def extend(model, tokens):
    return model(tokens, decode=True)


def full_logits(model, prompt, new):
    """The full forward's logits that each new token was chosen from, at one length for all prompts."""
    whole = jnp.concatenate([prompt, new], axis=1)
    whole = jnp.pad(whole, ((0, 0), (0, 40 - whole.shape[1])))
    return forward(model, whole)[:, prompt.shape[1] - 1 :][:, : new.shape[1]]


@pytest.mark.parametrize("length", [pytest.param(3, marks=pytest.mark.slow), 27])
@pytest.mark.parametrize("mechanism", ARMS)
def test_logits_are_those_of_the_full_forward(mechanism, length):
    model, prompt, count = decoder(mechanism), tokens(length), 12
    new, logits = generate(model, prompt, count)
    assert (new.shape, new.dtype) == ((2, count), jnp.int32)
    assert (logits.shape, logits.dtype) == ((2, count, VOCABULARY), jnp.float32)
    np.testing.assert_allclose(logits, full_logits(model, prompt, new), atol=1e-4, rtol=0)
    np.testing.assert_array_equal(new, logits.argmax(axis=-1))


@pytest.mark.parametrize("mechanism", ARMS)
def test_prefill_in_chunks_equals_the_full_forward(mechanism):
    model, prompt = nnx.clone(decoder(mechanism)), tokens(40)
    model.init_cache(2, 40)
    parts = [extend(model, prompt[:, start : start + 10]) for start in range(0, 40, 10)]
    np.testing.assert_allclose(
        jnp.concatenate(parts, axis=1), forward(decoder(mechanism), prompt), atol=1e-4, rtol=0)


@pytest.mark.parametrize("router", [
    {"router_learns_window": True, "router_tied": False},
    *(pytest.param(one, marks=pytest.mark.slow) for one in (
        {}, {"router_learns_window": True}, {"router_tied": False}))])
def test_router_queries_that_are_means_over_neighbours_go_on_across_chunks(router):
    model, prompt = decoder("selective", router_window=5, **router), tokens(40)
    for path, param in nnx.iter_graph(model):  # from where they start learned windows equal the fixed one
        if "router_mean" in path and isinstance(param, nnx.Param):
            param[...] = jax.random.normal(jax.random.key(3), param.shape)
    whole, chunked = forward(model, prompt), nnx.clone(model)
    assert not np.allclose(whole, forward(decoder("selective"), prompt), atol=1e-3)
    chunked.init_cache(2, 40)
    parts = [extend(chunked, prompt[:, start:stop]) for start, stop in ((0, 3), (3, 10), (10, 40))]
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), whole, atol=1e-4, rtol=0)


@pytest.mark.parametrize("beam_width", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_decoding_through_a_tree_equals_the_full_forward(beam_width):
    """With a beam of 1 the tree prunes: the choice is not flat's, but decoding makes the same one."""
    model, prompt = decoder("selective", fanouts=(2, 2), beam_width=beam_width), tokens(27)
    new, logits = generate(model, prompt, 13)  # 40 tokens, so that all forward passes are one program
    np.testing.assert_allclose(logits, full_logits(model, prompt, new), atol=1e-4, rtol=0)
    flat = forward(decoder("selective"), jnp.concatenate([prompt, new], axis=1))
    tree = forward(model, jnp.concatenate([prompt, new], axis=1))
    assert (jnp.abs(tree - flat).max() > 1e-3) == (beam_width == 1)
    chunked = nnx.clone(model)
    chunked.init_cache(2, 40)
    parts = [extend(chunked, tokens(40)[:, start : start + 10]) for start in range(0, 40, 10)]
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), forward(model, tokens(40)), atol=1e-4, rtol=0)


def test_a_sample_depends_on_its_key_and_on_nothing_else():
    model, prompt = decoder("selective"), tokens(27)
    draw = lambda seed: generate(model, prompt, 12, temperature=2.0, key=jax.random.key(seed))
    first, again, other = draw(0), draw(0), draw(1)
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert (first[0] != other[0]).any()
    np.testing.assert_allclose(first[1], full_logits(model, prompt, first[0]), atol=1e-4, rtol=0)


def test_temperature_shapes_the_distribution():
    model, prompt = decoder("dense", num_layers=1, layer_pattern=("selective",)), tokens(4, batch=1)
    prompts = jnp.repeat(prompt, 4000, axis=0)
    cold, logits = generate(model, prompts, 1, temperature=1e-4, key=jax.random.key(0))
    assert (cold[:, 0] == logits[:, 0].argmax(axis=-1)).all()
    warm, logits = generate(model, prompts, 1, temperature=0.5, key=jax.random.key(0))
    counts = np.bincount(np.asarray(warm[:, 0]), minlength=VOCABULARY) / 4000
    np.testing.assert_allclose(counts, jax.nn.softmax(logits[0, 0] / 0.5), atol=0.03)


def test_every_step_draws_its_own_numbers():
    """At a huge temperature the draw alone decides: steps that shared a key would pick the same token."""
    model = decoder("dense", num_layers=1, layer_pattern=("selective",))
    new, _ = generate(model, tokens(4, batch=200), 3, temperature=1e6, key=jax.random.key(0))
    for one, other in ((0, 1), (1, 2), (0, 2)):
        assert (new[:, one] == new[:, other]).mean() < 0.2


def test_the_model_is_left_as_it_was():
    model = decoder("selective")
    before, weights = nnx.graphdef(model), jax.tree.map(jnp.copy, nnx.state(model))
    generate(model, tokens(27), 12)
    assert nnx.graphdef(model) == before
    for old, new in zip(jax.tree.leaves(weights), jax.tree.leaves(nnx.state(model)), strict=True):
        np.testing.assert_array_equal(old, new)
    assert not jax.tree.leaves(nnx.state(model, nnx.Cache))


def test_a_numpy_prompt_is_as_good_as_a_jax_one():
    model, prompt = decoder("dense"), tokens(27)
    new = [generate(model, x, 12)[0] for x in (prompt, np.asarray(prompt, np.int64))]
    np.testing.assert_array_equal(*new)


@pytest.mark.parametrize(("changes", "message"), [
    ({"prompt": jnp.zeros((2, 0), jnp.int32)}, "prompt must be a non-empty int array"),
    ({"prompt": jnp.zeros((0, 3), jnp.int32)}, "prompt must be a non-empty int array"),
    ({"prompt": jnp.zeros((3,), jnp.int32)}, "prompt must be a non-empty int array"),
    ({"prompt": jnp.zeros((2, 3))}, "prompt must be a non-empty int array .* float32"),
    ({"prompt": jnp.array([[1, VOCABULARY]])}, "prompt must hold ids in .*vocab_size=40.* got 40"),
    ({"prompt": jnp.array([[1, -1]])}, "prompt must hold ids in .* got -1"),
    ({"num_tokens": 0}, "num_tokens must be an integer >= 1, got 0"),
    ({"num_tokens": 2.0}, "num_tokens must be an integer >= 1, got 2.0"),
    ({"temperature": float("nan")}, "temperature must be finite and >= 0, got nan"),
    ({"temperature": float("inf")}, "temperature must be finite and >= 0, got inf"),
    ({"temperature": -1.0}, "temperature must be finite and >= 0, got -1.0"),
    ({"temperature": "warm"}, "temperature must be finite and >= 0, got 'warm'"),
    ({"temperature": None}, "temperature must be finite and >= 0, got None"),
    ({"temperature": 0.7}, "key must be given to sample at temperature=0.7"),
])
def test_wrong_requests_are_refused_by_name(changes, message):
    arguments = {"prompt": tokens(3), "num_tokens": 2} | changes
    with pytest.raises(ValueError, match=message):
        generate(decoder("dense"), **arguments)
