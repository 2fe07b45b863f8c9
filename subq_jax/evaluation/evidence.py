"""Whether a model's selectors chose what holds the evidence of its answer.

The queries that count are those that predict the answer as the model said it: at the prompt's last token and at every
token of the answer but the last. A block is chosen if at least one of these queries chose it, for at least one KV head
of at least one layer that chooses. So many chances make the measure generous: `random_blocks` shows what luck gives.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from subq_jax.axes import Selection
from subq_jax.selection.config import SelectionConfig
from subq_jax.tasks.haystack import Span


def evidence_recall(
    chosen: Sequence[Selection], first_query: int, spans: Iterable[Span], config: SelectionConfig
) -> dict[str, float | None]:
    """The shares of the evidence's blocks that were chosen, and that needed no choice.

    Args:
      chosen: int32 [1, A, K, M] of each layer that chooses, as `Reader.chosen` returns it.
      first_query: position of the first of the A queries.
      spans: the evidence's first tokens and those after its last, at least one, in positions of the same sequence.
      config: what the layers chose by; its blocks are single tokens for `learned_router`.

    Returns:
      `evidence_always`: the share of the blocks with evidence that are the sink, or local to one of the queries;
      `evidence_recall`: of all others the share that was chosen, None where there are none.
    """
    size = config.block_size
    blocks = np.unique(np.concatenate([np.arange(start // size, -(-end // size)) for start, end in spans]))
    # Later queries have later local blocks: before the first query, its own are all there are.
    always = (blocks < config.sink_blocks) | (blocks > first_query // size - config.local_blocks)
    left = blocks[~always]
    found = np.isin(left, np.concatenate([np.asarray(layer).ravel() for layer in chosen]))
    return {"evidence_recall": float(found.mean()) if len(left) else None, "evidence_always": float(always.mean())}
