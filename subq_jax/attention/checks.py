"""Refusals of the attention functions: each wrong argument is named before any compute."""

import jax
import jax.numpy as jnp
import numpy as np

from subq_jax.selection.config import SelectionConfig
from subq_jax.selection.tree import SummaryTree, build_tree
from subq_jax.selection.visibility import QueryPlace, place_queries, present_keys


def check_selective_arrays(q, k, v, router_q, router_k, config: SelectionConfig) -> None:
    """Checks ranks, shapes and dtypes of the five arrays of selective attention against each other.

    Raises:
      TypeError: when an argument is not a floating-point array, or `config` is not a SelectionConfig.
      ValueError: when a rank or an axis is wrong.
    """
    if not isinstance(config, SelectionConfig):
        raise TypeError(f"config must be a SelectionConfig, got {type(config).__name__}")
    check_attention_arrays(q, k, v)
    check_float_arrays({"router_q": router_q, "router_k": router_k})
    (batch, queries), length, kv_heads = q.shape[:2], k.shape[1], k.shape[2]
    router_dim = router_q.shape[3]
    expect_shape("router_q", router_q, (batch, queries, kv_heads, router_dim), "[B, T, K, R]")
    expect_shape("router_k", router_k, (batch, length, kv_heads, router_dim), "[B, S, K, R]")
    if router_q.dtype != router_k.dtype:
        raise ValueError(f"router_k must have router_q's dtype {router_q.dtype}, got {router_k.dtype}")


def check_float_arrays(arrays: dict) -> None:
    """Raises unless every named array is a floating-point array of rank 4 without an empty axis."""
    for name, array in arrays.items():
        if not hasattr(array, "dtype") or not jnp.issubdtype(array.dtype, jnp.floating):
            found = getattr(array, "dtype", type(array).__name__)
            raise TypeError(f"{name} must be a floating-point array, got {found}")
        if jnp.dtype(array.dtype).itemsize not in (2, 4):
            raise TypeError(f"{name} must be bfloat16, float16 or float32, got {array.dtype}")
        if array.ndim != 4:
            raise ValueError(f"{name} must have 4 axes (batch, token, head, feature), got shape {array.shape}")
        if 0 in array.shape:
            raise ValueError(f"{name} must not have an empty axis, got shape {array.shape}")


def check_attention_arrays(q, k, v) -> None:
    """Raises unless q [B, T, N, H], k and v [B, S, K, H] are floating-point, agree, and N is a multiple of K."""
    check_float_arrays({"q": q, "k": k, "v": v})
    batch, _, heads, head_dim = q.shape
    length, kv_heads = k.shape[1:3]
    expect_shape("k", k, (batch, length, kv_heads, head_dim), "[B, S, K, H]")
    expect_shape("v", v, (batch, length, kv_heads, head_dim), "[B, S, K, H]")
    if heads % kv_heads:
        raise ValueError(f"the heads of q must be a multiple of num_kv_heads={kv_heads}, got {heads}")
    for name, array in (("k", k), ("v", v)):
        if array.dtype != q.dtype:
            raise ValueError(f"{name} must have q's dtype {q.dtype}, got {array.dtype}")


def expect_shape(name: str, array, shape: tuple[int, ...], axes: str) -> None:
    """Raises ValueError unless `array` has `shape`."""
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {axes} = {shape}, got {array.shape}")


def locate(q, k, q_offset, kv_length, segment_ids, block_size: int) -> tuple[QueryPlace, jax.Array]:
    """Where the rows of `q` stand, and which positions of `k` hold a key [B, S], of arguments that are checked first.

    `block_size` is 1 for mechanisms without blocks; see `selective_attention` for the other arguments.
    """
    (batch, queries), length = q.shape[:2], k.shape[1]
    check_segment_ids(segment_ids, batch, length, block_size)
    existing = check_kv_length(kv_length, batch, length)
    offset = check_q_offset(q_offset, kv_length, existing, queries, length)
    present = present_keys(existing, length, segment_ids)
    return place_queries(offset, queries, segment_ids, block_size), present


def check_kv_length(kv_length, batch: int, length: int) -> jax.Array:
    """`kv_length` as int32 [B]; default `length`. Concrete values must lie in [0, length]."""
    if kv_length is None:
        return jnp.full((batch,), length, jnp.int32)
    result = per_sequence("kv_length", kv_length, batch)
    values = concrete(kv_length)
    if values is not None and (np.any(values < 0) or np.any(values > length)):
        raise ValueError(f"kv_length must lie in [0, {length}], the number of keys, got {values.tolist()}")
    return result


def check_q_offset(q_offset, kv_length, existing: jax.Array, queries: int, length: int) -> jax.Array:
    """`q_offset` as int32 [B]; default `kv_length - T`. Concrete values must keep every query inside the keys.

    `existing` is the checked `kv_length`, int32 [B].
    """
    limit = np.int64(length) if kv_length is None else concrete(kv_length)
    if q_offset is None:
        values, result = None if limit is None else limit - queries, existing - queries
    else:
        result, values = per_sequence("q_offset", q_offset, existing.shape[0]), concrete(q_offset)
    if values is not None and np.any(values < 0):
        raise ValueError(f"q_offset must be >= 0, got {values.tolist()} for {queries} queries")
    if values is not None and limit is not None and np.any(values > limit - queries):
        raise ValueError(
            f"q_offset + T must be <= the number of keys {limit.tolist()}, got {values.tolist()} + {queries}")
    return result


def per_sequence(name: str, value, batch: int) -> jax.Array:
    """An int or an integer array [B] as int32 [B]."""
    array = value if isinstance(value, jax.Array) else np.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"{name} must be an int or an integer array, got dtype {array.dtype}")
    if array.shape not in ((), (batch,)):
        raise ValueError(f"{name} must be an int or have shape [B] = ({batch},), got {array.shape}")
    return jnp.broadcast_to(jnp.asarray(array, jnp.int32), (batch,))


def check_segment_ids(segment_ids, batch: int, length: int, block_size: int) -> None:
    """Checks shape and dtype; when concrete, also that ids fit and every document starts at a block boundary."""
    if segment_ids is None:
        return
    check_integers("segment_ids", segment_ids, (batch, length), "[B, S]")
    ids = concrete(segment_ids)
    if ids is None:
        return
    given = np.asarray(segment_ids)
    wrapping = given[given != given.astype(np.int32)]
    if given.dtype.itemsize > 4 and wrapping.size:
        raise ValueError(f"segment_ids must be in [-2**31, 2**31), got {wrapping[0]}")
    starts = (ids[:, 1:] != ids[:, :-1]) & (ids[:, 1:] >= 0)
    row, column = np.nonzero(starts & (np.arange(1, length) % block_size != 0))
    if row.size:
        raise ValueError(
            f"segment_ids: documents must start at a multiple of block_size={block_size}, "
            f"got a start at position {column[0] + 1} of sequence {row[0]}")


def check_selection(selection, shape: tuple[int, int, int, int]) -> None:
    """Checks shape and dtype of a selection given by the caller."""
    if selection is not None:
        check_integers("selection", selection, shape, "[B, T, K, M]")


def check_gate(gate) -> None:
    """Raises TypeError unless `gate` is a bool: it decides what is compiled."""
    if not isinstance(gate, bool | np.bool_):
        raise TypeError(f"gate must be a bool, got {type(gate).__name__}")


def check_tree(tree, router_k, config: SelectionConfig) -> None:
    """Checks the levels of a prebuilt tree against the router keys and the config's fan-outs."""
    if tree is None:
        return
    if not isinstance(tree, SummaryTree):
        raise TypeError(f"tree must be a SummaryTree, from build_tree, got {type(tree).__name__}")
    wanted = jax.eval_shape(lambda keys: build_tree(keys, config), jax.ShapeDtypeStruct(router_k.shape, router_k.dtype))
    if len(tree.levels) != len(wanted.levels):
        raise ValueError(f"tree must have {len(wanted.levels)} levels for fanouts={config.fanouts}, "
                         f"got {len(tree.levels)}")
    for level, (found, expected) in enumerate(zip(tree.levels, wanted.levels, strict=True)):
        expect_shape(f"tree.levels[{level}]", found, expected.shape, "[B, K, nodes, R]")
        if found.dtype != expected.dtype:
            raise ValueError(f"tree.levels[{level}] must have router_k's dtype {expected.dtype}, got {found.dtype}")


def check_integers(name: str, array, shape: tuple[int, ...], axes: str) -> None:
    """Raises unless `array` is an integer array of `shape`."""
    if not hasattr(array, "dtype") or not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"{name} must be an integer array, got {getattr(array, 'dtype', type(array).__name__)}")
    expect_shape(name, array, shape, axes)


def concrete(value) -> np.ndarray | None:
    """The value as int64 numpy array, or None when it is traced and must be trusted."""
    return None if isinstance(value, jax.core.Tracer) else np.asarray(value, np.int64)
