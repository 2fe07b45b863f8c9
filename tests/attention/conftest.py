import pytest
from interpreted import interpreted_kernels


@pytest.fixture(params=["reference", "xla", pytest.param("tpu", marks=pytest.mark.slow)])
def implementation(request):
    """The name of every implementation in turn; the TPU's kernels run interpreted."""
    if request.param != "tpu":
        yield request.param
        return
    with interpreted_kernels():
        yield request.param
