"""Ending jobs of Slurm, and saying so in the directories of their runs."""

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from imgnet.config import ConfigError
from imgnet.launch.follow.observe import Observed, observe
from imgnet.launch.slurm import commands as slurm
from imgnet.launch.slurm.submit import MEMORY, note_cancelled
from imgnet.results.names import display_path
from imgnet.rundir import SUBMISSION, read_json


def cancel_runs(run_dirs: Sequence[Path]) -> None:
    """End the jobs of runs, whether they wait or run. A run that waits is ``cancelled`` on return, others as they end.

    Raises:
        ConfigError: Slurm did not do it, none of the runs is in its queue, or one shares its job with others.
    """
    seen = observe(run_dirs, must_answer=True)
    alive = _to_be_ended(seen)
    if not alive:
        elsewhere = [f"{display_path(one.run_dir)}: {one.reason}" for one in seen if one.is_alive and one.cluster]
        raise ConfigError(elsewhere or ["none of these runs is in Slurm's queue"])
    _refuse_shared(alive)
    _cancel(alive, "cancelled with imgnet cancel")
    observe([one.run_dir for one in alive])  # writes the end of those that only waited
    for one in alive:
        print(f"cancelled: {display_path(one.run_dir)}, job {one.job_id}")


def stop_others(run_dir: Path) -> None:
    """End what is left of a sweep, since a run of it failed (``fail_fast``), and say which runs that are.

    Args:
        run_dir: of the one that failed.
    """
    names = read_json(run_dir.parent / MEMORY).get("runs", {})
    others = [run_dir.with_name(name) for name in names if name != run_dir.name]
    try:
        alive = _to_be_ended(observe(others, must_answer=True))
        if alive:
            _cancel(alive, f"not finished, since run {run_dir.name} failed and fail_fast=true")
            observe([one.run_dir for one in alive])
    except ConfigError as error:
        sys.stderr.write(f"fail_fast=true ended no other run: {error}\n")
        return
    for one in alive:
        print(f"cancelled, since fail_fast=true: {display_path(one.run_dir)}, job {one.job_id}", flush=True)


def _to_be_ended(seen: Sequence[Observed]) -> list[Observed]:
    return [one for one in seen if one.is_alive and one.job_id and one.cluster is None and not _is_being_wound_up(one)]


def _refuse_shared(alive: Sequence[Observed]) -> None:
    """A job that several runs share (``cluster.runs_per_job``) ends for all of them."""
    named = {one.run_dir for one in alive}
    for one in alive:
        names = read_json(one.run_dir / SUBMISSION).get("together", [])
        others = _to_be_ended(observe([path for name in names if (path := one.run_dir.with_name(name)) not in named]))
        if shared := [display_path(other.run_dir) for other in others if other.job_id == one.job_id]:
            raise ConfigError(
                [f"{display_path(one.run_dir)} shares job {one.job_id} with {', '.join(shared)}; name them as well"]
            )


def _is_being_wound_up(one: Observed) -> bool:
    """Whether the run has had its last word, though its job is in the queue still; one that saved may begin again."""
    return one.status in ("failed", "cancelled")


def _cancel(alive: Sequence[Observed], why: str) -> None:
    for one in alive:
        with suppress(OSError):  # a full disk is no reason to let a job run on
            note_cancelled(one.run_dir, why)
    try:
        slurm.cancel(list(dict.fromkeys(one.job_id for one in alive if one.job_id)))
    except ConfigError:
        for one in alive:
            note_cancelled(one.run_dir, None)
        raise
