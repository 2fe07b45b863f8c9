"""Tokens per second, and model FLOPs utilisation against a device's peak."""

import time

import jax

# Dense bfloat16 peak of one device in FLOP/s, from the makers' data sheets, by `device_kind`.
PEAK_FLOPS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}


def peak_flops(device: jax.Device) -> float | None:
    """The device's bfloat16 peak in FLOP/s; None for kinds that are not in the table, CPUs among them."""
    matches = [name for name in PEAK_FLOPS if device.device_kind.startswith(name)]
    return PEAK_FLOPS[max(matches, key=len)] if matches else None


class Throughput:
    """Counts tokens and model FLOPs between two readings; pauses (compilation, evaluation) do not count.

    Args:
      peak: FLOP/s of all devices together, None when unknown.
    """

    def __init__(self, peak: float | None):
        self._peak = peak
        self._reset()

    def _reset(self) -> None:
        self._since, self._paused, self._tokens, self._flops = time.perf_counter(), 0.0, 0, 0.0

    def count(self, tokens: int, flops: float | None) -> None:
        """Adds one step's work; `flops=None` says that it is not known, and the interval then has no MFU."""
        self._tokens += tokens
        self._flops = None if flops is None or self._flops is None else self._flops + flops

    def pause(self, seconds: float) -> None:
        """Takes time out of the interval."""
        self._paused += seconds

    def read(self) -> dict[str, float | None]:
        """`tokens_per_second` and `mfu` since the last reading, and starts anew."""
        seconds = max(time.perf_counter() - self._since - self._paused, 1e-9)
        known = self._peak is not None and self._flops is not None
        reading = {
            "tokens_per_second": self._tokens / seconds,
            "mfu": self._flops / seconds / self._peak if known else None,
        }
        self._reset()
        return reading
