"""One node's task of a Slurm job: ``python -m imgnet.launch.node RUN_DIR [HOST:PORT]``, started by ``srun``.

It ends non-zero when a worker of its node failed, so that ``srun --kill-on-bad-exit`` ends the tasks of all others.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path

from imgnet.config import read
from imgnet.launch.layout import layout_of
from imgnet.launch.local import RunFailed, run_agent, run_workers
from imgnet.runtime import slurm_task

LATE_S = 600
"""How much later than another a node may come, when Python is read from a busy file system."""
GRACE_S = 20.0
"""How long this node's workers have to save and end; Slurm kills what is left after its own KillWait (30 s)."""


def main(run_dir: Path, meeting_point: str | None) -> int:
    """Be this node's launcher.

    Args:
        run_dir: the run, whose configuration is read from there.
        meeting_point: ``host:port`` on the job's first node, where the nodes find each other; None for one node.

    Returns:
        The exit status: 0, or 1 where a worker of this node failed or the job was ended.
    """
    config = read(run_dir / ".hydra" / "config.yaml")
    layout = layout_of(config.cluster, None)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # until there are workers that can save
    _end_even_if_stuck()
    try:
        if meeting_point is None:
            run_workers(config, run_dir, layout)
        else:
            task = slurm_task()
            # Asked to guess the host, torch would compare names, and a node may have several.
            meeting = {
                "rdzv_endpoint": meeting_point,
                "rdzv_configs": {"is_host": task.node == 0, "read_timeout": LATE_S},
            }
            run_agent(config, run_dir, layout, meeting, store_file=None)
    except (RunFailed, KeyboardInterrupt) as ending:
        sys.stderr.write(f"node {slurm_task().node}: {getattr(ending, 'summary', f'ended by {ending}')}\n")
        return 1
    return 0


def _end_even_if_stuck() -> None:
    """After SIGTERM end within seconds, also where the agent waits for other nodes and hears no signal.

    When its own workers are done, torch's agent waits up to five minutes for the agents of other nodes, inside a call
    that Python cannot interrupt. Workers end by themselves when this process is gone.
    """
    reading, writing = os.pipe2(os.O_NONBLOCK)
    os.set_blocking(reading, True)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def wait() -> None:
        while os.read(reading, 1)[0] != signal.SIGTERM:
            pass
        if multiprocessing.active_children():
            time.sleep(GRACE_S)
        os._exit(1)

    threading.Thread(target=wait, name="grace", daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None))
