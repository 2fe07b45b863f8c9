"""FlashAttention-2 as PyTorch brings it, timed beside the arms that JAX runs; nothing else here needs PyTorch."""

import functools
import importlib.util
import statistics
import time

from experiments.benchmark import DTYPE, HEAD_DIM, HEADS, KV_HEADS, REPEATS

FLASH = "flash_attention_2"


def flash_cost(stage: str, length: int) -> dict[str, float | None]:
    """What causal attention of one random sequence [1, N, T, H] costs with FlashAttention-2 (arXiv 2307.08691).

    Args:
      stage: "forward" or "forward_backward".
      length: in tokens.

    Returns:
      `seconds`, the median of `--repeats` calls; `temp_bytes` None, for PyTorch does not tell.

    Raises:
      NotImplementedError: without PyTorch or a GPU that it sees, and for shapes that its kernel does not take.
    """
    if importlib.util.find_spec("torch") is None:
        raise NotImplementedError("PyTorch is not installed")
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if not torch.cuda.is_available():
        raise NotImplementedError("PyTorch sees no GPU")
    try:
        return {"seconds": _seconds(torch, functools.partial(sdpa_kernel, SDPBackend.FLASH_ATTENTION), stage, length),
                "temp_bytes": None}
    except RuntimeError as error:
        raise NotImplementedError(f"PyTorch says: {error}") from error
    finally:
        torch.cuda.empty_cache()  # JAX shares the card


def _seconds(torch, flash, stage: str, length: int) -> float:
    gradients = stage == "forward_backward"
    q, k, v = (torch.randn(1, heads, length, HEAD_DIM.value, device="cuda", dtype=getattr(torch, DTYPE.value),
                           requires_grad=gradients)
               for heads in (HEADS.value, KV_HEADS.value, KV_HEADS.value))
    seconds = []
    for _ in range(1 + REPEATS.value):
        start = time.perf_counter()
        with flash():
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        if gradients:
            torch.autograd.grad(out.sum(), (q, k, v))
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])
