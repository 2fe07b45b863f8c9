"""Whether selective attention that is timed computes what the contract says, on a sample of queries."""

import jax
import jax.numpy as jnp

from subq_jax import SelectionConfig, selective_attention

MAX_CHECKED, MAX_LOGITS = 256, 1 << 28  # queries compared with the reference; it holds all of their logits


def compare_with_reference(values, config: SelectionConfig, implementation: str) -> dict[str, float]:
    """How far an implementation is from the float32 reference for the last queries, which see the most.

    Args:
      values: q, k, v, router_q, router_k of one context.
      config: what is chosen.
      implementation: of `selective_attention`.

    Returns:
      `relative_error`: of the outputs, in norm, given the same selection; `choice_recall`: the share of the reference's
      blocks that the implementation chooses, which is 1 but for scores that rounding swaps, and where none is chosen.
    """
    out, selection = jax.jit(lambda *x: selective_attention(
        *x, config, implementation=implementation, return_selection=True))(*values)
    rows = slice(-min(MAX_CHECKED, max(1, MAX_LOGITS // (out.shape[1] * out.shape[2])), out.shape[1]), None)
    q, k, v, router_q, router_k = values
    exact = [x.astype(jnp.float32) for x in (q[:, rows], k, v, router_q[:, rows], router_k)]
    reference = jax.jit(lambda ids, *x: selective_attention(
        *x, config, selection=ids, implementation="reference", return_selection=True))
    wanted = reference(None, *exact)[1]
    found = (wanted[..., :, None] == selection[:, rows][..., None, :]).any(axis=-1) & (wanted >= 0)
    expected = reference(selection[:, rows], *exact)[0]
    difference = jnp.linalg.norm((out[:, rows].astype(jnp.float32) - expected).ravel())
    chosen = int((wanted >= 0).sum())
    return {"relative_error": float(difference / jnp.linalg.norm(expected.ravel())),
            "choice_recall": float(found.sum() / chosen) if chosen else 1.0}
