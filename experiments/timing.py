"""What a compiled function costs: seconds by the clock, memory by the compiler's account."""

import statistics
import time

import jax


def compiled_cost(function, *arguments, repeats: int) -> dict[str, float | None]:
    """Compiles `function` for the arguments, runs it once, then times it.

    Returns:
      `seconds`, the median of `repeats` calls, and `temp_bytes`, the temporaries that the compiler plans for one call;
      None where a backend does not tell.
    """
    compiled = jax.jit(function).lower(*arguments).compile()
    jax.block_until_ready(compiled(*arguments))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        seconds.append(time.perf_counter() - start)
    analysis = compiled.memory_analysis()
    return {"seconds": statistics.median(seconds), "temp_bytes": analysis and analysis.temp_size_in_bytes}
