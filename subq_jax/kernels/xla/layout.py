"""Between the public layout [B, T, N, H] and the kernels' rows X = B * K, one per sequence and KV head."""

import jax
import jax.numpy as jnp


def fold(x):
    """[B, K, ...] -> [X, ...]."""
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])


def unfold(x, batch: int):
    """[X, ...] -> [B, K, ...]."""
    return x.reshape(batch, x.shape[0] // batch, *x.shape[1:])


def fold_keys(x):
    """[B, S, K, H] -> [X, S, H]."""
    return fold(x.swapaxes(1, 2))


def fold_queries(x, kv_heads: int):
    """[B, T, N, H] -> [X, T, G, H]."""
    x = x.reshape(*x.shape[:2], kv_heads, x.shape[2] // kv_heads, *x.shape[3:])
    return fold(jnp.moveaxis(x, 2, 1))


def unfold_queries(x, batch: int):
    """[X, T, G, H] -> [B, T, N, H]."""
    x = unfold_keys(x, batch)
    return x.reshape(*x.shape[:2], x.shape[2] * x.shape[3], x.shape[4])


def unfold_keys(x, batch: int):
    """[X, S, H] -> [B, S, K, H]."""
    return unfold(x, batch).swapaxes(1, 2)


def repeat_heads(x, kv_heads: int):
    """[B, T] or [B, T, n], the same for every KV head -> [X, T] or [X, T, n]."""
    return jnp.repeat(x, kv_heads, axis=0)


def whole_rows(x, multiple: int, fill=0):
    """[X, T, ...] -> [X, P, ...], filled up with `fill` to a multiple."""
    pad = [(0, 0), (0, -x.shape[1] % multiple)] + [(0, 0)] * (x.ndim - 2)
    return jnp.pad(x, pad, constant_values=fill)


def split_rows(x, rows: int, fill=0):
    """[X, T, ...] -> [chunks, X, rows, ...], the last chunk filled up with `fill`."""
    x = whole_rows(x, rows, fill)
    return jnp.moveaxis(x.reshape(x.shape[0], x.shape[1] // rows, rows, *x.shape[2:]), 1, 0)


def join_rows(x, queries: int):
    """[chunks, X, rows, ...] -> [X, T, ...], the inverse of `split_rows`."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :queries]


def vary_alike(arrays):
    """The tree `arrays`, cast to vary over every mesh axis of a `jax.shard_map` that one of them varies over.

    A loop must carry one type, and a gradient have its array's: both say over which axes an array varies. Outside of a
    `jax.shard_map` nothing varies, and nothing is done.
    """
    axes_of = lambda x: jax.typeof(x).manual_axis_type.varying
    axes = frozenset().union(*map(axes_of, jax.tree.leaves(arrays)))
    return jax.tree.map(lambda x: jax.lax.pcast(x, tuple(sorted(axes - axes_of(x), key=str)), to="varying"), arrays)


def map_query_chunks(function, args, rows: int):
    """Applies `function` to chunks of `rows` queries (axis 1) of every array in `args`, one chunk after another.

    `function` takes the tree `args` of arrays [B, rows, ...] and returns a tree of such arrays.
    """
    queries = jax.tree.leaves(args)[0].shape[1]
    if rows >= queries:
        return function(args)
    results = jax.lax.map(function, jax.tree.map(lambda x: split_rows(x, rows), args))
    return jax.tree.map(lambda x: join_rows(x, queries), results)
