"""The bytes that workers count are those that a network carries."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.sent import CASES

FRAMES, WORDS_MB = 1.01, 2.0
"""Headers of packets and acknowledgements; losses, how workers find each other, and their word of each second."""


@pytest.mark.slow
@pytest.mark.timeout(900)  # 22 trainings of ResNet-18 on four workers
def test_a_network_carries_what_workers_count(tmp_path: Path) -> None:
    command = ["unshare", "--net", sys.executable, "-m", "tests.distributed.sent", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.keys() == CASES.keys()
    for name, (counted, carried) in found.items():
        assert counted > 0, name
        # Either way, since each is the difference of two runs, and a busy machine holds up the shorter one, too.
        assert counted - WORDS_MB <= carried <= FRAMES * counted + WORDS_MB, (name, counted, carried)
