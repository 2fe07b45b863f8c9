"""The arms of an experiment: a mechanism's name and a budget are all that an experiment has to say."""

import dataclasses

from subq_jax.checks import check_integer
from subq_jax.selection.config import SelectionConfig

CONTROLS = ("random_blocks", "oracle_topk")  # the least and the most that a choice of blocks could give
SELECTING = ("block_mean", "gated_mean", "selective", "learned_router", *CONTROLS)  # arms that choose what is seen
MECHANISMS = ("dense", "sliding_window", "global_token", *SELECTING)
ROUTED = ("gated_mean", "selective")  # arms whose choice is made by a router and trained through its gate
WARM_UP = (*ROUTED, "learned_router", "oracle_topk")  # arms whose training begins dense; the oracle's ends so too
PHASES = ("dense", "gated", "sparse")  # of their training; inference is always sparse


@dataclasses.dataclass(frozen=True)
class Mechanism:
    """An arm at a budget of key positions visible to a query; `dense` sees everything and has no budget.

    `fanouts` and `beam_width` are the tree through which arms with a router choose; the others choose flat.

    Raises:
      ValueError: for an unknown name, a budget that the arm cannot spend exactly, or a tree that cannot hold a choice.
    """

    name: str
    budget: int
    block_size: int
    sink_blocks: int
    local_blocks: int
    fanouts: tuple[int, ...] = ()
    beam_width: int = 32

    def __post_init__(self):
        if self.name not in MECHANISMS:
            raise ValueError(f"mechanism must be one of {MECHANISMS}, got {self.name!r}")
        if self.name != "dense":
            check_integer("budget", self.budget, 1)
        if self.name in SELECTING:
            fixed = self.sink_blocks + self.local_blocks
            if self.budget % self.block_size or self.budget // self.block_size <= fixed:
                raise ValueError(
                    f"budget of {self.name} must be a multiple of block_size={self.block_size} and leave at least one "
                    f"block beside {self.sink_blocks} sink and {self.local_blocks} local blocks, got {self.budget}")
            self.selection_config()
        if self.name == "global_token" and self.budget < 2:
            raise ValueError(f"budget of global_token must be >= 2, a window and slots, got {self.budget}")

    @property
    def num_slots(self) -> int:
        """Slots of `global_token`: half of its budget; the window has the rest."""
        return self.budget // 2

    def selection_config(self) -> SelectionConfig:
        """The selection that spends the budget: what sink and local blocks leave goes to selected blocks.

        `learned_router` chooses tokens: as many of each kind as the blocks of the other arms hold.
        """
        num_blocks = self.budget // self.block_size - self.sink_blocks - self.local_blocks
        if self.name == "learned_router":
            return SelectionConfig(1, *(n * self.block_size for n in (num_blocks, self.local_blocks, self.sink_blocks)))
        pooling = "max" if self.name == "selective" else "mean"
        tree = (self.fanouts, self.beam_width) if self.name in ROUTED else ()
        return SelectionConfig(self.block_size, num_blocks, self.local_blocks, self.sink_blocks, pooling, *tree)
