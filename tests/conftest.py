"""What several test modules need."""

from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("imgnet", deadline=None)  # a busy machine is no failure
settings.load_profile("imgnet")


@pytest.fixture(scope="session")
def digits_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The handwritten digits, written once for all tests."""
    from imgnet.data.sources.digits import ensure_digits

    root = tmp_path_factory.mktemp("data") / "digits"
    ensure_digits(root)
    return root
