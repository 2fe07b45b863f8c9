"""Do the TPU's kernels compile, and fit? `python -m experiments.compile_tpu --output=runs/tpu_compile.jsonl`.

Needs libtpu (`pip install -e .[tpu]`) and no TPU: it compiles selective attention, forward and with its gradients,
and decoding one token, for one device of every chip asked for, at the shapes of long contexts. Writes one row each:
seconds to compile, bytes of HBM for arguments, results and temporaries as the compiler plans them, bytes of VMEM that
each kernel takes; or the error. Programs that do not compile are named at the end, and the exit status is 1.
`--roofline` prints the estimates of `subq_jax/kernels/tpu/roofline.py` and compiles nothing.
"""

import importlib.metadata
import itertools
import re
import time

import jax
from absl import app, flags
from rich.console import Console
from rich.table import Table

from experiments.program import open_output, refuse_arguments, run
from experiments.tpu_programs import (
    CONFIG,
    HEAD_DIM,
    ROUTER_DIM,
    TOPOLOGIES,
    compile_for,
    decode,
    decode_shapes_of,
    forward,
    gradient,
    no_fall_back,
    planned,
    shapes_of,
    vmem_of_kernels,
    why_not,
)
from subq_jax.files import append_row
from subq_jax.kernels.tpu.roofline import CHIPS, kernel_work
from subq_jax.kernels.tpu.tile import LANES

PASSES = ("forward", "gradient", "decode")

_OUTPUT = flags.DEFINE_string("output", None, "File of rows, one appended for each program compiled.")
_CHIPS = flags.DEFINE_list("chips", list(CHIPS), f"Some of {tuple(CHIPS)}.")
_LENGTHS = flags.DEFINE_list("lengths", ["131072", "1048576"], "Tokens of a sequence.")
_HEADS = flags.DEFINE_list("heads", ["16/1", "32/4"], "Query heads / KV heads.")
_PASSES = flags.DEFINE_list("passes", list(PASSES), f"Some of {PASSES}.")
_ROOFLINE = flags.DEFINE_bool("roofline", False, "Print estimates instead.")
_OVERLAP = flags.DEFINE_float("overlap", 3.0, "Union of a tile's choices over one query's, for the estimates.")


def measure(chip: str, passes: str, length: int, heads: int, kv_heads: int) -> dict:
    """One row of results; it has an `error` where the program, kernels and all, does not compile."""
    shape = length, heads, kv_heads
    function, shapes = {"forward": (forward, shapes_of(*shape)), "gradient": (gradient, shapes_of(*shape)),
                        "decode": (decode, decode_shapes_of(1, *shape))}[passes]
    row = {"date": time.strftime("%Y-%m-%d"), "jax": jax.__version__, "libtpu": importlib.metadata.version("libtpu"),
           "topology": TOPOLOGIES[chip], "pass": passes, "length": length, "heads": heads, "kv_heads": kv_heads}
    start = time.monotonic()
    try:
        with no_fall_back():
            compiled = compile_for(TOPOLOGIES[chip], function, shapes)
    except Exception as error:  # too large for the chip's memory, above all; the other programs are still asked for
        return row | {"error": (str(error) or repr(error)).splitlines()[0]}
    seconds = round(time.monotonic() - start, 1)
    return row | planned(compiled) | {"compile_seconds": seconds, "vmem": vmem_of_kernels(compiled.as_text())}


def show_roofline(cases) -> None:
    """Prints the least milliseconds of every kernel on a whole chip."""
    table = Table("chip", "length", "heads", *(f"{name} (ms)" for name in kernel_work(CONFIG, 8192, 1, 1, 1, 1, 1)))
    for name in _CHIPS.value:
        for length, heads, kv_heads in cases:
            work = kernel_work(CONFIG, length, heads, kv_heads, HEAD_DIM, ROUTER_DIM, _OVERLAP.value)
            table.add_row(name, f"{length:,}", f"{heads}/{kv_heads}",
                          *(f"{1e3 * part.seconds(CHIPS[name]):,.1f}" for part in work.values()))
    Console().print(table)


def head_pairs() -> list[tuple[int, int]]:
    """`--heads` as numbers."""
    return [tuple(int(x) for x in pair.split("/")) for pair in _HEADS.value]


def check_flags() -> None:
    """Raises UsageError for values that are none, and where nothing can be compiled."""
    if any(not x.isdigit() for x in _LENGTHS.value) or any(
            not re.fullmatch(r"[1-9]\d*/[1-9]\d*", pair) for pair in _HEADS.value):
        raise app.UsageError(f"--lengths must be integers and --heads pairs such as 16/1, got {_LENGTHS.value} and "
                             f"{_HEADS.value}")
    for heads, kv_heads in head_pairs():
        if heads % kv_heads or (_ROOFLINE.value and LANES % (heads // kv_heads)):
            raise app.UsageError(f"--heads must be query heads / KV heads in whole groups, and with --roofline "
                                 f"divide {LANES} as the kernels need, got {heads}/{kv_heads}")
    for flag, allowed in ((_CHIPS, tuple(CHIPS)), (_PASSES, PASSES)):
        if not flag.value or not set(flag.value) <= set(allowed):
            raise app.UsageError(f"--{flag.name} must be of {allowed}, got {flag.value}")
    if not _ROOFLINE.value and why_not():
        raise app.UsageError(why_not())


def main(argv: list[str]) -> None:
    """Compiles every case, or prints the estimates."""
    refuse_arguments(argv)
    check_flags()
    cases = [(int(length), *pair) for length in _LENGTHS.value for pair in head_pairs()]
    if _ROOFLINE.value:
        show_roofline(cases)
        return
    failed = []
    with open_output(_OUTPUT.value) as file:
        for chip, case, passes in itertools.product(_CHIPS.value, cases, _PASSES.value):
            row = measure(chip, passes, *case)
            print(row, flush=True)
            append_row(file, row)
            if "error" in row:
                failed.append("{} {} at {} tokens, {}/{} heads".format(chip, passes, *case))
    if failed:
        raise SystemExit(f"did not compile: {'; '.join(failed)}")


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    run(main)
