"""The first process of a job that several runs share: ``python -m imgnet.launch.slurm.pack RUN_DIR srun ... run.py``.

It starts :mod:`imgnet.launch.slurm.job` for each run, all at once, as if each had the job for itself, and outlives
them. The job is queued again when the last of its runs has saved.
"""

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from imgnet import rundir
from imgnet.launch.slurm.job import TO_BE_QUEUED, queue_job_again
from imgnet.rundir import read_json

OPEN = ("queued", "running")
"""What a run is that this attempt of the job is for. One that saved, and may not be queued again, is ``preempted``."""


def main(run_dir: Path, command: Sequence[str]) -> int:
    """Carry out the runs of the job around this process.

    Args:
        run_dir: of the first of them, which says who the others are.
        command: ``srun`` and ``run.py``, for each.

    Returns:
        The exit status: 0 only where all runs completed.
    """
    names = read_json(run_dir / rundir.SUBMISSION).get("together", [])
    run_dirs = [run_dir.with_name(name) for name in names]
    open_runs = [one for one in run_dirs if read_json(one / "run.json").get("status") in OPEN]
    processes = {one: _start(one, command, has_own_log=one == run_dir) for one in open_runs}
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # the notice is for the tasks
    signal.signal(
        signal.SIGTERM, lambda number, _frame: [process.send_signal(number) for process in processes.values()]
    )
    codes = {one: process.wait() for one, process in processes.items()}
    if saved := [one for one, code in codes.items() if code == TO_BE_QUEUED]:
        queue_job_again(saved)
    return int(any(codes.values()))


def _start(run_dir: Path, command: Sequence[str], *, has_own_log: bool) -> subprocess.Popen[bytes]:
    """The first process of one run. What the job prints goes to the first run's log already."""
    job = [sys.executable, "-P", "-m", "imgnet.launch.slurm.job", str(run_dir), *command]
    if has_own_log:
        return subprocess.Popen(job)
    with (run_dir / "logs" / "slurm.log").open("ab") as log:
        return subprocess.Popen(job, stdout=log, stderr=subprocess.STDOUT)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
