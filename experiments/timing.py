"""What a compiled function costs: seconds by the clock, memory by the compiler's account."""

import statistics
import time

import jax


def compiled_cost(function, *arguments, repeats: int, carried: bool = False) -> dict[str, float | None]:
    """Compiles `function` for the arguments, runs it once, then times it.

    With `carried` the first argument is a state that the function returns anew, in the same shapes. Every call is given
    the state that the one before returned, in buffers that the compiler may write over: the caller's are gone after.

    Returns:
      `seconds`, the median of `repeats` calls, and `temp_bytes`, the temporaries that the compiler plans for one call;
      None where a backend does not tell.
    """
    compiled = jax.jit(function, donate_argnums=0 if carried else ()).lower(*arguments).compile()
    seconds = []
    for _ in range(1 + repeats):
        result = None  # frees the last one: there may be room for one only
        start = time.perf_counter()
        result = jax.block_until_ready(compiled(*arguments))
        seconds.append(time.perf_counter() - start)
        if carried:
            arguments = (result, *arguments[1:])
    analysis = compiled.memory_analysis()
    return {"seconds": statistics.median(seconds[1:]), "temp_bytes": analysis and analysis.temp_size_in_bytes}
