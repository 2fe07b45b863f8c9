"""What the arms share whose training begins dense: its phases, and the loss that teaches a router meanwhile."""

from flax import nnx

from subq_jax.attention.mechanisms import PHASES


class DivergenceLoss(nnx.Intermediate):
    """How far a router is from dense attention's weight, kept by a call with `distil=True` inside `nnx.capture`."""


def check_phase(phase: str) -> None:
    """Raises ValueError unless `phase` is one of `PHASES`."""
    if phase not in PHASES:
        raise ValueError(f"phase must be one of {PHASES}, got {phase!r}")
