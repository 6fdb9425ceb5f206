"""From accepted runs to jobs in Slurm's queue: nothing is written before Slurm itself has accepted every one."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from imgnet import rundir
from imgnet.config import ConfigError, RunConfig, SlurmConfig, as_yaml, plain
from imgnet.launch.follow.observe import observe
from imgnet.launch.progress import progress
from imgnet.launch.repeats import identity
from imgnet.launch.slurm import commands as slurm
from imgnet.launch.slurm.batch import (
    JobArray,
    QueuedRun,
    arrays_of,
    batch_script,
    executor_of,
    problems_of_folders,
    ranges,
)
from imgnet.launch.slurm.last import LOG, LastJob
from imgnet.launch.slurm.snapshot import take_snapshot
from imgnet.results.names import display_path, typed_path

MEMORY = "sweep.json"
"""In a sweep's folder: ``working_dir``; by number what was submitted into it: each run's ``overrides``, ``sources``
and ``config``; and ``last_job``, which runs ``on_sweep_end``."""


def is_dry(runs: Sequence[QueuedRun]) -> bool:
    """Whether one of the runs asks only to be shown."""
    return any(isinstance(run.config.cluster, SlurmConfig) and run.config.cluster.dry_run for run in runs)


def refuse_what_slurm_would(runs: Sequence[QueuedRun]) -> None:
    """Ask Slurm about every array before anything is written.

    Raises:
        ConfigError: a line for each array that it would not take, or that there is no Slurm here.
    """
    if not runs:
        return
    if not slurm.is_here():
        names = dict.fromkeys(run.config.cluster.name for run in runs)
        raise ConfigError([f"cluster={name}: {slurm.NO_SBATCH}" for name in names])
    _refuse_folders(runs)
    problems = []
    for array in _planned(runs):
        problems += slurm.refusal(batch_script(array), array.cluster)
        problems += slurm.refusal_of_srun(array.cluster)
    if last := _last_job(runs, runs[0].run_dir.parent / "code"):
        problems += [f"on_sweep_end: {problem}" for problem in slurm.refusal(last.script(), last.cluster)]
    if problems:
        raise ConfigError(problems)
    try:
        slurm.cluster_name()  # belongs to a submission
    except slurm.NoAnswerError as silence:
        raise ConfigError([str(silence)]) from None


def show_plan(runs: Sequence[QueuedRun]) -> None:
    """Print what would be queued: the script of each array, the configuration of each run, and what it would take.

    Raises:
        ConfigError: Slurm would read the script otherwise than it is meant.
    """
    _refuse_folders(runs)
    for array in _planned(runs):
        sys.stdout.write(f"# batch script of {_runs(array)}, cluster={array.cluster.name}\n{batch_script(array)}\n")
    if last := _last_job(runs, runs[0].run_dir.parent / "code"):
        sys.stdout.write(f"# batch script after the last run\n{last.script()}\n")
    for run in runs:
        sys.stdout.write(f"# configuration of run {run.number} {' '.join(run.overrides)}\n")
        sys.stdout.write(as_yaml(run.config) + "\n")
    _show_forecast([run.config for run in runs])


def _show_forecast(configs: Sequence[RunConfig]) -> None:
    """What is not known is said, and is no reason against a run."""
    from imgnet.plan.forecast import forecast  # numpy, which no other submission waits for
    from imgnet.plan.show import show

    found = forecast(configs)
    if found.predictions:
        show(found.predictions, found.about)
    for warning in found.warnings:
        sys.stdout.write(f"{warning}\n")
    for problem in found.problems:
        sys.stdout.write(f"not predicted: {problem}\n")


def submit(
    runs: Sequence[QueuedRun], folder: Path, *, code: Path, forget_folder: Callable[[], None] = lambda: None
) -> None:
    """Make the run directories and queue the runs.

    Args:
        runs: accepted, each to be made in ``folder``.
        folder: of the sweep.
        code: the snapshot that the jobs import; made if it is not there.
        forget_folder: removes the folder, where it was made for these runs.

    Raises:
        ConfigError: Slurm refused an array after all, and what was queued before is in the queue; or the disk did not
            take what had to be written, and nothing is queued.
    """
    if not runs:
        return
    is_new, queued = not code.exists(), list[str]()
    try:
        if is_new:
            take_snapshot(code)
        _remember(runs, folder)
        arrays = arrays_of(runs, code, Path.cwd())
        for run, note in progress([*_notes(arrays)], "written"):
            _note_submission(run, note)  # before anything begins: a job waits for its number to be noted
            _make_run_dir(run)
        for array in arrays:
            _queue(array, queued)
        if last := _last_job(runs, code):
            _queue_last(last, queued)
    except OSError as error:
        _take_back(queued)
        if is_new:
            shutil.rmtree(code, ignore_errors=True)
        forget_folder()
        raise ConfigError([f"nothing is submitted: {rundir.not_written(error, folder)}"]) from error
    _show_what_next(runs)


def _queue(array: JobArray, queued: list[str]) -> None:
    executor = executor_of(array)
    try:
        with slurm.one_line_refusals():
            jobs = executor.queue([runs[0].run_dir for runs in array.jobs])
    finally:
        queued += executor.taken
    of_run = {run.number: its_job for runs, its_job in zip(array.jobs, jobs, strict=True) for run in runs}
    for run, note in _notes([array]):
        _note_submission(run, note | {"slurm_job_id": of_run[run.number].job_id})
    print(f"submitted job {queued[-1]}: {_runs(array)} with {_resources(array.cluster)}", flush=True)


def _last_job(runs: Sequence[QueuedRun], code: Path) -> LastJob | None:
    """The job after those of all runs, where one is wanted; with the resources' names of the first run."""
    command, cluster = runs[0].config.on_sweep_end, runs[0].config.cluster
    assert isinstance(cluster, SlurmConfig)
    return LastJob(command, cluster, runs[0].run_dir.parent, code, Path.cwd()) if command else None


def _queue_last(last: LastJob, queued: list[str]) -> None:
    """Queue it behind these jobs, and those of the sweep that live still; it takes the place of an earlier one."""
    memory = rundir.read_json(last.folder / MEMORY)
    seen = observe([last.folder / number for number in memory["runs"]])
    if earlier := memory.get("last_job"):
        with suppress(ConfigError):  # Slurm may have forgotten it
            slurm.cancel([earlier])
    alive = {one.job_id: None for one in seen if one.is_alive and one.job_id and one.cluster is None}
    with slurm.one_line_refusals():
        job = last.submit([*queued, *(job for job in alive if job.partition("_")[0] not in queued)])
    queued.append(job)
    rundir.write_atomically(last.folder / MEMORY, json.dumps(memory | {"last_job": job}, indent=1) + "\n")
    print(f"submitted job {job}: on_sweep_end, after the last run (output: {display_path(last.folder / LOG)})")


def _take_back(queued: Sequence[str]) -> None:
    """End jobs whose numbers could not be written down."""
    if queued:
        slurm.cancel(queued)
        print(f"cancelled: {', '.join(queued)}", flush=True)


def _show_what_next(runs: Sequence[QueuedRun]) -> None:
    """Print where the runs are, and how to follow them."""
    folder, first = runs[0].run_dir.parent, runs[0].run_dir
    numbers = f"/<{ranges(run.number for run in runs)}>"
    print(f"results: {display_path(first) if len(runs) == 1 else display_path(folder) + numbers}")
    print(f"follow:  imgnet status {typed_path(folder)}\n         imgnet logs {typed_path(first)} -f", flush=True)


def _refuse_folders(runs: Sequence[QueuedRun]) -> None:
    if problems := problems_of_folders(runs, Path.cwd()):
        raise ConfigError([" ".join(problem.splitlines()) for problem in problems])


def _planned(runs: Sequence[QueuedRun]) -> list[JobArray]:
    return arrays_of(runs, runs[0].run_dir.parent / "code", Path.cwd())


def _runs(array: JobArray) -> str:
    number = len(array.runs)
    return "1 run" if number == 1 else f"{number} runs"


def _resources(cluster: SlurmConfig) -> str:
    kind = f" {cluster.gpu_type}" if cluster.gpu_type else ""
    nodes = "1 node" if cluster.nodes == 1 else f"{cluster.nodes} nodes"
    return f"{nodes} of {cluster.gpus_per_node}{kind} (cluster={cluster.name})"


def _remember(runs: Sequence[QueuedRun], folder: Path) -> None:
    """Note the runs in the sweep's folder, so that one whose directory is lost can be made again."""
    memory = rundir.read_json(folder / MEMORY)
    known: dict[str, Any] = memory.get("runs", {})
    for run in runs:
        known[str(run.number)] = {"overrides": run.overrides, "sources": run.sources, "config": plain(run.config)}
    memory |= {"working_dir": str(Path.cwd()), "runs": known}
    rundir.write_atomically(folder / MEMORY, json.dumps(memory, indent=1) + "\n")


def _make_run_dir(run: QueuedRun) -> None:
    cluster = run.config.cluster
    assert isinstance(cluster, SlurmConfig)
    rundir.create(
        run.run_dir,
        as_yaml(run.config),
        overrides=run.overrides,
        seed=run.config.seed,
        epochs=run.config.epochs,
        world_size=cluster.nodes * cluster.gpus_per_node,
        identity=identity(run.config),
        status="queued",
    )


def _notes(arrays: Sequence[JobArray]) -> Iterator[tuple[QueuedRun, dict[str, Any]]]:
    """What is noted of each run's submission; its job has no number yet."""
    submitted = rundir.now()
    for array in arrays:
        for runs in array.jobs:
            together = {"together": [run.run_dir.name for run in runs]} if array.shares else {}
            for run in runs:
                yield (
                    run,
                    together
                    | {
                        "slurm_job_id": None,
                        "cluster": slurm.cluster_name(),
                        "submitted": submitted,
                        "code": str(array.code),
                        "run.py": [*run.sources, *run.overrides],
                    },
                )


def _note_submission(run: QueuedRun, note: dict[str, Any]) -> None:
    """Write which job the run is, and no other: one that finds another number leaves the directory alone."""
    # A file of its own: the job may have begun, and write run.json at the same moment.
    run.run_dir.mkdir(exist_ok=True)
    rundir.write_atomically(run.run_dir / rundir.SUBMISSION, json.dumps(note, indent=2) + "\n")


def note_cancelled(run_dir: Path, why: str | None) -> None:
    """Write down that the run's job is ended on purpose, before Slurm is told: the job reads it as it ends.

    Args:
        run_dir: of the run.
        why: what is said of the run then; None takes it back.
    """
    note = rundir.read_json(run_dir / rundir.SUBMISSION) | {"cancelled": why}
    rundir.write_atomically(run_dir / rundir.SUBMISSION, json.dumps(note, indent=2) + "\n")
