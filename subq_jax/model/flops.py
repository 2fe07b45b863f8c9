"""Analytic floating-point work of a decoder's forward pass, so that cost is compared without a clock.

Only work that has to be done is counted: causal attention counts the visible half of the square, sparse arms count the
positions they see, and the price of choosing them stands on its own line, `selection`. One multiply-add is 2 FLOPs;
softmax, norms and activations (a few operations per element) are left out. Every count is a closed form, so a length
of twelve million costs the same to evaluate as one of twelve.
"""

from subq_jax.attention.mechanisms import ROUTED
from subq_jax.model.config import DecoderConfig
from subq_jax.model.indexer import INDEX_HEADS


def forward_flops(config: DecoderConfig, length: int) -> dict[str, float]:
    """FLOPs of one forward pass over one sequence of `length` tokens, logits of every position included.

    Args:
      config: the decoder's shape; `vocab_size` must be filled in.
      length: tokens in the sequence, >= 1.

    Returns:
      `attention` (the two products over visible positions), `selection` (scoring of candidates, block summaries,
      group-mean queries, summaries in slots, the oracle's dense weights), `projections` (queries, keys, values,
      outputs, router or indexer, short convolution), `mlp`, `logits` and their sum `total`.

    Raises:
      ValueError: if `length` is below 1.
    """
    if length < 1:
        raise ValueError(f"length must be >= 1, got {length}")
    kinds = config.layer_kinds
    selective, local = kinds.count("selective"), kinds.count("local")
    per_visible = 2 * 2 * config.num_heads * config.head_dim
    visible = selective * visible_pairs(config, length) + local * window_pairs(length, config.local_window)
    parts = {
        "attention": per_visible * visible,
        "selection": selective * _selection_flops(config, length),
        "projections": length * sum(_projection_flops(config, kind) for kind in kinds),
        "mlp": length * config.num_layers * 3 * 2 * config.width * config.mlp_width,
        "logits": length * 2 * config.width * config.vocab_size,
    }
    return {"total": float(sum(parts.values()))} | {name: float(value) for name, value in parts.items()}


def training_flops(config: DecoderConfig, length: int) -> float:
    """FLOPs of one training sequence: the forward pass and a backward pass of twice its work."""
    return 3 * forward_flops(config, length)["total"]


def visible_pairs(config: DecoderConfig, length: int) -> int:
    """(query, key) pairs that a layer of `config.mechanism` attends to, per query head."""
    if config.mechanism == "dense":
        return length * (length + 1) // 2
    if config.mechanism in ("sliding_window", "learned_router"):  # both see as many single tokens as the budget has
        return window_pairs(length, config.budget)
    if config.mechanism == "global_token":  # the window, and the slots of the blocks before the query's own
        slots = config.arm.num_slots
        return window_pairs(length, config.budget - slots) + slot_pairs(config, length)
    # A query in block b sees its own block up to itself and, of the b blocks before, the sinks, the local ones and
    # the selected. Sinks and local blocks that overlap count once, and b bounds the union.
    blocks_before = config.sink_blocks + config.local_blocks - 1 + selected_blocks(config)
    return _sum_over_positions(length, config.block_size, blocks_before)


def window_pairs(length: int, window: int) -> int:
    """(query, key) pairs of a causal window of `window` positions, the query's own included."""
    ramp = min(length, window)
    return ramp * (ramp + 1) // 2 + (length - ramp) * window


def slot_pairs(config: DecoderConfig, length: int) -> int:
    """(query, slot) pairs of `global_token`: a query in block b sees the slots of the last blocks before it."""
    blocks, rest = divmod(length, config.block_size)
    slots = config.arm.num_slots
    return config.block_size * window_pairs(blocks, slots + 1) - length + rest * (min(blocks, slots) + 1)


def candidate_pairs(config: DecoderConfig, length: int) -> int:
    """(query, candidate block) pairs that a flat selector scores, per KV head; `learned_router`'s are single tokens."""
    selection = config.arm.selection_config()
    blocks, rest = divmod(length, selection.block_size)
    first = selection.sink_blocks + selection.local_blocks  # the first query block that has a candidate
    candidates = max(0, blocks - first)  # of the query blocks [first, blocks): 1, 2, ... candidates each
    return selection.block_size * candidates * (candidates + 1) // 2 + rest * max(0, blocks - first + 1)


def selected_blocks(config: DecoderConfig) -> int:
    """Blocks a query selects (`M`): what the budget leaves after the sink and local blocks."""
    return config.arm.selection_config().num_blocks


def _sum_over_positions(length: int, block_size: int, most: int) -> int:
    """Sum over positions p < length of `block_size * min(p // block_size, most) + p % block_size + 1`."""
    blocks, rest = divmod(length, block_size)
    ramp = min(blocks, most)
    before = ramp * (ramp - 1) // 2 + (blocks - ramp) * most  # sum of min(b, most) over the full query blocks
    own = blocks * (block_size * (block_size + 1) // 2) + rest * (rest + 1) // 2
    return block_size * (block_size * before + rest * min(blocks, most)) + own


def _selection_flops(config: DecoderConfig, length: int) -> int:
    if config.mechanism in ROUTED and config.fanouts:
        return _tree_flops(config, length)
    if config.mechanism in ROUTED:
        summaries = length * config.num_kv_heads * config.router_dim  # one comparison or sum per element
        return summaries + 2 * candidate_pairs(config, length) * config.router_dim * config.num_kv_heads
    if config.mechanism == "block_mean":
        means = length * (config.num_heads + config.num_kv_heads) * config.head_dim  # group-mean queries, mean keys
        return means + 2 * candidate_pairs(config, length) * config.head_dim * config.num_kv_heads
    if config.mechanism == "global_token":  # a logit and two averages over the block's tokens and the slots before it
        blocks = -(-length // config.block_size)
        keys = length + window_pairs(blocks, config.arm.num_slots + 1) - blocks
        return keys * 3 * 2 * config.head_dim * config.num_kv_heads
    if config.mechanism == "learned_router":  # a product and its share of the weighted sum for each index head
        per_pair = INDEX_HEADS * (2 * (config.router_dim // INDEX_HEADS) + 2)
        return candidate_pairs(config, length) * per_pair * config.num_kv_heads
    if config.mechanism == "oracle_topk":  # the logits of dense attention
        return length * (length + 1) // 2 * 2 * config.head_dim * config.num_heads
    return 0


def _tree_flops(config: DecoderConfig, length: int) -> int:
    """Choosing through a tree: every node of the top level, then the children of the beam and of two partial nodes.

    That is what the search does for each query; the first queries of a sequence would need less.
    """
    levels = [-(-length // config.block_size)]
    for fanout in config.fanouts:
        levels.append(-(-levels[-1] // fanout))
    scored = width = levels[-1]
    for fanout in reversed(config.fanouts):
        width = (min(config.beam_width, width) + 2) * fanout
        scored += width
    pooled = length + sum(levels[:-1])
    return config.num_kv_heads * config.router_dim * (pooled + 2 * length * scored)


def _projection_flops(config: DecoderConfig, kind: str) -> int:
    """Work per token of everything linear in a layer's attention."""
    heads = 2 * config.num_heads + 2 * config.num_kv_heads  # queries and outputs, keys and values
    flops = 2 * config.width * heads * config.head_dim
    if config.key_conv_width > 1:
        flops += 2 * config.key_conv_width * config.num_kv_heads * config.head_dim
    if kind == "selective" and config.mechanism in ROUTED:
        flops += 2 * (config.num_heads + config.num_kv_heads) * config.head_dim * config.router_dim
        if config.router_window > 1:
            flops += 2 * config.router_window * config.num_kv_heads * config.router_dim
    if kind == "selective" and config.mechanism == "learned_router":
        width = config.router_dim // INDEX_HEADS
        flops += 2 * config.head_dim * (config.num_heads * INDEX_HEADS * (width + 1) + config.num_kv_heads * width)
    return flops
