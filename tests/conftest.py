"""What several test modules need."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from tests.unmeasured import unmeasured

settings.register_profile("imgnet", deadline=None)  # a busy machine is no failure
settings.load_profile("imgnet")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Torch's sums depend on the number of threads, and threads that wait for one another take the cores from others.

    Before each test, as one that joined a group of workers in this process leaves it with as many as there are cores.
    """
    torch.set_num_threads(1)


@pytest.fixture(name="unmeasured")
def _unmeasured() -> Iterator[None]:
    """For tests that come by the same lines again and again, or by those that others are about."""
    with unmeasured():
        yield


@pytest.fixture(scope="session")
def digits_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The handwritten digits, written once for all tests."""
    from imgnet.data.sources.digits import ensure_digits

    root = tmp_path_factory.mktemp("data") / "digits"
    ensure_digits(root)
    return root
