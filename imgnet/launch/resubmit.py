"""Queue again what did not come to its end: the failed runs of a sweep, and those whose directories are gone."""

from contextlib import chdir
from pathlib import Path

from omegaconf import OmegaConf

from imgnet.config import ConfigError, parse_saved
from imgnet.launch.batch import QueuedRun
from imgnet.launch.checks import check
from imgnet.launch.observe import observe
from imgnet.launch.snapshot import snapshot_of_now
from imgnet.launch.submit import MEMORY, refuse_what_slurm_would, submit
from imgnet.results.table import display_path
from imgnet.rundir import read_json


def resubmit(path: Path) -> None:
    """Submit the failed and the missing runs of a sweep again, with the code as it is now.

    Each goes on in its directory, from its newest checkpoint if it has one.

    Args:
        path: the folder of a sweep that was submitted to Slurm, or one of its runs.

    Raises:
        ConfigError: it is none, or a run is refused, as it would be today.
    """
    path = path.absolute()
    folder, only = (path, None) if (path / MEMORY).is_file() else (path.parent, path.name)
    runs = _not_completed(folder, only)
    if not runs:
        print(f"nothing to submit: no run of {display_path(path)} failed or is missing")
        return
    with chdir(read_json(folder / MEMORY)["working_dir"]):
        for run in runs:
            check(run.config)
        refuse_what_slurm_would(runs)
        submit(runs, folder, code=snapshot_of_now(folder))


def _not_completed(folder: Path, only: str | None) -> list[QueuedRun]:
    remembered = read_json(folder / MEMORY).get("runs", {})
    numbers = [number for number in remembered if only in (None, number)]
    if not numbers:
        raise ConfigError(
            [f"{display_path(folder / (only or ''))}: nothing there was submitted to Slurm (no {MEMORY})"]
        )
    seen = observe([folder / number for number in numbers])
    left = [one.run_dir for one in seen if one.status in ("failed", "preempted") or not (one.run or one.job_id)]
    left += [one.run_dir for one in seen if one.status == "queued" and one.run and not one.job_id]  # sbatch refused
    return [_queued_run(run_dir, remembered[run_dir.name]) for run_dir in left]


def _queued_run(run_dir: Path, memory: dict[str, object]) -> QueuedRun:
    config = parse_saved(OmegaConf.create(memory["config"]))  # type: ignore[arg-type]
    return QueuedRun(int(run_dir.name), config, list(memory["overrides"]), run_dir)  # type: ignore[call-overload]
