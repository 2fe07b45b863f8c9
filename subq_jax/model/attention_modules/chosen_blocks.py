"""The modules of `block_mean`, `random_blocks` and `oracle_topk`, which choose blocks without a router."""

from subq_jax.attention.block_mean import block_mean_attention
from subq_jax.attention.dense import dense_attention
from subq_jax.attention.oracle_topk import oracle_topk_attention
from subq_jax.attention.random_blocks import random_blocks_attention
from subq_jax.model.attention_modules.causal import CausalAttention
from subq_jax.model.attention_modules.warm_up import check_phase
from subq_jax.selection.config import SelectionConfig


class ChoosingAttention(CausalAttention):
    """What the mechanisms share that choose blocks without a router; `selection` says how many.

    Subclasses set `choose_and_attend`, one of the functions of `subq_jax.attention`.
    """

    choose_and_attend = None

    def __init__(self, *args, selection: SelectionConfig, **options):
        super().__init__(*args, **options)
        self.selection = selection

    def attend(self, q, kept, place):
        return self.keep_selection(*self.choose_and_attend(
            q, kept["key"], kept["value"], self.selection, **place, return_selection=True))


class BlockMeanAttention(ChoosingAttention):
    """Blocks chosen by mean keys (MoBA)."""

    choose_and_attend = staticmethod(block_mean_attention)


class RandomBlocksAttention(ChoosingAttention):
    """Blocks chosen by lot."""

    choose_and_attend = staticmethod(random_blocks_attention)


class OracleTopkAttention(ChoosingAttention):
    """Blocks chosen by dense attention's own weight; every `phase` but `"sparse"` is dense attention."""

    choose_and_attend = staticmethod(oracle_topk_attention)

    def attend(self, q, kept, place, *, phase: str = "sparse", distil: bool = False):
        check_phase(phase)
        if phase == "sparse":
            return super().attend(q, kept, place)
        return dense_attention(q, kept["key"], kept["value"], **place)
