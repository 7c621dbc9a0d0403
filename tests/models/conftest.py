"""The kernels compiled once for all tests of this folder that want them."""

import pytest

from alexnet.models import kernel


@pytest.fixture
def compiled():
    if not kernel.build():
        pytest.skip("no C compiler builds the kernels here")
    kernel.use(True)
    kernel.fewer_products(True)
    yield
    kernel.use(True)
    kernel.fewer_products(None)


@pytest.fixture
def plain():
    """PyTorch's operations, also where a test before has compiled the kernels."""
    kernel.use(False)
    yield
    kernel.use(True)
