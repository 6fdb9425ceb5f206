"""The first process of a job: ``python -m imgnet.launch.slurm.job RUN_DIR srun ... run.py``, its script's last line.

It starts one task for each worker, which executes ``run.py`` with what was typed for the run, waits for them, and
writes into ``run.json`` how the run ended, whatever happened to the workers. When they have saved, after a notice ahead
of a time limit or a preemption, it has the job queued again. A job that has no business in the directory leaves it.
"""

import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from imgnet import rundir
from imgnet.config import SlurmConfig, read
from imgnet.launch import owner
from imgnet.launch.causes import (
    Ending,
    RunFailed,
    deaths_told_by_srun,
    last_words,
    note_deaths,
    root_cause,
    slurms_ending,
    was_requeued,
)
from imgnet.launch.follow.observe import observe
from imgnet.launch.owner import Claim, TakenError
from imgnet.launch.slurm import commands as slurm
from imgnet.launch.slurm.cancel import stop_others
from imgnet.launch.slurm.commands import JobState
from imgnet.launch.slurm.snapshot import is_running_from
from imgnet.launch.slurm.submit import MEMORY
from imgnet.layout import layout_of
from imgnet.rundir import read_json
from imgnet.runtime import SlurmJob, environment_of_tasks, num_slurm_nodes, slurm_hosts, slurm_job, slurm_job_id

NOTE_S = 60.0
"""How long a job waits until the command that submitted it has noted its number."""
TO_BE_QUEUED = 75
"""Exit status of a run that shares its job, has saved, and would go on (``EX_TEMPFAIL`` of sysexits.h)."""
LOOK_S = 0.5
"""Between two looks whether workers that are told to end have saved."""


def main(run_dir: Path, command: list[str]) -> int:
    """Carry out one run inside the job around this process.

    Args:
        run_dir: where its configuration is, and where its end is written.
        command: ``srun`` and ``run.py``, to which the words of the run are added.

    Returns:
        The exit status: 0 only where the run completed.
    """
    ended_by: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: ended_by.append(number))
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # the notice is for the tasks
    if read_json(run_dir / "run.json").get("status") == "completed":
        print(f"job {slurm_job()} leaves: the run is completed", flush=True)
        return 0
    submission = _own_submission(run_dir, slurm_job())
    if submission is None:
        return 1
    try:
        with owner.held(run_dir, slurm_job()) as claim:
            return _carry_out(run_dir, claim, submission, [*command, *submission["run.py"]], ended_by)
    except TakenError as taken:
        return _leave(str(taken))


def _own_submission(run_dir: Path, job: SlurmJob) -> dict[str, Any] | None:
    """What was noted when this job was submitted; None, and a word in the job's output, where it was another job."""
    end = time.monotonic() + NOTE_S
    while True:
        submission = read_json(run_dir / rundir.SUBMISSION)
        noted = SlurmJob(submission.get("slurm_job_id") or "", submission.get("cluster") or "")
        if noted.name == job.name and ("" in (noted.cluster, job.cluster) or noted.cluster == job.cluster):
            return submission
        # The job may have begun before the command that submits it could write its number down.
        if noted.name or time.monotonic() > end:
            _leave(f"{run_dir} was submitted as job {noted}" if noted.name else f"{run_dir} was not submitted")
            return None
        time.sleep(0.2)


def _leave(why: str) -> int:
    sys.stderr.write(f"job {slurm_job()} leaves the run as it is: {why}\n")
    return 1


def _carry_out(run_dir: Path, claim: Claim, submission: dict[str, Any], command: list[str], ended_by: list[int]) -> int:
    """Run all workers, and write how the run ended, unless the directory is somebody else's by then."""
    code = Path(submission["code"])
    if not is_running_from(code):
        failure = RunFailed(f"{code} is gone, the code of this run; `imgnet resubmit` takes it as it is now")
        return _finish(run_dir, Ending("failed", failure))
    config = read(run_dir / ".hydra" / "config.yaml")
    if config.fail_fast and (failed := _failed_since(run_dir, submission["submitted"])):
        why = f"not begun, since run {failed} failed and fail_fast=true"
        return _finish(run_dir, Ending("cancelled", RunFailed(why)))
    _begin(run_dir)
    # Slurm sends SIGTERM to the tasks as well.
    status = 1 if ended_by else _run_workers(run_dir, claim.number, command, ended_by)
    if not owner.is_still_held(run_dir, claim.number):
        return _leave("Slurm had given this attempt up, and another one works on it")
    said = read_json(run_dir / "run.json").get("status")
    if said == "completed" and (status == 0 or ended_by):
        return 0
    if said == "preempted" and not ended_by:
        return _queue_again(run_dir)
    state = _what_slurm_says()
    if was_requeued(run_dir, state, attempt=slurm_job().attempt, log_from=claim.log_bytes):
        rundir.write_run(run_dir, status="queued", end=rundir.now())
    else:
        _finish(run_dir, _why(run_dir, claim, status, state, ended=bool(ended_by)))
    return status or 1


def _run_workers(run_dir: Path, claim: int, command: Sequence[str], ended_by: Sequence[int]) -> int:
    """The exit status of ``srun`` when all workers have ended; 1 where Slurm ends the job and they have saved."""
    print(f"+ {shlex.join(command)}", flush=True)
    with _meeting_point() as meeting:
        srun = subprocess.Popen(command, env=environment_of_tasks(run_dir, claim, meeting))
        while True:
            with suppress(subprocess.TimeoutExpired):
                return srun.wait(LOOK_S)
            if ended_by and read_json(run_dir / "run.json").get("status") == "preempted":
                return 1  # little time is left to say how the run ended


def _failed_since(run_dir: Path, submitted: str) -> str | None:
    """The first run of the sweep that failed after this one was submitted, by its name."""
    names = read_json(run_dir.parent / MEMORY).get("runs", {})
    seen = observe([run_dir.with_name(name) for name in names if name != run_dir.name])
    ends = {one.run_dir.name: one.run.get("end") or "" for one in seen if one.status == "failed"}
    return next((name for name, end in ends.items() if end >= submitted), None)


def _finish(run_dir: Path, ending: Ending) -> int:
    rundir.finish(run_dir, ending.status, ending.failure.summary)
    sys.stderr.write(f"{ending.failure}\n")
    if ending.status == "failed" and read(run_dir / ".hydra" / "config.yaml").fail_fast:
        stop_others(run_dir)
    return 1


def _queue_again(run_dir: Path) -> int:
    """Let Slurm start this job once more, from the checkpoint that was just made; not for ever.

    Returns:
        1: a run that is not complete has not succeeded. Slurm ends this process before it can say so.
        :data:`TO_BE_QUEUED` where other runs share the job.
    """
    config = read(run_dir / ".hydra" / "config.yaml")
    assert isinstance(config.cluster, SlurmConfig)
    requeues = int(read_json(run_dir / "run.json").get("requeues", 0))
    if requeues >= config.cluster.max_num_timeout:
        sys.stderr.write(f"saved, but not queued again: cluster.max_num_timeout={config.cluster.max_num_timeout}\n")
        return 1
    rundir.write_run(run_dir, status="queued", requeues=requeues + 1)
    if read_json(run_dir / rundir.SUBMISSION).get("together"):
        return TO_BE_QUEUED  # its job is the others' as well, which may still be saving
    queue_job_again([run_dir])
    return 1


def queue_job_again(run_dirs: Sequence[Path]) -> None:
    """Let Slurm start this job once more, for these runs. Where it does not, they stay ``preempted``."""
    if why := slurm.requeue(slurm_job_id()):
        for run_dir in run_dirs:
            words = f"saved, but not queued again ({why}); `imgnet resubmit` lets it go on"
            rundir.finish(run_dir, "preempted", words)
            sys.stderr.write(f"{words}\n")


def _begin(run_dir: Path) -> None:
    submitted = read_json(run_dir / "run.json")
    rundir.reopen(run_dir)
    code = {key: submitted.get(key) for key in ("commit", "dirty")}  # HEAD may have moved on; the snapshot has not
    rundir.write_run(run_dir, hosts=slurm_hosts(), slurm_job_id=slurm_job_id(), **code)


@contextmanager
def _meeting_point() -> Iterator[Path | tuple[str, int]]:
    """Where the workers find each other: a file on an only node, else a port of this first one, free at present."""
    if num_slurm_nodes() == 1:
        with tempfile.TemporaryDirectory(prefix="imgnet-") as folder:
            yield Path(folder) / "store"
        return
    with closing(socket.socket()) as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    yield socket.gethostname(), port


def _what_slurm_says() -> JobState | None:
    name = slurm_job().name
    try:
        return slurm.job_states([name]).get(name)
    except slurm.NoAnswerError:
        return None


def _why(run_dir: Path, claim: Claim, status: int, state: JobState | None, *, ended: bool) -> Ending:
    by_slurm = slurms_ending(run_dir, state, log_from=claim.log_bytes)
    if by_slurm is not None:
        return by_slurm
    logs = f"logs: {run_dir / 'logs'}"
    if ended:
        return Ending("failed", RunFailed("SIGTERM ended the job's first process", logs))
    began = bool(rundir.read_exit_records(run_dir))
    deaths = deaths_told_by_srun(run_dir, claim.log_bytes)
    note_deaths(run_dir, {rank: code for rank, code in deaths.items() if began or code < 0})
    if rundir.read_exit_records(run_dir):
        config = read(run_dir / ".hydra" / "config.yaml")
        return Ending("failed", root_cause(run_dir, layout_of(config.cluster, None).world_size))
    words = last_words(run_dir, claim.log_bytes) or "without a word"
    return Ending("failed", RunFailed(f"no worker started, srun ended with {status}: {words}", logs))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
