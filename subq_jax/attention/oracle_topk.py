"""Blocks chosen by dense attention's own weight: the control that separates a selector's error from the budget's."""

import jax

from subq_jax.attention import checks
from subq_jax.attention.api import chosen_attention
from subq_jax.axes import Keys, Outputs, PerSequence, Queries, SegmentIds, Selection, Values
from subq_jax.kernels.xla.dense import chunk_rows
from subq_jax.kernels.xla.layout import map_query_chunks
from subq_jax.kernels.xla.mass import block_mass
from subq_jax.selection.choose import choose_blocks
from subq_jax.selection.config import SelectionConfig
from subq_jax.selection.visibility import QueryPlace, clear_absent_keys, clear_padding_rows


def oracle_topk_attention(
    q: Queries,
    k: Keys,
    v: Values,
    config: SelectionConfig,
    q_offset: int | PerSequence | None = None,
    kv_length: int | PerSequence | None = None,
    segment_ids: SegmentIds | None = None,
    return_selection: bool = False,
) -> Outputs | tuple[Outputs, Selection]:
    """Exact attention over sink and local blocks, and over the past blocks on which dense attention puts most weight.

    As `selective_attention` without a gate. The weight is averaged over the head group, since the group shares its
    blocks. It costs dense attention, a chunk of queries at a time, and says what the best choice of so many blocks
    would give to weights that were trained dense. Arguments and errors as there.
    """
    checks.check_attention_arrays(q, k, v)
    place, present = checks.locate(q, k, q_offset, kv_length, segment_ids, config.block_size)
    selection = oracle_selection(clear_padding_rows(q, place), clear_absent_keys(k, present), place, config)
    return chosen_attention(selection, q, k, v, config, q_offset, kv_length, segment_ids, return_selection)


def oracle_selection(q: Queries, k: Keys, place: QueryPlace, config: SelectionConfig) -> Selection:
    """The candidates with most of dense attention's weight, ties to the lower index."""
    q, k = jax.lax.stop_gradient((q, k))

    def chunk(args):
        q, place = args
        return choose_blocks(block_mass(q, k, place, config.block_size), place, config).swapaxes(1, 2)

    return map_query_chunks(chunk, (q, place), chunk_rows(q.shape[0] * q.shape[2] * k.shape[1]))
