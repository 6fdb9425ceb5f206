"""Queue again what did not come to its end: the failed runs of a sweep, and those whose directories are gone."""

from collections.abc import Sequence
from contextlib import chdir
from pathlib import Path

from omegaconf import OmegaConf

from imgnet.config import ConfigError, parse_saved
from imgnet.config.renamed import renamed
from imgnet.launch import owner
from imgnet.launch.checks import check
from imgnet.launch.follow.observe import Observed, observe
from imgnet.launch.slurm.batch import QueuedRun
from imgnet.launch.slurm.snapshot import snapshot_of_now
from imgnet.launch.slurm.submit import MEMORY, refuse_what_slurm_would, submit
from imgnet.results.names import display_path
from imgnet.rundir import read_json


def resubmit(path: Path) -> None:
    """Submit those runs of a sweep again that failed, were cancelled or are missing, with the code as it is now.

    Each goes on in its directory, from its newest checkpoint if it has one. One command at a time does so in a sweep.

    Args:
        path: the folder of a sweep that was submitted to Slurm, or one of its runs.

    Raises:
        ConfigError: it is none, or a run is refused, as it would be today; or Slurm does not say whether it lives.
    """
    path = path.absolute()
    folder, only = (path, None) if (path / MEMORY).is_file() else (path.parent, path.name)
    numbers = [number for number in read_json(folder / MEMORY).get("runs", {}) if only in (None, number)]
    if not numbers:
        raise ConfigError([f"{display_path(path)}: nothing there was submitted to Slurm (no {MEMORY})"])
    with owner.held(folder):
        _submit_again(folder, observe([folder / number for number in numbers], must_answer=True))


def _submit_again(folder: Path, seen: Sequence[Observed]) -> None:
    memory = read_json(folder / MEMORY)
    runs = [_queued_run(one.run_dir, memory["runs"][one.run_dir.name]) for one in seen if _is_lacking(one)]
    if not runs:
        going = [one for one in seen if one.is_alive]
        names = "".join(f"\n{display_path(one.run_dir)} is job {one.job_id}, {one.state}" for one in going)
        print(f"nothing to submit: no run of {display_path(folder)} failed or is missing{names}")
        return
    with chdir(memory["working_dir"]):
        for run in runs:
            check(run.config)
        refuse_what_slurm_would(runs)
        submit(runs, folder, code=snapshot_of_now(folder))


def _is_lacking(one: Observed) -> bool:
    """Whether a run did not come to its end and nobody works on it.

    Raises:
        ConfigError: that cannot be known here, or somebody does outside Slurm.
    """
    if one.status == "completed":
        return False
    if one.cluster is not None:
        raise ConfigError([f"{display_path(one.run_dir)} is {one.reason}; resubmit it there"])
    if one.is_alive:
        return False
    if claim := owner.who_works(one.run_dir):
        raise ConfigError([f"{display_path(one.run_dir)}: {claim} is at work on this run"])
    return True


def _queued_run(run_dir: Path, memory: dict[str, object]) -> QueuedRun:
    config = parse_saved(OmegaConf.create(memory["config"]))  # type: ignore[arg-type]
    overrides = [renamed(word) for word in memory["overrides"]]  # type: ignore[attr-defined]
    sources = list(memory.get("sources", []))  # type: ignore[call-overload]
    return QueuedRun(int(run_dir.name), config, overrides, run_dir, sources)
