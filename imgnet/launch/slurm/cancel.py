"""Ending jobs of Slurm, and saying so in the directories of their runs."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from imgnet import rundir
from imgnet.config import ConfigError
from imgnet.launch.follow.observe import Observed, observe
from imgnet.launch.slurm import commands as slurm
from imgnet.launch.slurm.submit import note_cancelled
from imgnet.results.names import display_path


def cancel_runs(run_dirs: Sequence[Path]) -> None:
    """End the jobs of runs, whether they wait or run. A run that waits is ``cancelled`` on return, others as they end.

    Raises:
        ConfigError: Slurm did not do it, or none of the runs is in its queue.
    """
    seen = observe(run_dirs, must_answer=True)
    alive = [one for one in seen if one.is_alive and one.job_id and one.cluster is None and not _is_being_wound_up(one)]
    if not alive:
        elsewhere = [f"{display_path(one.run_dir)}: {one.reason}" for one in seen if one.is_alive and one.cluster]
        raise ConfigError(elsewhere or ["none of these runs is in Slurm's queue"])
    _cancel(alive)
    observe([one.run_dir for one in alive])  # writes the end of those that only waited
    for one in alive:
        print(f"cancelled: {display_path(one.run_dir)}, job {one.job_id}")


def _is_being_wound_up(one: Observed) -> bool:
    """Whether the run has had its last word, though its job is in the queue still; one that saved may begin again."""
    return one.status in ("failed", "cancelled")


def _cancel(alive: Sequence[Observed]) -> None:
    for one in alive:
        with suppress(OSError):  # a full disk is no reason to let a job run on
            note_cancelled(one.run_dir, rundir.now())
    try:
        slurm.cancel([one.job_id for one in alive if one.job_id])
    except ConfigError:
        for one in alive:
            note_cancelled(one.run_dir, None)
        raise
