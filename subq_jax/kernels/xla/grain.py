"""How much is done at a time: small pieces that fit a CPU's cache, or few large ones for an accelerator.

An accelerator waits for the start of each step, a CPU for memory.
"""

from typing import NamedTuple

import jax


class Grain(NamedTuple):
    """Sizes in elements where nothing else is said."""

    step: int  # float32 logits of one step over blocks listed by id
    band: int  # of one step of a window's tiles
    whole: int  # of one chunk of queries that look at every key
    keys: int  # keys that a few queries read at a time
    scores: int  # float32 router scores held at a time
    chunk: int  # partial results of one chunk of queries
    share: int  # tiles for a block in use, if blocks were chosen evenly
    pairs: int = 0  # of scores that a few queries may compare, to choose without a sort


CPU_GRAIN = Grain(step=1 << 18, band=1 << 22, whole=1 << 21, keys=1 << 11, scores=1 << 23, chunk=1 << 24, share=1)
ACCELERATOR_GRAIN = Grain(
    step=1 << 28, band=1 << 27, whole=1 << 26, keys=1 << 26, scores=1 << 26, chunk=1 << 28, share=4)
GPU_GRAIN = ACCELERATOR_GRAIN._replace(pairs=1 << 27)


def grain() -> Grain:
    """The grain for the default backend."""
    return {"cpu": CPU_GRAIN, "gpu": GPU_GRAIN}.get(jax.default_backend(), ACCELERATOR_GRAIN)
