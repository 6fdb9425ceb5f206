"""Reading the log of a run, also while it is written."""

import sys
import time
from pathlib import Path

from imgnet.launch.follow.observe import observe
from imgnet.launch.follow.status import log_of

READ_S = 0.5
ASK_S = 5.0
"""Between two questions whether the run is over; Slurm's controller serves everybody."""


def show_log(run_dir: Path, *, rank: int | None, follow: bool) -> None:
    """Print the log of a run from its beginning; with ``follow`` go on until the run is over.

    Args:
        run_dir: the run.
        rank: of the worker; None: the job's output, or rank 0's where there is no job.
        follow: wait for more, and for the file itself where the run has not begun.

    Raises:
        FileNotFoundError: there is no such log, and nobody waits for it.
    """
    path = log_of(run_dir, rank)
    read, asked, is_over = 0, 0.0, not follow
    while True:
        if follow and time.monotonic() - asked > ASK_S:
            (one,) = observe([run_dir])
            asked, is_over = time.monotonic(), one.is_over
        if path.is_file():
            read += _print_from(path, read)
        elif is_over:
            raise FileNotFoundError(path)
        if is_over:
            return
        time.sleep(READ_S)


def _print_from(path: Path, position: int) -> int:
    with path.open("rb") as file:
        file.seek(position)
        new = file.read()
    sys.stdout.write(new.decode("utf-8", errors="replace"))
    sys.stdout.flush()
    return len(new)
