"""Held-out scores of a model, by context length."""

from subq_jax.evaluation.held_out import evaluate

__all__ = ["evaluate"]
