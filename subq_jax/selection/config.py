"""What a query may see: the numbers of the selective-attention contract."""

import dataclasses

from subq_jax.checks import check_integer

POOLINGS = ("max", "mean")


@dataclasses.dataclass(frozen=True)
class SelectionConfig:
    """Which key blocks a query sees, and how it finds them.

    Attributes:
      block_size: tokens of a key block, `c`.
      num_blocks: blocks a query selects by content, `M`; it selects all its candidates when there are fewer.
      local_blocks: the query's own block and the ones right before it that it always sees.
      sink_blocks: first blocks of its document that it always sees.
      pooling: how a block's router keys become its summary, `"max"` or `"mean"`.
      fanouts: children per tree node from the leaves up; `()` scores every candidate (flat selection).
      beam_width: nodes kept per tree level.

    Raises:
      ValueError: when a field is out of range, naming the field, its value and what is allowed.
    """

    block_size: int = 64
    num_blocks: int = 16
    local_blocks: int = 2
    sink_blocks: int = 1
    pooling: str = "max"
    fanouts: tuple[int, ...] = ()
    beam_width: int = 32

    def __post_init__(self):
        for name, floor in (("block_size", 1), ("num_blocks", 1), ("local_blocks", 1), ("sink_blocks", 0),
                            ("beam_width", 1)):
            check_integer(name, getattr(self, name), floor)
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {POOLINGS}, got {self.pooling!r}")
        if not isinstance(self.fanouts, (tuple, list)):
            raise ValueError(f"fanouts must be a tuple of integers, got {self.fanouts!r}")
        object.__setattr__(self, "fanouts", tuple(self.fanouts))
        for fanout in self.fanouts:
            check_integer("fanouts", fanout, 2)
        if self.fanouts and self.beam_width * self.fanouts[0] < self.num_blocks:
            raise ValueError(
                f"beam_width * fanouts[0] must be >= num_blocks={self.num_blocks}, "
                f"got {self.beam_width} * {self.fanouts[0]} = {self.beam_width * self.fanouts[0]}"
            )

    @property
    def budget(self) -> int:
        """Key positions visible to a query at most."""
        return self.block_size * (self.num_blocks + self.local_blocks + self.sink_blocks)
