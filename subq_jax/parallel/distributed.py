"""Start of a run on several hosts."""

import jax


def maybe_initialize_distributed(enabled: bool) -> None:
    """Joins the other hosts of the run when `enabled`; must come before any other use of jax.

    jax finds the coordinator and this process's place by itself on TPU pods, Kubernetes, SLURM and Open MPI. It is
    never called unasked, because on a lone host it fails or waits for a coordinator that does not exist.

    Raises:
      RuntimeError: from jax, when the backend is already running.
    """
    if enabled:
        jax.distributed.initialize()
