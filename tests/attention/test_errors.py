"""Every wrong argument of `selective_attention` is refused before any compute, by its name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import arrays

from subq_jax import SelectionConfig, SummaryTree, selective_attention

NAMES = ("q", "k", "v", "router_q", "router_k")
CONFIG = SelectionConfig(block_size=4, num_blocks=2, local_blocks=1, sink_blocks=1)
BATCH, QUERIES, LENGTH = 2, 6, 20
VALUES = dict(zip(NAMES, arrays(0, BATCH, QUERIES, LENGTH, 2, 2), strict=True))


def attend(**changes):
    return selective_attention(**VALUES | {"config": CONFIG} | changes)


def like(name, dtype=jnp.float32, **axes):
    """Zeros of the shape of an argument, some axes changed (`axis_1=7`)."""
    shape = list(VALUES[name].shape)
    for axis, size in axes.items():
        shape[int(axis.removeprefix("axis_"))] = size
    return jnp.zeros(shape, dtype)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("wrong", "error", "message"), [
    (lambda name: VALUES[name][0], ValueError, "must have 4 axes"),
    (lambda name: like(name, jnp.int32), TypeError, "must be a floating-point array, got int32"),
    (lambda name: like(name, jnp.complex64), TypeError, "must be a floating-point array, got complex64"),
    (lambda name: np.zeros(VALUES[name].shape), TypeError, "must be bfloat16, float16 or float32, got float64"),
    (lambda name: like(name, jnp.float8_e4m3fn), TypeError, "must be bfloat16, float16 or float32, got float8_e4m3fn"),
    (lambda name: VALUES[name].tolist(), TypeError, "must be a floating-point array, got list"),
    (lambda name: None, TypeError, "must be a floating-point array, got NoneType"),
    *((lambda name, axis=axis: like(name, **{f"axis_{axis}": 0}), ValueError, "must not have an empty axis")
      for axis in range(4)),
])
def test_what_is_no_array_of_four_axes_is_named(name, wrong, error, message):
    with pytest.raises(error, match=f"^{name} {message}"):
        attend(**{name: wrong(name)})


@pytest.mark.parametrize(("changes", "message"), [
    ({"q": like("q", axis_2=3)}, "heads of q must be a multiple of num_kv_heads=2, got 3"),
    ({"q": like("q", axis_2=1)}, "heads of q must be a multiple of num_kv_heads=2, got 1"),
    ({"q": like("q", axis_3=5)}, r"k must have shape \[B, S, K, H\] = \(2, 20, 2, 5\), got \(2, 20, 2, 8\)"),
    ({"k": like("k", axis_0=1)}, r"k must have shape .* = \(2, 20, 2, 8\), got \(1, 20, 2, 8\)"),
    ({"v": like("v", axis_1=19)}, r"v must have shape .* = \(2, 20, 2, 8\), got \(2, 19, 2, 8\)"),
    ({"v": like("v", axis_3=4)}, r"v must have shape .*, got \(2, 20, 2, 4\)"),
    ({"router_q": like("router_q", axis_1=20)}, r"router_q must have shape \[B, T, K, R\] = \(2, 6, 2, 4\)"),
    ({"router_q": like("router_q", axis_2=4)}, r"router_q must have shape \[B, T, K, R\] = \(2, 6, 2, 4\)"),
    ({"router_k": like("router_k", axis_1=5)}, r"router_k must have shape \[B, S, K, R\] = \(2, 20, 2, 4\)"),
    ({"router_k": like("router_k", axis_3=3)}, r"router_k must have shape \[B, S, K, R\] = \(2, 20, 2, 4\)"),
    ({"k": like("k", jnp.bfloat16)}, "k must have q's dtype float32, got bfloat16"),
    ({"v": like("v", jnp.float16)}, "v must have q's dtype float32, got float16"),
    ({"router_k": like("router_k", jnp.bfloat16)}, "router_k must have router_q's dtype float32, got bfloat16"),
])
def test_arrays_that_do_not_fit_together_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        attend(**changes)


@pytest.mark.parametrize(("changes", "error", "message"), [
    ({"gate": "no"}, TypeError, "gate must be a bool, got str"),
    ({"q_offset": -1}, ValueError, "q_offset must be >= 0, got -1"),
    ({"q_offset": 15}, ValueError, r"q_offset \+ T must be <= the number of keys 20, got 15 \+ 6"),
    ({"q_offset": 2**63 - 1}, ValueError, r"q_offset \+ T must be <= the number of keys 20"),
    ({"q_offset": 2**40}, ValueError, r"q_offset \+ T must be <= the number of keys 20"),
    ({"q_offset": jnp.array([0, -2])}, ValueError, r"q_offset must be >= 0, got \[0, -2\]"),
    ({"q_offset": np.array([14, 15])}, ValueError, r"q_offset \+ T must be <= the number of keys 20, got \[14, 15\]"),
    ({"q_offset": 5, "kv_length": 10}, ValueError, r"q_offset \+ T must be <= the number of keys 10, got 5 \+ 6"),
    ({"q_offset": 3, "kv_length": jnp.array([20, 8])}, ValueError, r"<= the number of keys \[20, 8\]"),
    ({"q_offset": 2.0}, TypeError, "q_offset must be an int or an integer array, got dtype float64"),
    ({"q_offset": float("nan")}, TypeError, "q_offset must be an int or an integer array"),
    ({"q_offset": True}, TypeError, "q_offset must be an int or an integer array, got dtype bool"),
    ({"q_offset": "3"}, TypeError, "q_offset must be an int or an integer array"),
    ({"q_offset": jnp.zeros((3,), jnp.int32)}, ValueError, r"q_offset must be .*shape \[B\] = \(2,\), got \(3,\)"),
    ({"q_offset": jnp.zeros((2, 1), jnp.int32)}, ValueError, r"q_offset must be .*got \(2, 1\)"),
    ({"kv_length": -1}, ValueError, r"kv_length must lie in \[0, 20\].* got -1"),
    ({"kv_length": 21}, ValueError, r"kv_length must lie in \[0, 20\].* got 21"),
    ({"kv_length": np.array([20, 21])}, ValueError, r"kv_length must lie in \[0, 20\].* got \[20, 21\]"),
    ({"kv_length": 5}, ValueError, "q_offset must be >= 0, got -1 for 6 queries"),
    ({"kv_length": 12.0}, TypeError, "kv_length must be an int or an integer array, got dtype float64"),
    ({"kv_length": float("nan"), "q_offset": 1}, TypeError, "kv_length must be an int or an integer array"),
    ({"kv_length": np.array([9, 9, 9]), "q_offset": np.array([1, 1])}, ValueError, r"kv_length must be .*got \(3,\)"),
    ({"segment_ids": jnp.zeros((2, 6), jnp.int32)}, ValueError, r"segment_ids must have shape \[B, S\] = \(2, 20\)"),
    ({"segment_ids": jnp.zeros((2, 20))}, TypeError, "segment_ids must be an integer array, got float32"),
    ({"segment_ids": [[0] * 20] * 2}, TypeError, "segment_ids must be an integer array, got list"),
    ({"segment_ids": np.array([[0] * 20, [0] * 6 + [1] * 14])}, ValueError,
     "segment_ids: documents must start at a multiple of block_size=4, got a start at position 6 of sequence 1"),
    ({"segment_ids": np.array([[-1] * 3 + [1] * 17] * 2)}, ValueError, "segment_ids: .* position 3 of sequence 0"),
    ({"selection": jnp.zeros((2, 6, 2, 3), jnp.int32)}, ValueError,
     r"selection must have shape \[B, T, K, M\] = \(2, 6, 2, 2\), got \(2, 6, 2, 3\)"),
    ({"selection": jnp.zeros((2, 6, 2, 2))}, TypeError, "selection must be an integer array, got float32"),
    ({"implementation": "cuda"}, ValueError,
     r"implementation must be one of \['gpu', 'reference', 'tpu', 'xla'\].*got 'cuda'"),
    ({"tree": ()}, TypeError, "tree must be a SummaryTree, from build_tree, got tuple"),
    ({"tree": SummaryTree(())}, ValueError, r"tree must have 1 levels for fanouts=\(\), got 0"),
    ({"tree": SummaryTree((jnp.zeros((1, 2, 3, 5)),))}, ValueError, r"tree.levels\[0\] must have shape"),
    ({"config": {"block_size": 4}}, TypeError, "config must be a SelectionConfig, got dict"),
])
def test_wrong_options_are_named(changes, error, message):
    with pytest.raises(error, match=message):
        attend(**changes)


@pytest.mark.parametrize("bad", [-1, 2.0, True, float("nan"), "4", None])
@pytest.mark.parametrize(("field", "floor"), [
    ("block_size", 1), ("num_blocks", 1), ("local_blocks", 1), ("sink_blocks", 0), ("beam_width", 1)])
def test_the_numbers_of_a_selection_are_integers_in_range(field, floor, bad):
    with pytest.raises(ValueError, match=f"^{field} must be an integer >= {floor}, got {bad!r}"):
        SelectionConfig(**{field: bad})
    if floor:
        with pytest.raises(ValueError, match=f"^{field} must be an integer >= {floor}, got 0"):
            SelectionConfig(**{field: 0})
    else:
        SelectionConfig(**{field: 0})


@pytest.mark.parametrize(("fields", "message"), [
    ({"pooling": "median"}, r"pooling must be one of \('max', 'mean'\), got 'median'"),
    ({"pooling": None}, "pooling must be one of .* got None"),
    ({"fanouts": 64}, "fanouts must be a tuple of integers, got 64"),
    ({"fanouts": (1,)}, "fanouts must be an integer >= 2, got 1"),
    ({"fanouts": (64.0,)}, "fanouts must be an integer >= 2, got 64.0"),
    ({"fanouts": (4,), "beam_width": 3, "num_blocks": 13},
     r"beam_width \* fanouts\[0\] must be >= num_blocks=13, got 3 \* 4 = 12"),
])
def test_a_selection_that_cannot_be_made_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        SelectionConfig(**fields)


def test_a_beam_just_wide_enough_is_accepted():
    config = SelectionConfig(fanouts=[4], beam_width=3, num_blocks=12)
    assert config.fanouts == (4,)
    hash(config)


def run(name, **where):
    return selective_attention(*VALUES.values(), CONFIG, implementation=name, return_selection=True, **where)


def test_traced_places_are_trusted_and_give_the_same_result(implementation):
    offset, present = jnp.array([2, 11], jnp.int32), jnp.array([9, 20], jnp.int32)
    ids = jnp.array([[0] * 12 + [1] * 8, [0] * 20])
    traced = jax.jit(lambda *x: run(implementation, q_offset=x[0], kv_length=x[1], segment_ids=x[2]))
    concrete = jax.jit(lambda: run(
        implementation, q_offset=np.asarray(offset), kv_length=np.asarray(present), segment_ids=np.asarray(ids)))
    for a, b in zip(traced(offset, present, ids), concrete(), strict=True):
        np.testing.assert_array_equal(a, b)
    beyond = traced(offset + 100, present, ids)  # out of range: garbage is allowed, an error is not
    assert beyond[0].shape == VALUES["q"].shape


def test_an_int_and_an_array_say_the_same():
    one, many = (jax.jit(lambda x=x, y=y: run("reference", q_offset=x, kv_length=y))()
                 for x, y in ((3, 12), (np.array([3, 3]), jnp.array([12, 12], jnp.int8))))
    for a, b in zip(one, many, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("ids", [np.int64(2**31), np.int64(-(2**31) - 1), np.uint64(2**64 - 1)])
def test_documents_whose_ids_would_wrap_around_are_refused(ids):
    documents = np.full((BATCH, LENGTH), ids)
    with pytest.raises(ValueError, match=rf"segment_ids must be in \[-2\*\*31, 2\*\*31\), got {ids}"):
        run("reference", segment_ids=documents)


def test_numpy_inputs_are_accepted(implementation):
    expected, ids = jax.jit(lambda: run(implementation))()
    arguments = [np.asarray(x) for x in VALUES.values()]
    out, again = jax.jit(lambda: selective_attention(
        *arguments, CONFIG, selection=np.asarray(ids, np.int64), segment_ids=np.zeros((BATCH, LENGTH), np.int64),
        implementation=implementation, return_selection=True))()
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, expected, atol=1e-6, rtol=0)
    np.testing.assert_array_equal(again, ids)
