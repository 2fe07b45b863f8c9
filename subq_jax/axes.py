"""The legend of array axes, and the array types named with it.

Every public signature and docstring of this package uses these letters:

    B   batch                        c   block size, in tokens
    T   query tokens                 M   selected blocks of a query (`num_blocks`)
    S   key/value tokens             R   router dimension
    N   query heads                  V   vocabulary
    K   key/value heads              D   model width
    G   query heads per KV head (N = K * G; query head n belongs to KV head n // G)
    H   head dimension               NB  blocks of the keys, ceil(S / c)
    I   index heads of the indexer   n   slots of the global tokens
    d   channels of a sketch         J   blocks listed for a query

Inside kernels also:

    X   rows of a kernel, B * K      m   query tokens of a tile
    W   tiles of a step              E   (query, block) entries of a tile
    L   lanes of a query's line
    P   query tokens, filled up to whole tiles (on a GPU to one tile at least); in `xla/` places of all tiles together

Rows of the GPU's kernels, [X, P * G, ...], hold G filled up to 8, 16 or 32.

The aliases carry shapes for the reader and for jaxtyping's run-time checkers. On an accelerator image without
jaxtyping they fall back to `jax.Array`, so that attention, selection, kernels and model need jax and flax only.
"""

import jax

try:
    from jaxtyping import Float, Int

    Queries = Float[jax.Array, "B T N H"]
    Keys = Float[jax.Array, "B S K H"]
    Values = Float[jax.Array, "B S K H"]
    Outputs = Float[jax.Array, "B T N H"]
    RouterQueries = Float[jax.Array, "B T K R"]
    RouterKeys = Float[jax.Array, "B S K R"]
    Summaries = Float[jax.Array, "B K NB R"]
    Scores = Float[jax.Array, "B K T NB"]
    ListedBlocks = Int[jax.Array, "B K T J"]
    ListedScores = Float[jax.Array, "B K T J"]
    Selection = Int[jax.Array, "B T K M"]
    ChosenBlocks = Int[jax.Array, "B K T M"]  # a selection in the order of scores
    SegmentIds = Int[jax.Array, "B S"]
    PerSequence = Int[jax.Array, "B"]
    Activations = Float[jax.Array, "... T D"]
    Tokens = Int[jax.Array, "B T"]
    Logits = Float[jax.Array, "B T V"]
except ImportError:
    Queries = Keys = Values = Outputs = RouterQueries = RouterKeys = Summaries = Scores = ListedScores = jax.Array
    Selection = ChosenBlocks = ListedBlocks = SegmentIds = PerSequence = Activations = Tokens = Logits = jax.Array
