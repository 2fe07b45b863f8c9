"""Sub-quadratic selective attention for JAX."""

from subq_jax.attention.api import selective_attention
from subq_jax.selection.config import SelectionConfig

__all__ = ["SelectionConfig", "selective_attention"]
__version__ = "0.1.0"
