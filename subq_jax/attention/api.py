"""`selective_attention`: the public function, and the choice of its implementation."""

import functools

import jax
import jax.numpy as jnp

from subq_jax.attention import checks
from subq_jax.attention.reference import reference_selective_attention
from subq_jax.attention.sharded import attend_sharded
from subq_jax.axes import Keys, Outputs, PerSequence, Queries, RouterKeys, RouterQueries, SegmentIds, Selection, Values
from subq_jax.kernels.gpu.limits import on_hopper
from subq_jax.kernels.gpu.selective import gpu_selective_attention
from subq_jax.kernels.tpu.selective import tpu_selective_attention
from subq_jax.kernels.xla.layout import vary_alike
from subq_jax.kernels.xla.selective import few_queries, xla_selective_attention
from subq_jax.parallel.sharding import active_mesh
from subq_jax.selection.choose import as_block_ids
from subq_jax.selection.config import SelectionConfig
from subq_jax.selection.inputs import SelectiveInputs
from subq_jax.selection.tree import SummaryTree, build_tree, clear_incomplete_nodes
from subq_jax.selection.visibility import clear_absent_keys, clear_padding_rows

IMPLEMENTATIONS = {
    "gpu": gpu_selective_attention,
    "reference": reference_selective_attention,
    "tpu": tpu_selective_attention,
    "xla": xla_selective_attention,
}
KERNELS = ("gpu", "tpu")  # of Pallas, which the compiler cannot shard


def default_implementation() -> str:
    """The kernels of this kind of device, else `"xla"`, also where several have no `activation_mesh` to shard them."""
    if jax.device_count() > 1 and active_mesh() is None:
        return "xla"
    match jax.default_backend():
        case "tpu":
            return "tpu"
        case "gpu" if on_hopper():
            return "gpu"
    return "xla"


def selective_attention(
    q: Queries,
    k: Keys,
    v: Values,
    router_q: RouterQueries,
    router_k: RouterKeys,
    config: SelectionConfig,
    q_offset: int | PerSequence | None = None,
    kv_length: int | PerSequence | None = None,
    segment_ids: SegmentIds | None = None,
    gate: bool = True,
    selection: Selection | None = None,
    tree: SummaryTree | None = None,
    implementation: str | None = None,
    return_selection: bool = False,
) -> Outputs | tuple[Outputs, Selection]:
    """Exact causal attention over the key blocks that each query chooses by content.

    Query `t` stands at position `p = q_offset + t` and sees, per KV head, the positions `j <= p` in the first
    `sink_blocks` blocks, in its own and the `local_blocks - 1` blocks before it, and in the `num_blocks` blocks of
    highest `score(p, b) = router_q[p] . summary[b] / sqrt(R)` among the complete past blocks in between. With `gate`
    the score of a selected block is added to the logits of its tokens, which carries the gradient to the router.
    The choice itself is constant under differentiation. All but `"reference"` have a backward pass of their own:
    reverse mode, once.

    Args:
      q: queries [B, T, N, H]; query head n belongs to KV head n // (N // K).
      k: keys [B, S, K, H], in `q`'s dtype.
      v: values [B, S, K, H], in `q`'s dtype.
      router_q: router queries [B, T, K, R].
      router_k: router keys [B, S, K, R], in `router_q`'s dtype.
      config: block size, number of selected, local and sink blocks, pooling.
      q_offset: position of the first query, int or int32 [B]; default `kv_length - T`.
      kv_length: number of keys that exist, int or int32 [B]; default S. Whatever is stored beyond is never read.
      segment_ids: int [B, S], documents packed into one sequence, each starting at a block boundary; every rule above
        then holds within the query's document. Rows with a negative id output 0 and have zero gradient.
      gate: whether scores are added to the logits of selected blocks.
      selection: int [B, T, K, M], overrides the choice. Ids that are not candidates of their query are ignored.
      tree: summaries prebuilt by `build_tree` and `update_tree` for these router keys, so that a call need not
        read them all; gradients then flow to its lowest level.
      implementation: `"reference"` (dense, float32, for checking), `"xla"`, `"gpu"` or `"tpu"` (Pallas kernels; sizes
        that they do not take run as `"xla"`, with a warning that says why); default `"tpu"` on a TPU, `"gpu"` on a GPU
        of compute capability 9.0, else `"xla"`; with several devices always `"xla"` outside of `activation_mesh`.
      return_selection: whether to return the selection too.

    Returns:
      the output [B, T, N, H] in `q`'s dtype; with `return_selection` also int32 [B, T, K, M], the selected block ids
      ascending, then -1.

    Raises:
      TypeError, ValueError: for arguments that do not fit together, naming the argument.

    Source: the mechanism of this project; selected blocks after NSA (arXiv 2502.11089) and MoBA (arXiv 2502.13189).
    """
    checks.check_selective_arrays(q, k, v, router_q, router_k, config)
    checks.check_tree(tree, router_k, config)
    checks.check_gate(gate)
    checks.check_selection(selection, (*q.shape[:2], k.shape[2], config.num_blocks))
    name = default_implementation() if implementation is None else implementation
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"implementation must be one of {sorted(IMPLEMENTATIONS)} or None, got {implementation!r}")
    place, present = checks.locate(q, k, q_offset, kv_length, segment_ids, config.block_size)
    if selection is not None:
        selection = as_block_ids(selection)
    q, router_q = (clear_padding_rows(x, place) for x in (q, router_q))
    if tree is None:
        tree = build_tree(clear_absent_keys(router_k, present), config)
    elif name == "reference" or not few_queries(q.shape[1], k.shape[1], config):
        # A few queries read the summaries of their candidates alone; clearing would copy all for every token decoded.
        tree = clear_incomplete_nodes(tree, checks.check_kv_length(kv_length, k.shape[0], k.shape[1]), config)
    inputs = vary_alike(SelectiveInputs(q, k, v, router_q, tree, place, present, selection))
    attend = functools.partial(IMPLEMENTATIONS[name], config=config, gate=gate)
    out, chosen = attend_sharded(attend, inputs) if name in KERNELS else attend(inputs)
    return (out, chosen) if return_selection else out


def chosen_attention(
    selection: Selection,
    q: Queries,
    k: Keys,
    v: Values,
    config: SelectionConfig,
    q_offset: int | PerSequence | None = None,
    kv_length: int | PerSequence | None = None,
    segment_ids: SegmentIds | None = None,
    return_selection: bool = False,
) -> Outputs | tuple[Outputs, Selection]:
    """`selective_attention` over a `selection` made elsewhere: no router, no gate."""
    no_router = [jnp.zeros((*x.shape[:2], k.shape[2], 1), q.dtype) for x in (q, k)]
    return selective_attention(q, k, v, *no_router, config, q_offset, kv_length, segment_ids, gate=False,
                               selection=selection, return_selection=return_selection)
