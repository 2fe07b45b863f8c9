"""Sub-quadratic selective attention for JAX."""

from subq_jax.attention.api import selective_attention
from subq_jax.selection.config import SelectionConfig
from subq_jax.selection.tree import SummaryTree, build_tree, update_tree

__all__ = ["SelectionConfig", "SummaryTree", "build_tree", "selective_attention", "update_tree"]
__version__ = "0.1.0"
