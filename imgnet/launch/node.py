"""One node's task of a Slurm job: ``python -m imgnet.launch.node RUN_DIR CLAIM [HOST:PORT]``, started by ``srun``.

It ends non-zero when a worker of its node failed, so that ``srun --kill-on-bad-exit`` ends the tasks of all others.
"""

import multiprocessing
import os
import select
import signal
import sys
import threading
import time
from pathlib import Path

from imgnet import rundir
from imgnet.config import read
from imgnet.launch import owner
from imgnet.launch.causes import RunFailed, first_process_killed
from imgnet.launch.layout import layout_of
from imgnet.launch.local import run_agent, run_workers
from imgnet.launch.snapshot import is_running_from
from imgnet.runtime import slurm_task

LATE_S = 600
"""How much later than another a node may come, when Python is read from a busy file system."""
LOOK_S = 1.0
"""Between two looks whether the job's first process lives."""
GRACE_S = 20.0
"""How long this node's workers have to save and end; Slurm kills what is left after its own KillWait (30 s)."""


def main(run_dir: Path, claim: int, meeting_point: str | None) -> int:
    """Be this node's launcher.

    Args:
        run_dir: the run, whose configuration is read from there.
        claim: number of the job's claim to the directory.
        meeting_point: ``host:port`` on the job's first node, where the nodes find each other; None for one node.

    Returns:
        The exit status: 0, or 1 where a worker of this node failed or the job was ended.
    """
    code = Path(rundir.read_json(run_dir / rundir.SUBMISSION)["code"])
    if not is_running_from(code):
        sys.stderr.write(f"node {slurm_task().node}: {code} is gone here, the code of this run\n")
        return 1
    config = read(run_dir / ".hydra" / "config.yaml")
    layout = layout_of(config.cluster, None)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # until there are workers that can save
    _watch(run_dir, claim)
    try:
        if meeting_point is None:
            run_workers(config, run_dir, layout, claim)
        else:
            task = slurm_task()
            # Asked to guess the host, torch would compare names, and a node may have several.
            meeting = {
                "rdzv_endpoint": meeting_point,
                "rdzv_configs": {"is_host": task.node == 0, "read_timeout": LATE_S},
            }
            run_agent(config, run_dir, layout, claim, meeting, store_file=None)
    except (RunFailed, KeyboardInterrupt) as ending:
        sys.stderr.write(f"node {slurm_task().node}: {getattr(ending, 'summary', f'ended by {ending}')}\n")
        return 1
    return 0


def _watch(run_dir: Path, claim: int) -> None:
    """After SIGTERM end within seconds, also where the agent waits for other nodes and hears no signal.

    When its own workers are done, torch's agent waits up to five minutes for the agents of other nodes, inside a call
    that Python cannot interrupt. Workers end by themselves when this process is gone.

    The task beside the job's first process writes the end of the run where that process is killed and cannot.
    """
    reading, writing = os.pipe2(os.O_NONBLOCK)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    first_process = owner.read(run_dir, claim)
    is_deputy = slurm_task().node == 0

    def wait() -> None:
        while not select.select([reading], [], [], LOOK_S)[0] or os.read(reading, 1)[0] != signal.SIGTERM:
            if is_deputy and owner.is_dead_here(first_process):
                break
        if is_deputy and owner.is_dead_here(first_process):
            _write_its_end(run_dir, claim)
        if multiprocessing.active_children():
            time.sleep(GRACE_S)
        os._exit(1)

    threading.Thread(target=wait, name="watch", daemon=True).start()


def _write_its_end(run_dir: Path, claim: int) -> None:
    """Say what became of the job's first process. Slurm ends the job within seconds, this task included."""
    is_open = rundir.read_json(run_dir / "run.json").get("status") == "running"
    if is_open and owner.is_still_held(run_dir, claim) and owner.read(run_dir, claim).until is None:
        rundir.finish(run_dir, "failed", first_process_killed(run_dir))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else None))
