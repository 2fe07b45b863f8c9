"""Blocks chosen by mean keys: the training-free selector that selective attention is compared with."""

from subq_jax.attention import checks
from subq_jax.attention.api import selective_attention
from subq_jax.axes import Keys, Outputs, PerSequence, Queries, RouterQueries, SegmentIds, Selection, Values
from subq_jax.selection.config import SelectionConfig


def block_mean_attention(
    q: Queries,
    k: Keys,
    v: Values,
    config: SelectionConfig,
    q_offset: int | PerSequence | None = None,
    kv_length: int | PerSequence | None = None,
    segment_ids: SegmentIds | None = None,
    return_selection: bool = False,
) -> Outputs | tuple[Outputs, Selection]:
    """Exact attention over the blocks whose mean key is nearest to the mean query of the head group.

    The same sink, local and selected blocks as `selective_attention`, with `q` averaged over each head group in place
    of the router's queries, `k` in place of its keys, mean pooling and no gate. Arguments and errors as there.

    Source: MoBA (arXiv 2502.13189).
    """
    checks.check_attention_arrays(q, k, v)
    router_q = group_mean(q, k.shape[2])
    return selective_attention(q, k, v, router_q, k, config, q_offset, kv_length, segment_ids, gate=False,
                               return_selection=return_selection)


def group_mean(q: Queries, kv_heads: int) -> RouterQueries:
    """The mean query of each head group: [B, T, K, H]."""
    batch, queries, heads, head_dim = q.shape
    return q.reshape(batch, queries, kv_heads, heads // kv_heads, head_dim).mean(axis=3)
