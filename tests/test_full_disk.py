"""A run whose disk is full for a while."""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest

from imgnet.checkpoint.folder import check_worker
from imgnet.checkpoint.manifest import read_manifest, steps_of
from tests.commands import start_run_py
from tests.disks import mounted
from tests.test_launch_processes import only_run, quick, read, wait_until

NUM_EPOCHS = 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", megabytes=32) as folder:
        yield folder


def fill(path: Path) -> None:
    """Write a file that takes all that is left."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 8, 1):
            with suppress(OSError):
                while file.write(bytes(size)):
                    pass


def test_training_goes_on_while_the_disk_is_full_and_no_row_is_lost(disk: Path, digits_root: Path) -> None:
    outside = disk.parent
    process = start_run_py(*quick(digits_root, f"epochs={NUM_EPOCHS}"), cwd=disk, out_in=outside)

    def printed(text: str) -> bool:
        return text in (outside / "out.txt").read_text()

    try:
        wait_until(lambda: bool(list(disk.glob("multirun_outputs/*/*/*/checkpoints/step_*"))), process, outside)
        run_dir, theirs = only_run(disk), disk / "somebody else's"
        before = steps_of(run_dir / "checkpoints")
        fill(theirs)
        for warning in ("summary.json not written for now: No space left", "warning: checkpoint of step "):
            wait_until(lambda warning=warning: printed(warning), process, outside)
        theirs.unlink()
        process.wait(timeout=90)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert process.returncode == 0, (outside / "out.txt").read_text()
    assert not printed("Traceback")
    assert before
    assert read(run_dir / "run.json")["status"] == "completed"
    assert pd.read_csv(run_dir / "metrics.csv")["epoch"].tolist() == list(range(1, NUM_EPOCHS + 1))
    newest = steps_of(run_dir / "checkpoints")[0]
    assert read_manifest(newest).epoch == NUM_EPOCHS
    check_worker(newest, 0)
