"""How many registers do the GPU's kernels take, and do they spill? `python -m experiments.compile_gpu`, on any machine.

Needs CUDA's compiler and jax's plugin (`pip install -e .[gpu]`), a C compiler, and no GPU: the plugin's own compiler
turns every kernel into machine code for compute capability 9.0 with ptxas, whose account is printed and with `--output`
written as rows. The driver that the compiler asks for the device's capability is replaced by one that knows only that
answer; nothing is loaded or run. Expected: docs/gpu.md has the figures.
"""

import ctypes
import importlib.metadata
import importlib.util
import itertools
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import app, flags
from jax.experimental.mosaic.gpu import core as mosaic

from experiments.program import open_output, refuse_arguments, run
from subq_jax.files import append_row
from subq_jax.kernels.gpu.attend import attend
from subq_jax.kernels.gpu.backward_keys import backward_keys
from subq_jax.kernels.gpu.backward_queries import backward_queries
from subq_jax.kernels.gpu.choose import best_blocks
from subq_jax.kernels.gpu.decode import attend_cache
from subq_jax.kernels.gpu.inverse import inverse_lists
from subq_jax.kernels.gpu.limits import MULTIPROCESSORS
from subq_jax.kernels.gpu.lists import TokenLists, tile_blocks
from subq_jax.kernels.gpu.warps import WarpTile, group_rows
from subq_jax.selection.config import SelectionConfig
from subq_jax.selection.visibility import QueryPlace

KERNELS = ("best_blocks", "tile_blocks", "attend", "backward_queries", "backward_keys", "attend_cache")
SHAPES = {  # query heads of the KV head, head dimension, block size, selected blocks, type
    "16 heads": (16, 128, 64, 29, jnp.bfloat16), "16 heads, 8,192 visible": (16, 128, 64, 125, jnp.bfloat16),
    "8 heads": (8, 128, 64, 29, jnp.bfloat16), "blocks of 32": (8, 64, 32, 29, jnp.float16),
    "blocks of 128": (32, 128, 128, 13, jnp.bfloat16)}
LENGTH, ROUTER_DIM, SLOTS_BESIDE = 1 << 20, 64, 3  # a sink and two local blocks

_OUTPUT = flags.DEFINE_string("output", None, "File of rows, one appended for each kernel.")
_KERNELS = flags.DEFINE_multi_enum("kernels", list(KERNELS), KERNELS, "Compiled; given once for each.")
_ONE = flags.DEFINE_string("one", None, "`kernel: shape`, compiled in this process, where ptxas prints its account.")

# Answers what a compiler asks of a driver: one device, compute capability 9.0, 227 KB of shared memory for a block.
DRIVER = """
int cuInit(unsigned f) { return 0; }
int cuDriverGetVersion(int *v) { *v = 13000; return 0; }
int cuDeviceGetCount(int *n) { *n = 1; return 0; }
int cuDeviceGet(int *d, int i) { *d = 0; return 0; }
int cuCtxGetDevice(int *d) { *d = 0; return 0; }
int cuCtxGetCurrent(void **c) { *c = (void *)1; return 0; }
int cuDeviceGetAttribute(int *x, int a, int d) { *x = a == 75 ? 9 : a == 76 ? 0 : a == 97 ? 232448 : 1; return 0; }
int cuGetErrorName(int e, const char **s) { *s = "error"; return 0; }
int cuGetErrorString(int e, const char **s) { *s = "error"; return 0; }
"""


def lower(kernel: str, shape: str) -> None:
    """Lowers one kernel, so that `mosaic.KNOWN_KERNELS` holds its module."""
    group, head_dim, block, chosen, dtype = SHAPES[shape]
    rows_each, slots, blocks = group_rows(group), chosen + SLOTS_BESIDE, LENGTH // block
    array = lambda *s, dtype=dtype: jax.ShapeDtypeStruct((1, *s), dtype)
    number, index = jnp.float32, jnp.int32
    rows, keys = array(LENGTH * rows_each, head_dim), array(LENGTH, head_dim)
    sums, offset = array(rows.shape[1], dtype=number), jax.ShapeDtypeStruct((1,), index)
    lists = TokenLists(array(LENGTH, slots, dtype=index), array(LENGTH, slots, dtype=number))
    tile = WarpTile(rows_each, block)
    unite = lambda ids: tile_blocks(ids, tile, blocks, MULTIPROCESSORS)
    of_tiles = jax.eval_shape(unite, lists.ids)
    invert = lambda *lists: inverse_lists(TokenLists(*lists), lists[1], blocks, block, MULTIPROCESSORS)
    inverse = jax.eval_shape(invert, *lists)
    cache, config = array(LENGTH, 1, head_dim), SelectionConfig(block_size=block, num_blocks=chosen)
    place = QueryPlace(*[array(1, dtype=index)] * 4, array(1, dtype=jnp.bool))
    function, arguments = {
        "best_blocks": (lambda *x: best_blocks(*x, chosen, MULTIPROCESSORS), (
            array(LENGTH, ROUTER_DIM), array(blocks, ROUTER_DIM), *[array(LENGTH, dtype=index)] * 2)),
        "tile_blocks": (unite, (lists.ids,)),
        "attend": (lambda *x: attend(*x, tile, MULTIPROCESSORS), (rows, keys, keys, lists, of_tiles, offset)),
        "backward_queries": (lambda *x: backward_queries(*x, tile, MULTIPROCESSORS), (
            rows, rows, sums, sums, keys, keys, lists, of_tiles, offset)),
        "backward_keys": (lambda *x: backward_keys(*x, rows_each, block, MULTIPROCESSORS), (
            rows, rows, sums, sums, array(LENGTH, ROUTER_DIM), keys, keys, inverse, offset)),
        "attend_cache": (lambda *x: attend_cache(*x, config, MULTIPROCESSORS), (
            array(1, group, head_dim), cache, cache, array(1, 1, chosen, dtype=index),
            array(1, 1, chosen, dtype=number), place)),
    }[kernel]
    jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",))


def compile_lowered(folder: Path) -> None:
    """Compiles what was lowered in this process; ptxas reports on the standard error output."""
    driver = folder / "libcuda.so.1"
    (folder / "driver.c").write_text(DRIVER)
    options = ["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1"]
    subprocess.run(["cc", *options, "-o", driver, folder / "driver.c"], check=True)
    ctypes.CDLL(str(driver), ctypes.RTLD_GLOBAL)  # whoever asks for a library of this name gets it
    plugin = Path(importlib.util.find_spec("jax_plugins.xla_cuda13").origin).with_name("xla_cuda_plugin.so")
    compiler = ctypes.CDLL(str(plugin)).MosaicGpuCompile
    compiler.argtypes, compiler.restype = [ctypes.c_char_p, ctypes.c_int], ctypes.c_void_p
    for module in mosaic.KNOWN_KERNELS.values():
        compiler(module, len(module))  # fails where it would load the code, after ptxas


def account(kernel: str, shape: str) -> dict:
    """Registers and bytes spilled by one kernel, compiled in a process of its own."""
    tools = Path(next(iter(importlib.util.find_spec("nvidia").submodule_search_locations))) / "cu13" / "bin"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "MOSAIC_GPU_DUMP_PTXAS": "1",
                                "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, "-m", "experiments.compile_gpu", f"--one={kernel}: {shape}"]
    report = subprocess.run(command, capture_output=True, text=True, env=environment)
    found = report.stdout + report.stderr
    number = lambda pattern: [int(x) for x in re.findall(pattern, found)]
    if not number(r"Used (\d+) registers"):
        raise SystemExit(f"{kernel}, {shape}: ptxas gave no account\n{found[-2000:]}")
    return {"date": time.strftime("%Y-%m-%d"), "jax": jax.__version__,
            "nvcc": importlib.metadata.version("nvidia-cuda-nvcc"), "kernel": kernel, "shape": shape,
            "registers_at_launch": max(number(r"Used (\d+) registers")),
            "spill_stores": max(number(r"(\d+) bytes spill stores")),
            "spill_loads": max(number(r"(\d+) bytes spill loads")),
            "serialized": "wgmma.mma_async instructions are serialized" in found}  # so that no product overlaps another


def main(argv: list[str]) -> None:
    """Compiles every kernel at every shape, each in a process of its own."""
    refuse_arguments(argv)
    if _ONE.value:
        lower(*_ONE.value.split(": "))
        with tempfile.TemporaryDirectory() as folder:
            compile_lowered(Path(folder))
        return
    if importlib.util.find_spec("nvidia") is None:
        raise app.UsageError("CUDA's compiler and jax's plugin are not installed: pip install -e .[gpu]")
    with open_output(_OUTPUT.value) as file:
        for kernel, shape in itertools.product(_KERNELS.value, SHAPES):
            row = account(kernel, shape)
            print(row, flush=True)
            append_row(file, row)


if __name__ == "__main__":
    run(main)
