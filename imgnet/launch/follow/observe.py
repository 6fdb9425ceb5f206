"""How runs are doing: what their directories say, and what Slurm says of their jobs, made one.

A job that Slurm has alive outranks whatever the directory says, ``completed`` alone excepted: Slurm may have queued it
again. While it lives nobody but the job writes; one that is over and left no word of its end gets it here.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imgnet import rundir
from imgnet.config import ConfigError
from imgnet.launch import owner
from imgnet.launch.causes import Ending, RunFailed, first_process_killed, last_words, root_cause, slurms_ending
from imgnet.launch.slurm import commands as slurm
from imgnet.launch.slurm.commands import JobState

FILE_ENDS = ("completed", "failed", "preempted", "cancelled")


@dataclass(frozen=True)
class Observed:
    """One run at this moment."""

    run_dir: Path
    run: dict[str, Any]
    """``run.json``."""
    job_id: str | None
    """``12``, or ``12_3`` in an array; None for a run that Slurm has nothing to do with."""
    status: str
    """One of :data:`imgnet.rundir.STATUSES`."""
    state: str
    """Slurm's word in capitals while the job lives; else the ``status``."""
    reason: str = ""
    """Why a job waits, or who knows of it."""
    is_alive: bool = False
    """Whether the run may still change: its job lives, or nobody says that it does not."""
    cluster: str | None = None
    """The cluster that knows the job, where it is another one than this."""

    @property
    def is_over(self) -> bool:
        """Whether nothing will change any more."""
        return self.status in FILE_ENDS and not self.is_alive


@dataclass(frozen=True)
class _Look:
    """What a directory says, before Slurm is asked."""

    run_dir: Path
    run: dict[str, Any]
    submission: dict[str, Any]

    @property
    def status(self) -> str:
        return str(self.run.get("status", "queued"))

    @property
    def job_id(self) -> str | None:
        return self.submission.get("slurm_job_id")

    @property
    def inside(self) -> dict[str, str] | None:
        """The job around a run that somebody else submitted, while the run does not say that it has ended."""
        return self.run.get("inside") if self.job_id is None and self.status == "running" else None

    @property
    def asked_for(self) -> str | None:
        """The job that Slurm is asked for."""
        return self.inside["job"] if self.inside else self.job_id

    @property
    def cluster(self) -> str | None:
        """What the Slurm calls itself that has this job."""
        return (self.inside or self.submission).get("cluster")


def observe(run_dirs: Sequence[Path], *, must_answer: bool = False) -> list[Observed]:
    """Look at runs. One that Slurm ended, or lost, before it could say so gets its end written down.

    Where Slurm does not answer, or a job is another cluster's, the directories' own word stands.

    Args:
        run_dirs: the runs.
        must_answer: whether nothing can be made of them unless Slurm answers.

    Raises:
        ConfigError: it must, and does not.
    """
    looks = [_look(run_dir) for run_dir in run_dirs]
    open_looks = [look for look in looks if look.asked_for and look.status != "completed"]
    try:
        here = slurm.cluster_name() if open_looks else ""
        asked = [look for look in open_looks if _cluster(look, here) is None]
        states = _ask(asked)
    except slurm.NoAnswerError as silence:
        if must_answer:
            raise ConfigError([str(silence)]) from None
        return [_unanswered(look) for look in looks]
    return [_judge(look, states.get(look.asked_for or ""), _cluster(look, here)) for look in looks]


def _look(run_dir: Path) -> _Look:
    return _Look(run_dir, rundir.read_json(run_dir / "run.json"), rundir.read_json(run_dir / rundir.SUBMISSION))


def _cluster(look: _Look, here: str) -> str | None:
    """The name of the cluster that has the run's job, where that is another one."""
    return look.cluster if look.cluster and here and look.cluster != here else None


def _ask(looks: Sequence[_Look]) -> dict[str, JobState]:
    ended = [look.asked_for for look in looks if look.asked_for and look.status in FILE_ENDS]
    going = [look.asked_for for look in looks if look.asked_for and look.status not in FILE_ENDS]
    users = {look.run_dir.stat().st_uid for look in looks if look.run_dir.is_dir()}
    return slurm.job_states(going, ended=ended, users=sorted(users))


def _unanswered(look: _Look) -> Observed:
    shown = str(look.run.get("status", "not submitted"))
    is_hidden = look.job_id is not None and slurm.is_here() and look.status != "completed"
    return Observed(look.run_dir, look.run, look.job_id, look.status, shown, is_alive=is_hidden or _is_open(look))


def _is_open(look: _Look) -> bool:
    return look.job_id is not None and look.status not in FILE_ENDS


def _judge(look: _Look, state: JobState | None, cluster: str | None) -> Observed:
    if cluster is not None:
        shown = f"job of cluster {cluster}, which alone knows it"
        return Observed(look.run_dir, look.run, look.job_id, look.status, look.status, shown, _is_open(look), cluster)
    if look.inside and (state is None or state.is_over):
        look = _settled(look, state)
    if look.job_id is None or look.status == "completed":
        shown = str(look.run.get("status", "not submitted"))
        return Observed(look.run_dir, look.run, look.job_id, look.status, shown)
    if state is not None and not state.is_over:
        return _alive(look, state)
    ended = _settled(look, state)
    return Observed(ended.run_dir, ended.run, ended.job_id, ended.status, ended.status)


def _alive(look: _Look, state: JobState) -> Observed:
    """Of a run whose job Slurm has."""
    if state.is_waiting or _is_to_begin_again(look, state):
        reason = state.reason if state.is_waiting else "to begin again"
        return Observed(look.run_dir, look.run, look.job_id, "queued", state.state, reason, is_alive=True)
    # A job that is being wound up says nothing new of a run that has had its last word.
    is_ending = state.state == "COMPLETING" and look.status in FILE_ENDS
    status = look.status if is_ending else "running"
    return Observed(look.run_dir, look.run, look.job_id, status, state.state, is_alive=True)


def _is_to_begin_again(look: _Look, state: JobState) -> bool:
    claim = owner.last_claim(look.run_dir) if state.state == "COMPLETING" else None
    return claim is not None and claim.job is not None and state.restarts > claim.job.attempt


def _settled(look: _Look, state: JobState | None) -> _Look:
    """Write the end of a run whose job is over; unless the run did so itself, as it does in all but hard ends."""
    if _is_settled(look, state) or (look.inside is None and _somebody_else_works(look)):
        return look
    now = _look(look.run_dir)
    if (now.run, now.job_id) != (look.run, look.job_id):
        return now  # while Slurm was asked
    ending = _ending(look, state)
    if _is_mine(look.run_dir):
        with suppress(OSError):  # a full disk; what is shown is true all the same
            rundir.finish(look.run_dir, ending.status, ending.failure.summary)
            return _look(look.run_dir)
    return _Look(look.run_dir, look.run | {"status": ending.status, "error": ending.failure.summary}, look.submission)


def _is_settled(look: _Look, state: JobState | None) -> bool:
    claim = owner.last_claim(look.run_dir)
    if look.status == "preempted" and state is not None and state.state == "CANCELLED":
        return claim is None or claim.until is not None  # else the workers saved, and nobody was left to say why
    return look.status in FILE_ENDS or not look.run


def _somebody_else_works(look: _Look) -> bool:
    """Whether the run goes on outside its job: somebody started it by hand when that was over."""
    claim = owner.last_claim(look.run_dir)
    return claim is not None and claim.job is None and claim.until is None and not owner.is_dead_here(claim)


def _is_mine(run_dir: Path) -> bool:
    return run_dir.is_dir() and run_dir.stat().st_uid == os.getuid()


def _ending(look: _Look, state: JobState | None) -> Ending:
    """How a run ended that did not write it down."""
    claim = owner.last_claim(look.run_dir)
    has_begun = claim is not None and claim.job is not None and claim.job.name == look.job_id
    log_from = claim.log_bytes if claim is not None and has_begun else 0
    by_slurm = slurms_ending(look.run_dir, state, log_from=log_from)
    if by_slurm is not None:
        return by_slurm
    if look.inside:
        return Ending("failed", RunFailed(f"job {look.inside['job']} is over, and the run left no word of its end"))
    records = rundir.read_exit_records(look.run_dir).values() if look.status == "running" else ()
    if any(record.how in ("raised", "killed") for record in records):
        return Ending("failed", root_cause(look.run_dir, int(look.run.get("world_size", 0))))
    words = last_words(look.run_dir, log_from)
    if state is None and look.status == "queued" and (has_begun or not words):
        return Ending("cancelled", RunFailed("cancelled while it waited"))
    if state is None:
        return Ending("failed", RunFailed("Slurm does not know the job any more, and it left no word of its end"))
    if has_begun:
        return Ending("failed", RunFailed(first_process_killed(look.run_dir)))
    why = words or f"{state.reason or 'no reason given'} (Slurm: {state.state})"
    return Ending("failed", RunFailed(f"the job ended before the run began: {why}"))
