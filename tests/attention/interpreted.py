"""The TPU's kernels on a CPU: copies and semaphores simulated, data races found, unwritten memory full of NaN.

Copies happen as late as they may, when they are waited for, or as early, when they start: the first shows reads before
a copy is there, the second copies over what is still to be read, which the race detector does not see on one core.
"""

import contextlib
from unittest import mock

from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental.pallas import tpu as pltpu

from subq_jax.kernels.tpu import selective
from subq_jax.kernels.tpu.choose import ChoiceSizes
from subq_jax.kernels.tpu.tile import AttendSizes

# Small enough that a problem of a hundred tokens has several of each.
SMALL = {"CHOICE_SIZES": ChoiceSizes(queries=32, blocks=8, bytes=16 * 512),
         "ATTEND_SIZES": AttendSizes(rows=16, keys=8, depth=3, tiles=2), "WHOLE": 96, "CHUNK": 48}


@contextlib.contextmanager
def interpreted_kernels(copies: str = "on_wait"):
    """`implementation="tpu"` runs interpreted inside, at any size and in small tiles; a data race is an error."""
    kernels = mock.patch.multiple(selective, unsupported=lambda *_: None, **SMALL)
    interpreter = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan", dma_execution_mode=copies)
    interpret_pallas_call.races = None
    with kernels, pltpu.force_tpu_interpret_mode(interpreter):
        yield
    assert interpret_pallas_call.races is not None, "no kernel ran"
    assert not interpret_pallas_call.races.races_found
