"""The decoder looks neither ahead nor across documents, whatever the mechanism, and its warm-up is what it says."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_decoder import CHOOSING_OTHERWISE, SHAPE, decoder

from subq_jax.attention.mechanisms import MECHANISMS, WARM_UP
from subq_jax.model.attention_modules import DivergenceLoss
from subq_jax.model.config import DecoderConfig

VOCABULARY, LENGTH = SHAPE["vocab_size"], 40
DOCUMENTS = ((0, 13), (16, 25), (28, 40))  # begin and end; padding in between
EVERYTHING = 4 * (10 + 2)  # a budget that selects all blocks
PACKED = np.full(LENGTH, -1, np.int32)
for _number, (_begin, _end) in enumerate(DOCUMENTS):
    PACKED[_begin:_end] = _number

WARMING = [(mechanism, phase) for mechanism in WARM_UP for phase in ("dense", "gated")]
arms = pytest.mark.parametrize(("mechanism", "phase"), [
    pytest.param(mechanism, phase, marks=[pytest.mark.slow] * (mechanism in CHOOSING_OTHERWISE))
    for mechanism, phase in [*((mechanism, "sparse") for mechanism in MECHANISMS), *WARMING]])


@functools.partial(nnx.jit, static_argnames="phase")
def forward(model, tokens, segment_ids, phase="sparse"):
    return model(tokens, segment_ids=segment_ids, phase=phase)


def tokens(rows=8, seed=0):
    return jax.random.randint(jax.random.key(seed), (rows, LENGTH), 0, VOCABULARY, jnp.int32)


@arms
def test_changed_tokens_leave_all_earlier_logits_alone(mechanism, phase):
    first_changed = np.array([LENGTH, 1, 5, 12, 16, 21, 33, 39])  # one row each; the first row is unchanged
    changed = np.arange(LENGTH)[None] >= first_changed[:, None]
    rows = jnp.where(changed, (tokens() + 1) % VOCABULARY, tokens(1))
    one_document = jnp.zeros((8, LENGTH), jnp.int32)
    logits = forward(decoder(mechanism), rows, one_document, phase)
    for row, start in enumerate(first_changed):
        np.testing.assert_array_equal(logits[row, :start], logits[0, :start])
        if row:
            assert (logits[row, start] != logits[0, start]).any()


@arms
def test_packed_documents_equal_each_document_alone(mechanism, phase):
    rows, segment_ids = np.array(tokens()), np.tile(PACKED, (8, 1))
    for row, (begin, end) in enumerate(DOCUMENTS, start=1):  # row 0 holds all documents, rows 1 to 3 one each
        rows[row, : end - begin], segment_ids[row] = rows[0, begin:end], -1
        segment_ids[row, : end - begin] = 0
    segment_ids[4] = 7  # a document that goes on after the end of the one it starts like
    rows[4, :9] = rows[0, 16:25]
    logits = forward(decoder(mechanism), jnp.array(rows), jnp.array(segment_ids), phase)
    for row, (begin, end) in enumerate(DOCUMENTS, start=1):
        np.testing.assert_allclose(logits[row, : end - begin], logits[0, begin:end], atol=1e-4, rtol=0)
    np.testing.assert_allclose(logits[4, :9], logits[0, 16:25], atol=1e-4, rtol=0)


@arms
def test_padding_changes_nothing(mechanism, phase):
    segment_ids = jnp.array(np.tile(PACKED, (8, 1)))
    rows = jnp.where(segment_ids < 0, tokens(), tokens(1))  # rows differ at padding only
    logits = forward(decoder(mechanism), rows, segment_ids, phase)
    assert jnp.isfinite(logits).all()
    for row in range(1, 8):
        np.testing.assert_array_equal(logits[row, PACKED >= 0], logits[0, PACKED >= 0])


@arms
def test_gradients_stay_in_the_document_and_in_the_past(mechanism, phase):
    """Every position holds another token, so that a row of the embedding's gradient belongs to one position."""
    model = decoder(mechanism, num_layers=1, layer_pattern=("selective",))
    graph, weights = nnx.split(model)
    row = jnp.arange(LENGTH, dtype=jnp.int32)[None]

    @jax.jit
    @jax.grad
    def gradient(weights, position):
        logits = nnx.merge(graph, weights)(row, segment_ids=PACKED[None], phase=phase)
        return jnp.square(logits[0, position]).sum()

    for position in (0, 7, 12, 16, 24, 37):
        grads = gradient(weights, position)
        assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(grads))
        reached = np.asarray(jnp.abs(grads.embed.embedding[...]).sum(axis=-1)) > 0
        index = np.arange(LENGTH)
        allowed = (PACKED[position] == PACKED) & (index <= position)
        assert not reached[~allowed].any(), f"position {position} is reached by {index[reached & ~allowed]}"
        if mechanism == "dense" or phase != "sparse":
            assert reached[allowed].all()
        assert reached[position]


def test_the_gated_phase_is_a_budget_of_everything():
    rows, segment_ids = tokens(), jnp.zeros((8, LENGTH), jnp.int32)
    warm_up = forward(decoder("selective"), rows, segment_ids, phase="gated")
    everything = forward(decoder("selective", budget=EVERYTHING), rows, segment_ids)
    np.testing.assert_allclose(warm_up, everything, atol=1e-5, rtol=0)
    small_budget = forward(decoder("selective"), rows, segment_ids)
    assert jnp.abs(warm_up - small_budget)[:, 12:].max() > 1e-3
    np.testing.assert_allclose(warm_up[:, :12], small_budget[:, :12], atol=1e-5, rtol=0)


@pytest.mark.parametrize("route", [pytest.param("gate", marks=pytest.mark.slow), "both"])
def test_remat_changes_memory_and_nothing_else(route):
    results, saved = [], []
    for remat in (False, True):
        graph, weights = nnx.split(decoder("selective", remat=remat, router_training=route))

        @jax.jit
        @jax.value_and_grad
        def loss(weights, graph=graph):
            run = nnx.capture(nnx.merge(graph, weights), DivergenceLoss)
            logits, kept = run(tokens(), distil=route == "both")
            assert len(jax.tree.leaves(kept)) == (route == "both")
            return jnp.square(logits).mean() + sum(jax.tree.leaves(kept), jnp.zeros(()))

        results.append(loss(weights))
        saved.append(str(jax.make_jaxpr(loss)(weights)).count("remat"))
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-5)
    assert saved[1] > saved[0]


def test_bfloat16_computes_near_float32_and_returns_float32():
    rows, segment_ids = tokens(), jnp.zeros((8, LENGTH), jnp.int32)
    half, full = (forward(decoder("selective", dtype=dtype, budget=EVERYTHING), rows, segment_ids)
                  for dtype in ("bfloat16", "float32"))  # there is no choice that rounding could turn
    assert half.dtype == jnp.float32
    assert jnp.linalg.norm(half - full) < 3e-2 * jnp.linalg.norm(full)
    assert (half != full).any()


@pytest.mark.parametrize(("changes", "message"), [
    ({"mechanism": "linear"}, r"mechanism must be one of \('dense', .*'selective', .*\), got 'linear'"),
    ({"budget": 13}, "budget of selective must be a multiple of block_size=4 .*, got 13"),
    ({"budget": 8}, "at least one block beside 1 sink and 1 local blocks, got 8"),
    ({"mechanism": "block_mean", "budget": 8}, "budget of block_mean .* got 8"),
    ({"fanouts": (1,)}, "fanouts must be an integer >= 2, got 1"),
    ({"fanouts": 4}, "fanouts must be a tuple of integers, got 4"),
    ({"fanouts": (2,), "budget": 40, "beam_width": 1}, r"beam_width \* fanouts\[0\] must be >= num_blocks=8"),
    ({"beam_width": 0}, "beam_width must be an integer >= 1, got 0"),
    ({"budget": 0}, "budget must be an integer >= 1, got 0"),
    ({"budget": float("nan")}, "budget must be an integer >= 1, got nan"),
    ({"width": 16.0}, "width must be an integer >= 1, got 16.0"),
    ({"num_layers": True}, "num_layers must be an integer >= 1, got True"),
    ({"vocab_size": 0}, "vocab_size must be an integer >= 1, got 0"),
    ({"sink_blocks": -1}, "sink_blocks must be an integer >= 0, got -1"),
    ({"local_blocks": 0}, "local_blocks must be an integer >= 1, got 0"),
    ({"rope_base": float("nan")}, "rope_base must be finite, got nan"),
    ({"rope_base": None}, "rope_base must be finite, got None"),
    ({"rope_base": -1.0}, "rope_base must be > 0, got -1.0"),
    ({"num_kv_heads": 3}, "num_heads must be a multiple of num_kv_heads=3, got 4"),
    ({"head_dim": 7}, "head_dim must be even .*, got 7"),
    ({"layer_pattern": ()}, "layer_pattern must be a non-empty tuple"),
    ({"layer_pattern": ("global",)}, "layer_pattern must be .*'local', 'selective'.* got .*'global'"),
    ({"layer_pattern": "local"}, "layer_pattern must be .* got 'local'"),
    ({"dtype": "float13"}, "dtype must be one of .*, got 'float13'"),
    ({"remat": 1}, "remat must be True or False, got 1"),
    ({"param_dtype": "int32"}, "param_dtype must be one of .*, got 'int32'"),
])
def test_a_wrong_shape_is_refused_before_any_parameter_is_made(changes, message):
    with pytest.raises(ValueError, match=message):
        DecoderConfig(**SHAPE | changes)


def test_a_mapping_makes_a_config_and_unknown_fields_are_named():
    config = DecoderConfig.from_mapping(SHAPE | {"layer_pattern": ["local", "local", "selective"], "num_layers": 5})
    assert config.layer_kinds == ("local", "local", "selective", "local", "local")
    assert config == DecoderConfig(**SHAPE | {"layer_pattern": ("local", "local", "selective"), "num_layers": 5})
    hash(DecoderConfig(**SHAPE | {"layer_pattern": ["local"]}))
    with pytest.raises(ValueError, match=r"model has no field \['depth'\]; known fields: .*'num_layers'"):
        DecoderConfig.from_mapping(SHAPE | {"depth": 3})


def test_tokens_and_segment_ids_that_do_not_fit_are_refused():
    model = decoder("selective", num_layers=1, layer_pattern=("selective",))
    with pytest.raises(ValueError, match="integer"):
        model(jnp.zeros((1, 8)))
    with pytest.raises(ValueError, match=r"segment_ids must have shape .* = \(1, 8\), got \(1, 9\)"):
        model(jnp.zeros((1, 8), jnp.int32), segment_ids=jnp.zeros((1, 9), jnp.int32))
    with pytest.raises(ValueError, match="segment_ids: documents must start at a multiple of block_size=4"):
        model(jnp.zeros((1, 8), jnp.int32), segment_ids=jnp.array([[0, 0, 0, 1, 1, 1, 1, 1]]))
