"""The first process of a Slurm job: ``python -m imgnet.launch.job RUN_DIR srun ... RUN_DIR``, last line of the script.

It starts one task on each node, waits for them, and writes into ``run.json`` how the run ended, whatever happened to
the workers. A signal that Slurm sends ahead of a time limit or a preemption would be passed on from here, and the job
queued again.
"""

import signal
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from imgnet import rundir
from imgnet.config import SlurmConfig, read
from imgnet.launch import slurm
from imgnet.launch.layout import layout_of
from imgnet.launch.local import RunFailed, root_cause
from imgnet.runtime import slurm_hosts, slurm_task

_REASONS = {
    "TimeLimit": "the time limit was reached (cluster.timeout_min={timeout_min})",
    "NodeDown": "Slurm lost a node",
}
NOISE = ("srun:", "slurmstepd:")
"""First words of lines in the job's output that name no cause."""


def main(run_dir: Path, command: list[str]) -> int:
    """Carry out one run inside the job around this process.

    Args:
        run_dir: where its configuration is, and where its end is written.
        command: ``srun`` and the task of each node.

    Returns:
        The exit status: 0 only where the run completed.
    """
    ended_by: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: ended_by.append(number))
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # the notice is for the tasks
    _begin(run_dir)
    # Slurm sends SIGTERM to the tasks as well, and a second one would end them before they have saved.
    status = subprocess.run([*command, *_meeting_point()], check=False).returncode
    said = rundir.read_json(run_dir / "run.json").get("status")
    if said == "preempted" and not ended_by:
        return _queue_again(run_dir)
    if said == "completed" and (status == 0 or ended_by):
        return 0
    failure = _why(run_dir, status, ended=bool(ended_by))
    rundir.finish(run_dir, "preempted" if said == "preempted" else "failed", failure.summary)
    sys.stderr.write(f"{failure}\n")
    return status or 1


def _queue_again(run_dir: Path) -> int:
    """Let Slurm start this job once more, from the checkpoint that was just made; not for ever.

    Returns:
        1: a run that is not complete has not succeeded. Slurm ends this process before it can say so.
    """
    config = read(run_dir / ".hydra" / "config.yaml")
    assert isinstance(config.cluster, SlurmConfig)
    requeues = int(rundir.read_json(run_dir / "run.json").get("requeues", 0))
    if requeues >= config.cluster.max_requeues:
        sys.stderr.write(f"saved, but not queued again: cluster.max_requeues={config.cluster.max_requeues}\n")
        return 1
    rundir.write_run(run_dir, status="queued", requeues=requeues + 1)
    done = subprocess.run(["scontrol", "requeue", slurm_task().job_id], capture_output=True, text=True, check=False)
    if done.returncode:
        rundir.finish(run_dir, "preempted", f"saved, but Slurm would not queue it again: {done.stderr.strip()}")
    return 1


def _begin(run_dir: Path) -> None:
    submitted = rundir.read_json(run_dir / "run.json")
    rundir.reopen(run_dir)
    code = {key: submitted.get(key) for key in ("commit", "dirty")}  # HEAD may have moved on; the snapshot has not
    rundir.write_run(run_dir, hosts=slurm_hosts(), slurm_job_id=slurm_task().job_id, **code)


def _meeting_point() -> list[str]:
    """``host:port`` on this node, which is the job's first, where there are several; the port is free at present."""
    if slurm_task().num_nodes == 1:
        return []
    with closing(socket.socket()) as probe:
        probe.bind(("", 0))
        return [f"{socket.gethostname()}:{probe.getsockname()[1]}"]


def _why(run_dir: Path, status: int, *, ended: bool) -> RunFailed:
    config = read(run_dir / ".hydra" / "config.yaml")
    assert isinstance(config.cluster, SlurmConfig)
    if ended:
        reason = _REASONS.get(_slurms_reason(run_dir), "the job was cancelled, or ended by Slurm")
        return RunFailed(reason.format(timeout_min=config.cluster.timeout_min), f"logs: {run_dir / 'logs'}")
    if rundir.read_exit_records(run_dir):
        return root_cause(run_dir, layout_of(config.cluster, None).world_size, {})
    return RunFailed(
        f"no worker started, srun ended with {status}: {_last_words(run_dir)}", f"logs: {run_dir / 'logs'}"
    )


def _slurms_reason(run_dir: Path) -> str:
    job_id = rundir.read_json(run_dir / "submission.json").get("slurm_job_id", "")
    try:
        job = slurm.job_states([job_id]).get(job_id)
    except slurm.NoAnswerError:
        return ""
    return job.reason if job else ""


def _last_words(run_dir: Path) -> str:
    """The last line of the job's output that may name a cause."""
    log = run_dir / "logs" / "slurm.log"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    return next((line for line in reversed(lines) if line.strip() and not line.startswith(NOISE)), "without a word")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
