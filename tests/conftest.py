"""What several test modules need."""

from pathlib import Path

import pytest
import torch
from hypothesis import settings

settings.register_profile("imgnet", deadline=None)  # a busy machine is no failure
settings.load_profile("imgnet")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Torch's sums depend on the number of threads, and threads that wait for one another take the cores from others.

    Before each test, as one that joined a group of workers in this process leaves it with as many as there are cores.
    """
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The handwritten digits, written once for all tests."""
    from imgnet.data.sources.digits import ensure_digits

    root = tmp_path_factory.mktemp("data") / "digits"
    ensure_digits(root)
    return root
