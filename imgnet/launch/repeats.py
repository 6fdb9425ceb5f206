"""Which runs were made before: a sweep that is typed again makes only those that are lacking.

Two runs are the same when their resolved configurations are, but for what has no part in the result
(``config.settings``). The commit is no part of it either; ``skip_completed=false`` makes a run again.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus

from imgnet.checkpoint.manifest import steps_of
from imgnet.config import Mode, RunConfig, SlurmConfig
from imgnet.config.renamed import first_name, renamed
from imgnet.config.settings import NOT_IN_THE_RESULT, is_among, of_the_result
from imgnet.launch.follow.observe import Observed, observe
from imgnet.launch.owner import who_works
from imgnet.results.names import display_path
from imgnet.rundir import read_json

STANDARD_FOLDER = Path("multirun_outputs")


def identity(config: RunConfig) -> str:
    """Sixteen hexadecimal digits, the same for runs that would give the same result."""
    settings = {first_name(key): value for key, value in of_the_result(config).items()}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def counts(override: str) -> bool:
    """Whether what was typed, such as ``optimizer.lr=0.1``, may change what a run gives."""
    return not is_among(NOT_IN_THE_RESULT, renamed(override).lstrip("+~").partition("=")[0])


def skips_completed(config: RunConfig) -> bool:
    """Whether a run is left out where it was made before: as the user says, and on Slurm unless told otherwise."""
    return isinstance(config.cluster, SlurmConfig) if config.skip_completed is None else config.skip_completed


def made_before(configs: Mapping[int, RunConfig], sweep_dir: Path) -> dict[int, JobReturn]:
    """What need not be made: runs that are completed, and on Slurm those that are on their way. Says which.

    Args:
        configs: accepted runs, by number.
        sweep_dir: where a new sweep would go; sweeps in its folder and in ``multirun_outputs/`` are searched.

    Returns:
        For each of them the directory where it was made; with its result, unless it is on its way.
    """
    identities = {number: identity(config) for number, config in configs.items() if skips_completed(config)}
    alike = _runs_like(set(identities.values()), sweep_dir) if identities else {}
    seen = {one.run_dir: one for one in observe([path for paths in alike.values() for path in paths])}
    returns = {}
    for number, same in identities.items():
        candidates = [seen[path] for path in alike.get(same, [])]
        if found := _best(candidates):
            returns[number] = _as_return(found)
    return returns


def to_be_continued(config: RunConfig, sweep_dir: Path) -> Path | None:
    """The directory of the newest unfinished run with the same configuration that left a whole checkpoint.

    None where there is none, where nobody wants it (``resume=none``), and where its workers are still at work.
    """
    if config.resume != "auto" or config.mode is not Mode.train:
        return None
    same = identity(config)
    for run_dir in _runs_like({same}, sweep_dir).get(same, []):
        is_open = read_json(run_dir / "run.json").get("status") != "completed"
        if is_open and not (run_dir / "submission.json").exists() and steps_of(run_dir / "checkpoints"):
            return None if who_works(run_dir) else run_dir
    return None


def _best(candidates: list[Observed]) -> Observed | None:
    """A completed run rather than one on its way; of several the newest."""
    completed = [one for one in candidates if one.status == "completed"]
    on_their_way = [one for one in candidates if one.job_id and one.status in ("queued", "running")]
    return next(iter(completed + on_their_way), None)


def _as_return(found: Observed) -> JobReturn:
    shown = display_path(found.run_dir)
    result = JobReturn(overrides=list(found.run.get("overrides", [])), working_dir=str(found.run_dir))
    if found.is_over:
        print(f"skipped, completed before: {shown} (skip_completed=false makes it again)")
        result.status = JobStatus.COMPLETED
        result.return_value = read_json(found.run_dir / "summary.json").get("val_acc1")
    else:
        print(f"skipped, on its way: {shown} is job {found.job_id}, {found.state}")
    return result


def _runs_like(wanted: set[str], sweep_dir: Path) -> dict[str, list[Path]]:
    """Run directories with these identities, the newest first."""
    found: dict[str, list[Path]] = {}
    for file in sorted(_run_files(sweep_dir), reverse=True):
        if (same := read_json(file).get("identity")) in wanted:
            found.setdefault(same, []).append(file.parent)
    return found


def _run_files(sweep_dir: Path) -> Iterator[Path]:
    yield from {
        file.resolve()
        for file in [*STANDARD_FOLDER.glob("*/*/*/run.json"), *sweep_dir.absolute().parent.glob("*/*/run.json")]
    }
