"""What submitit knows of its jobs, from Slurm's queue.

submitit asks accounting alone, at doubling intervals. On a cluster without accounting it would warn at every question,
and learn minutes late that a job is gone which left no result.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import final

from submitit.core.utils import UncompletedJobError
from submitit.slurm.slurm import SlurmInfoWatcher, SlurmJob

from imgnet.launch.causes import RunFailed
from imgnet.launch.slurm import commands as slurm

ASK_S = 3.0
"""Between two questions; Slurm's controller serves everybody."""
LATE_S = 5
"""How much later than the end of a job its result may be seen."""
FORGOTTEN = "COMPLETED"
"""A job that nobody knows any more is over: its number came from Slurm. Its result says how."""


@final
class QueueWatcher(SlurmInfoWatcher):
    """Asks the queue, and accounting for what the queue has forgotten, every few seconds for all jobs at once."""

    def __init__(self) -> None:
        super().__init__(delay_s=3)

    def update_if_long_enough(self, mode: str) -> None:
        """Ask, unless that was done a moment ago; ``cache``: never, ``force``: now."""
        if mode == "force" or (mode == "standard" and time.time() - self._last_status_check > ASK_S):
            self.update()

    def update(self) -> None:
        """Look at all jobs that are not over."""
        asked = self._registered - self._finished
        self._num_calls += 1
        self._last_status_check = time.time()
        with suppress(slurm.NoAnswerError):
            states = slurm.job_states(asked)
            self._info_dict |= {job: {"State": states[job].state if job in states else FORGOTTEN} for job in asked}
            self._finished |= {job for job in asked if job not in states or states[job].is_over}


@contextmanager
def queue_watched() -> Iterator[None]:
    """Have jobs that submitit sends to Slurm watched so, as long as the context lasts.

    Raises:
        RunFailed: a job ended without a result.
    """
    before = SlurmJob.watcher, SlurmJob._results_timeout_s
    SlurmJob.watcher, SlurmJob._results_timeout_s = QueueWatcher(), LATE_S
    try:
        yield
    except UncompletedJobError as error:
        raise RunFailed(*str(error).split("\n", 1)) from None
    finally:
        SlurmJob.watcher, SlurmJob._results_timeout_s = before
