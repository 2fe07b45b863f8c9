"""What may be seen: block summaries, scores, and the choice of blocks."""

from subq_jax.selection.config import SelectionConfig

__all__ = ["SelectionConfig"]
