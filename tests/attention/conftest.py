import pytest
from interpreted import interpreted_kernels


@pytest.fixture(params=["reference", "xla", pytest.param("tpu", marks=pytest.mark.slow)])
def implementation(request):
    """The implementations that run in this process, the TPU's kernels interpreted; `test_gpu.py` compares `gpu`."""
    if request.param != "tpu":
        yield request.param
        return
    with interpreted_kernels():
        yield request.param
