"""The TPU's kernels compile for real chips at production shapes; libtpu does that on a machine without a TPU."""

import functools

import jax.numpy as jnp
import pytest

from experiments.tpu_programs import (
    TOPOLOGIES,
    compile_for,
    compile_kernels,
    decode,
    decode_shapes_of,
    forward,
    gradient,
    planned,
    shapes_of,
    vmem_of_kernels,
    why_not,
)
from subq_jax.kernels.tpu.roofline import CHIPS
from subq_jax.kernels.tpu.tile import VMEM

pytestmark = [pytest.mark.tpu_compile, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]

KERNELS = {"best_blocks", "attend_listed_blocks", "backward_queries", "backward_keys"}
MILLION = 1 << 20


def chips(*always: str):
    """Every chip, the others only in the long matrix."""
    return [chip if chip in always else pytest.param(chip, marks=pytest.mark.slow) for chip in TOPOLOGIES]


@pytest.mark.parametrize("chip", chips("v5e", "tpu7x"))
def test_every_kernel_compiles_for_a_million_tokens(chip):
    """The kernels of forward and backward pass as they are called; the whole program takes the compiler a minute."""
    kernels = compile_kernels(TOPOLOGIES[chip], gradient, shapes_of(MILLION, 16, 1))
    kernels |= compile_kernels(TOPOLOGIES[chip], decode, decode_shapes_of(1, MILLION, 16, 1))
    assert set(kernels) == KERNELS | {"attend_cache"}
    for name, compiled in kernels.items():
        (vmem,) = vmem_of_kernels(compiled.as_text()).values()
        assert vmem < VMEM, name


@pytest.mark.parametrize("chip", chips("v5e"))
def test_every_kernel_compiles_without_a_gate(chip):
    """Then nothing is kept of the router's queries, and the compiler takes no arrays without elements."""
    ungated = functools.partial(gradient, gate=False)
    kernels = compile_kernels(TOPOLOGIES[chip], ungated, shapes_of(8192, 32, 4))
    kernels |= compile_kernels(TOPOLOGIES[chip], functools.partial(decode, gate=False),
                               decode_shapes_of(1, 8192, 32, 4))
    assert set(kernels) == KERNELS | {"attend_cache"}


@pytest.mark.slow
@pytest.mark.parametrize("chip", TOPOLOGIES)
@pytest.mark.parametrize(("length", "heads", "kv_heads"), [(131072, 16, 1), (131072, 32, 4), (MILLION, 16, 1),
                                                           (MILLION, 32, 4)])
def test_the_whole_program_compiles_and_fits(chip, length, heads, kv_heads):
    memory = CHIPS[chip].memory / CHIPS[chip].devices
    if 4 * length * heads * 128 * 2 >= memory:  # queries, output and their gradients
        pytest.skip(f"{heads} query heads of {length} tokens alone fill the {memory / 2**30:.0f} GiB of HBM")
    compiled = compile_for(TOPOLOGIES[chip], gradient, shapes_of(length, heads, kv_heads))
    assert sum(planned(compiled).values()) < memory
    vmem = vmem_of_kernels(compiled.as_text())
    assert set(vmem) == KERNELS
    assert max(vmem.values()) < VMEM


@pytest.mark.slow
@pytest.mark.parametrize("chip", TOPOLOGIES)
@pytest.mark.parametrize(("batch", "length", "heads", "kv_heads"), [
    (1, MILLION, 16, 1), (64, 131072, 16, 1), (16, 131072, 32, 4)])
def test_decoding_compiles_and_lays_out_no_cache(chip, batch, length, heads, kv_heads):
    compiled = compile_for(TOPOLOGIES[chip], decode, decode_shapes_of(batch, length, heads, kv_heads))
    assert planned(compiled)["temp"] < planned(compiled)["argument"] / 100
    assert set(vmem_of_kernels(compiled.as_text())) == {"attend_cache"}


@pytest.mark.slow
@pytest.mark.parametrize("chip", TOPOLOGIES)
def test_float32_compiles(chip):
    compile_for(TOPOLOGIES[chip], forward, shapes_of(8192, 16, 1), jnp.float32)
