"""Full causal attention: the arm that every other one is compared with."""

import jax
import jax.numpy as jnp

from subq_jax.attention import checks
from subq_jax.axes import Keys, Outputs, PerSequence, Queries, SegmentIds, Values
from subq_jax.kernels.gpu.decode import dense_attention_of_one
from subq_jax.kernels.gpu.limits import decodes_densely
from subq_jax.kernels.xla.dense import MIN_ROWS, cached_attention, whole_attention
from subq_jax.kernels.xla.grain import grain
from subq_jax.selection.visibility import clear_absent_keys, clear_padding_rows

STRIPS = 8  # a query strip reads only the keys up to its end, which saves nearly half of the square


def dense_attention(
    q: Queries,
    k: Keys,
    v: Values,
    q_offset: int | PerSequence | None = None,
    kv_length: int | PerSequence | None = None,
    segment_ids: SegmentIds | None = None,
) -> Outputs:
    """Exact causal attention over every past position of the query's document.

    Runs cuDNN's flash attention for whole causal sequences in bf16 or fp16 on a GPU, if H is a multiple of 8 and at
    most 128, `kernels/gpu/decode.py` for one query of a cache on a single Hopper GPU, and elsewhere plain XLA over
    chunks of queries, recomputed in the backward pass, so that memory stays linear in the length.

    Args:
      q: queries [B, T, N, H].
      k: keys [B, S, K, H].
      v: values [B, S, K, H].
      q_offset: position of the first query, int or int32 [B]; default `kv_length - T`.
      kv_length: number of keys that exist, int or int32 [B]; default S.
      segment_ids: int [B, S], packed documents; rows with a negative id output 0.

    Returns:
      the output [B, T, N, H] in `q`'s dtype.

    Raises:
      TypeError, ValueError: for arguments that do not fit together, naming the argument.
    """
    checks.check_attention_arrays(q, k, v)
    place, present = checks.locate(q, k, q_offset, kv_length, segment_ids, block_size=1)
    queries, length = q.shape[1], k.shape[1]
    whole = q_offset is None and kv_length is None and queries == length
    fits_cudnn = q.dtype in (jnp.bfloat16, jnp.float16) and q.shape[3] % 8 == 0 and q.shape[3] <= 128
    if whole and segment_ids is None and jax.default_backend() == "gpu" and fits_cudnn:
        return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")
    if segment_ids is None and decodes_densely(q, k):
        return dense_attention_of_one(q, k, v, place, present)
    q = clear_padding_rows(q, place)
    if queries <= MIN_ROWS and length > grain().keys:
        return cached_attention(q, place, present, k, v)
    k, v = clear_absent_keys(k, present), clear_absent_keys(v, present)

    strip = -(-queries // STRIPS) if whole and queries >= 1024 else queries
    outs = []
    for start in range(0, queries, strip):
        stop = min(start + strip, queries)
        seen = stop if whole else length
        rows = jax.tree.map(lambda x, a=start, b=stop: x[:, a:b], (q, place))
        outs.append(whole_attention(*rows, k[:, :seen], v[:, :seen]))
    return jnp.concatenate(outs, axis=1)
