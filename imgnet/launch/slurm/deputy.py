"""Rank 0's task speaks for the first process of its job, where that is killed and cannot say how the run ended.

It is on the same machine. Slurm ends the job within seconds, this task included, but SIGTERM comes first.
"""

import threading
import time
from pathlib import Path

from imgnet import rundir
from imgnet.launch import owner
from imgnet.launch.causes import first_process_killed

LOOK_S = 1.0
"""Between two looks whether the job's first process lives."""


class Deputy:
    """Watches the owner of a run directory from a thread of its own, as long as this process lives.

    Args:
        run_dir: of the run.
        claim: number of the first process's claim to it.
    """

    def __init__(self, run_dir: Path, claim: int) -> None:
        self._run_dir, self._claim = run_dir, claim
        self._first_process = owner.read(run_dir, claim)
        threading.Thread(target=self._watch, name="deputy", daemon=True).start()

    def speak(self) -> None:
        """Say what became of the first process, if it is gone and nobody else works here: the last word counts."""
        if not owner.is_dead_here(self._first_process) or not owner.is_still_held(self._run_dir, self._claim):
            return
        status = rundir.read_json(self._run_dir / "run.json").get("status")
        if status in ("running", "preempted") and owner.read(self._run_dir, self._claim).until is None:
            rundir.finish(self._run_dir, "failed", first_process_killed(self._run_dir))

    def _watch(self) -> None:
        while not owner.is_dead_here(self._first_process):
            time.sleep(LOOK_S)
        self.speak()
