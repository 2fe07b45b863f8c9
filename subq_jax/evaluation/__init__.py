"""Held-out scores of a model, by context length, and statistics of its routers."""

from subq_jax.evaluation.held_out import evaluate
from subq_jax.evaluation.routing import held_out_routing, routing_statistics
from subq_jax.evaluation.search import SketchSearch, TreeSearch, search_statistics

__all__ = ["SketchSearch", "TreeSearch", "evaluate", "held_out_routing", "routing_statistics", "search_statistics"]
