"""How runs are doing: what their directories say, and what Slurm says of their jobs, made one."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imgnet import rundir
from imgnet.launch import slurm
from imgnet.launch.local import root_cause
from imgnet.launch.slurm import JobState

FILE_ENDS = ("completed", "failed", "preempted")
_WORDS = {
    "NODE_FAIL": "Slurm lost a node",
    "TIMEOUT": "the time limit was reached",
    "CANCELLED": "the job was cancelled",
    "OUT_OF_MEMORY": "a node had not enough memory (cluster.mem_gb)",
    "PREEMPTED": "the job was preempted",
}
FORGOTTEN = JobState("LOST", "Slurm does not know the job any more, and it left no word of its end")


@dataclass(frozen=True)
class Observed:
    """One run at this moment."""

    run_dir: Path
    run: dict[str, Any]
    """``run.json``."""
    job_id: str | None
    """``12``, or ``12_3`` in an array; None for a run that Slurm has nothing to do with."""
    state: str
    """Slurm's word in capitals while the job lives or where it ended the run; else the run's own ``status``."""
    reason: str = ""
    """Why a job waits."""

    @property
    def status(self) -> str:
        """``queued``, ``running``, ``completed``, ``failed`` or ``preempted``."""
        return str(self.run.get("status", "queued"))

    @property
    def is_over(self) -> bool:
        """Whether nothing will change any more."""
        return self.status in FILE_ENDS


def observe(run_dirs: Sequence[Path]) -> list[Observed]:
    """Look at runs. One that Slurm ended, or lost, before it could say so is written down as failed.

    Where Slurm does not answer, the directories' own word stands.
    """
    jobs = {run_dir: _job_id(run_dir) for run_dir in run_dirs if _run(run_dir).get("status") not in FILE_ENDS}
    try:
        states = slurm.job_states([job for job in jobs.values() if job])
    except slurm.NoAnswerError:
        return [_observed(run_dir, None) for run_dir in run_dirs]
    for run_dir, job in jobs.items():
        if job and _is_mine(run_dir):
            _settle(run_dir, states.get(job, FORGOTTEN))
    return [_observed(run_dir, states.get(jobs.get(run_dir) or "")) for run_dir in run_dirs]


def _run(run_dir: Path) -> dict[str, Any]:
    return rundir.read_json(run_dir / "run.json")


def _job_id(run_dir: Path) -> str | None:
    return rundir.read_json(run_dir / "submission.json").get("slurm_job_id")


def _is_mine(run_dir: Path) -> bool:
    return run_dir.is_dir() and run_dir.stat().st_uid == os.getuid()


def _settle(run_dir: Path, job: JobState) -> None:
    """Write the end of a run whose job is over; unless the run did so itself, as it does in all but hard ends."""
    if not job.is_over or _run(run_dir).get("status") in FILE_ENDS:
        return
    rundir.finish(run_dir, "failed", _what_happened(run_dir, job))


def _what_happened(run_dir: Path, job: JobState) -> str:
    word = _WORDS.get(job.state)
    if word is None and rundir.read_exit_records(run_dir):
        return root_cause(run_dir, int(_run(run_dir).get("world_size", 0)), {}).summary
    return word or f"{job.reason or 'no reason given'} (Slurm: {job.state})"


def _observed(run_dir: Path, job: JobState | None) -> Observed:
    run = _run(run_dir)
    job_id = _job_id(run_dir)
    if job is None or (run.get("status") in FILE_ENDS and not _ended_by_slurm(job)):
        return Observed(run_dir, run, job_id, str(run.get("status", "not submitted")))
    return Observed(run_dir, run, job_id, job.state, job.reason if job.state == "PENDING" else "")


def _ended_by_slurm(job: JobState) -> bool:
    return job.state in _WORDS
