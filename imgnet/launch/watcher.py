"""submitit's knowledge of jobs, from Slurm's queue as well.

submitit asks accounting alone, at doubling intervals. A cluster without accounting has it warn at every question, and
learn minutes late that a job is gone which left no result.
"""

import time
from contextlib import suppress
from typing import final

from submitit.slurm.slurm import SlurmInfoWatcher, SlurmJob

from imgnet.launch import slurm

ASK_S = 5
"""Between two questions; Slurm's controller serves everybody."""


@final
class QueueWatcher(SlurmInfoWatcher):
    """Asks the queue, and accounting for what the queue has forgotten, every few seconds for all jobs at once."""

    def __init__(self) -> None:
        super().__init__(delay_s=ASK_S)

    def update(self) -> None:
        """Look at all jobs that are not over. One that nobody knows any more is over: its number came from Slurm."""
        asked = self._registered - self._finished
        self._num_calls += 1
        with suppress(slurm.NoAnswerError):
            states = slurm.job_states(asked)
            self._info_dict |= {job: {"State": states[job].state if job in states else "LOST"} for job in asked}
            self._finished |= {job for job in asked if job not in states or states[job].is_over}
        self._last_status_check = time.time()


def ask_the_queue() -> None:
    """Have submitit's jobs of Slurm, made from now on in this process, watched so."""
    SlurmJob.watcher = QueueWatcher()
