"""The runs of one command: accepted or refused together, carried out in turn, compared at the end."""

import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, redirect_stderr, suppress
from dataclasses import dataclass, replace
from functools import partial
from io import StringIO
from itertools import count
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from imgnet.config import HYDRA, ConfigError, RunConfig, SlurmConfig, parse
from imgnet.launch.causes import RunFailed
from imgnet.launch.checks import check
from imgnet.launch.composition import Composer
from imgnet.launch.follow.wait import wait_for, waits
from imgnet.launch.progress import progress
from imgnet.launch.repeats import made_before, to_be_continued
from imgnet.launch.slurm.batch import QueuedRun
from imgnet.launch.slurm.submit import is_dry, refuse_what_slurm_would, show_plan, submit
from imgnet.launch.start import no_other_launcher
from imgnet.launch.together import refuse_alone, refuse_what_differs, run_here
from imgnet.layout import Layout
from imgnet.published import PREPROCESSING
from imgnet.results.table import show_results
from imgnet.rundir import not_written
from imgnet.runtime import Placement, Submitted, placement_from_environment, submitted


@dataclass(frozen=True)
class TypedRun:
    """A run of the command, before anything is known of it."""

    number: int
    overrides: list[str]
    composer: Composer

    def composed(self) -> DictConfig:
        """Its configuration with Hydra's own part, which then stands for this run wherever ``${hydra:...}`` is read.

        Composed anew each time: a sweep of hundreds would hold millions of nodes.
        """
        config = self.composer.compose(self.overrides)
        _keep_what_was_typed(config, self.overrides)
        with read_write(config), open_dict(config):
            config.hydra.job.num = self.number
            config.hydra.job.id = str(self.number)
        HydraConfig.instance().cfg = config  # pyright: ignore[reportAttributeAccessIssue]  (set_config takes as long)
        return config


def typed_runs(overrides: Sequence[Sequence[str]], composer: Composer, first: int = 0) -> list[TypedRun]:
    """The runs with these overrides, numbered from ``first`` on."""
    return [TypedRun(number, list(words), composer) for number, words in enumerate(overrides, first)]


@dataclass(frozen=True)
class Accepted:
    """A run that may be carried out."""

    typed: TypedRun
    config: RunConfig
    subdir: str
    """Its directory, in the folder of the sweep."""
    sources: list[str]
    """What else must be said to ``run.py`` for the overrides to mean the same."""


def run_sweep(
    runs: Sequence[TypedRun], sweep_dir: Path, task_function: TaskFunction, *, needs_results: bool = False
) -> list[JobReturn]:
    """Check every run; then queue those for Slurm, and carry out the others one after the other.

    Args:
        runs: of the command; a searching sweeper calls this again and again, with higher numbers.
        sweep_dir: where the runs' directories go, and a free name beside it where that is taken.
        task_function: ``run.py``'s ``main``.
        needs_results: wait for Slurm's jobs, whatever ``cluster.wait`` says.

    Returns:
        One for each run, without a value where the run is in Slurm's queue and nobody waits for it.

    Raises:
        ConfigError: at least one run was refused; none was started.
        SystemExit: with 1, after all were tried, where one failed.
    """
    if (job := submitted()) is not None:
        return [_work_for(job, run, task_function) for run in runs]
    accepted = {run.typed.number: run for run in accept(runs)}
    configs = [run.config for run in accepted.values()]
    if placement_from_environment() is not None:
        refuse_alone(configs, "a job of torchrun or srun")
        return _conclude([_run_one(run, sweep_dir, task_function) for run in accepted.values()])
    refuse_what_differs(configs, searches=needs_results)
    with ExitStack() as afterwards:
        returns = _carry_out(accepted, sweep_dir, task_function, afterwards, needs_results=needs_results)
        return _conclude([returns[number] for number in accepted if number in returns])


def refuse_what_others_cannot(runs: Sequence[TypedRun], launcher: str, parameters: Mapping[str, Any]) -> None:
    """Before another launcher of Hydra's has written anything: refuse what it would not carry out.

    Args:
        runs: of the command.
        launcher: its name.
        parameters: its part of the configuration, from which follows how many workers each run will have.

    Raises:
        ConfigError: a run is refused, or is one for Slurm, which our launcher alone queues.
    """
    nodes, tasks = parameters.get("nodes", 1), parameters.get("tasks_per_node", 1)
    if launcher == "submitit_local" and tasks > 1:
        raise ConfigError(
            [f"hydra.launcher.tasks_per_node={tasks}: on this machine a run starts its own workers; leave it out"]
        )
    elsewhere = Layout(nodes, tasks, use_gpu=False) if nodes * tasks > 1 else None
    accepted = accept(runs, elsewhere)
    refuse_alone([run.config for run in accepted], f"hydra/launcher={launcher}")
    queued = {run.config.cluster.name: None for run in accepted if isinstance(run.config.cluster, SlurmConfig)}
    if queued:
        raise ConfigError([no_other_launcher(name, f"hydra/launcher={launcher}") for name in queued])


def read_returns(returns: Sequence[JobReturn]) -> None:
    """Raise what the runs of another launcher raised: it lies in what that returns, where nobody else looks.

    Raises:
        ConfigError: runs were refused.
        RunFailed: runs failed; all of them in one.
        Exception: the first that one raised.
    """
    raised = [error for result in returns if (error := _raised(result))]
    if refused := [problem for error in raised if isinstance(error, ConfigError) for problem in error.problems]:
        raise ConfigError(refused)
    if raised and all(isinstance(error, RunFailed) for error in raised):
        raise RunFailed("\n".join(map(str, raised)))
    for error in raised:
        raise error


def _raised(result: JobReturn) -> Exception | None:
    if result.status is not JobStatus.FAILED:
        return None
    try:
        with redirect_stderr(StringIO()):  # it prints a line beside
            return RunFailed(f"a run failed with {result.return_value!r}")
    except Exception as error:
        return error


def _carry_out(
    accepted: Mapping[int, Accepted],
    sweep_dir: Path,
    task_function: TaskFunction,
    afterwards: ExitStack,
    *,
    needs_results: bool,
) -> dict[int, JobReturn]:
    """Make the runs that were not made before. A dry run prints, and returns nothing."""
    returns = made_before({number: run.config for number, run in accepted.items()}, sweep_dir)
    lacking = {number: run for number, run in accepted.items() if number not in returns}
    planned = [_queued_run(run, sweep_dir) for run in lacking.values() if isinstance(run.config.cluster, SlurmConfig)]
    if is_dry(planned):
        show_plan(planned)
        return {}
    refuse_what_slurm_would(planned)
    if lacking:
        made = _claim(sweep_dir.absolute()) if 0 in accepted else []
        folder = made[0] if made else sweep_dir.absolute()
        moved = [replace(run, run_dir=folder / run.run_dir.name) for run in planned]
        submit(moved, folder, code=folder / "code", forget_folder=lambda: _forget(made))
        returns |= {run.number: JobReturn(working_dir=str(folder / str(run.number))) for run in planned}
        here = {number: run for number, run in lacking.items() if number not in returns}
        if here:
            afterwards.push(partial(_end, next(iter(here.values())).config.on_sweep_end, folder))
        returns |= _run_each(here, sweep_dir, folder, task_function)
        if not any(folder.iterdir()):
            _forget(made)
    if needs_results or any(waits(run.config) for run in accepted.values()):
        fail_fast = any(run.config.fail_fast for run in accepted.values())
        wait_for([result for result in returns.values() if result.status is JobStatus.UNKNOWN], fail_fast=fail_fast)
    return returns


def _run_each(
    runs: Mapping[int, Accepted], sweep_dir: Path, folder: Path, task_function: TaskFunction
) -> dict[int, JobReturn]:
    """Carry out runs on this machine, one after the other; all of them, unless ``fail_fast`` says otherwise."""
    returns: dict[int, JobReturn] = {}
    for number, run in runs.items():
        returns[number] = _run_one(run, folder, task_function, to_be_continued(run.config, sweep_dir))
        if run.config.fail_fast and returns[number].status is JobStatus.FAILED:
            for left in (other for other in runs.values() if other.typed.number not in returns):
                sys.stderr.write(f"not begun, since fail_fast=true: {' '.join(left.typed.overrides)}\n")
            break
    return returns


def _end(command: str | None, folder: Path, kind: type[BaseException] | None, *_: object) -> None:
    """Run the command after the last run, unless the sweep was interrupted before that."""
    if command is not None and kind in (None, SystemExit):
        run_here(command, folder)


def _work_for(job: Submitted, run: TypedRun, task_function: TaskFunction) -> JobReturn:
    """Be a worker of a run that was accepted when it was submitted."""
    config = run.composed()
    task_function(OmegaConf.masked_copy(config, [str(key) for key in config if key != HYDRA]))
    return JobReturn(overrides=run.overrides, working_dir=str(job.run_dir), status=JobStatus.COMPLETED)


def _queued_run(run: Accepted, folder: Path) -> QueuedRun:
    number = run.typed.number
    if Path(run.subdir) != Path(str(number)):
        raise ConfigError(
            [f"hydra.sweep.subdir={run.subdir}: a Slurm array needs folders that are named by their number"]
        )
    return QueuedRun(number, run.config, run.typed.overrides, folder.absolute() / str(number), run.sources)


def _conclude(returns: list[JobReturn]) -> list[JobReturn]:
    """Compare what came out, and end the process where a run failed."""
    ended = [result for result in returns if result.status is not JobStatus.UNKNOWN]
    if len(ended) == len(returns) > 1:
        show_results([Path(result.working_dir) for result in returns if result.working_dir])
    failed = [result for result in ended if result.status is JobStatus.FAILED]
    if failed:
        _say_which_failed(failed, len(returns))
        sys.exit(1)
    return returns


def accept(runs: Sequence[TypedRun], elsewhere: Layout | None = None) -> list[Accepted]:
    """Check the runs of a command.

    Args:
        runs: of the command.
        elsewhere: where another launcher of Hydra's puts the workers of each.

    Raises:
        ConfigError: a line for each problem, which of the runs have it included.
    """
    placement = placement_from_environment()
    if placement is not None and len(runs) > 1:
        raise ConfigError([f"a sweep of {len(runs)} runs inside one job of torchrun or srun; start one run there"])
    refused: dict[str, list[str]] = {}
    accepted = []
    for run in progress(runs, "checked"):
        try:
            accepted.append(_accept(run, placement, elsewhere))
        except ConfigError as error:
            for problem in error.problems:
                refused.setdefault(problem, []).append(" ".join(run.overrides))
    if refused:
        raise ConfigError([problem + _where(which, len(runs)) for problem, which in refused.items()])
    return accepted


def _accept(run: TypedRun, placement: Placement | None, elsewhere: Layout | None) -> Accepted:
    composed = run.composed()
    config = parse(composed)
    check(config, placement, elsewhere)
    return Accepted(run, config, str(composed.hydra.sweep.subdir), _sources(composed.hydra))


def _sources(hydra: DictConfig) -> list[str]:
    """Where a composition begins and what it is made of, as words of the command, where that is not ``conf/config``."""
    words = [] if hydra.job.config_name == "config" else ["--config-name", str(hydra.job.config_name)]
    added = [one.path for one in hydra.runtime.config_sources if one.provider == "command-line"]
    words += [word for folder in added for word in ("--config-dir", str(Path(folder).absolute()))]
    return words + [word for word in hydra.overrides.hydra if word.startswith("hydra.searchpath=")]


def _keep_what_was_typed(config: DictConfig, typed: Sequence[str]) -> None:
    """Note which keys a run's weights must leave alone. A run without weights is the same however it was typed."""
    if not (OmegaConf.select(config, "model.pretrained") or OmegaConf.select(config, "model.weights")):
        return
    parser = OverridesParser.create()
    keys = {parser.parse_override(word).key_or_group.removeprefix("data.") for word in typed if "data." in word}
    kept = {*(OmegaConf.select(config, "data.keep") or []), *keys.intersection(PREPROCESSING)}
    OmegaConf.update(config, "data.keep", sorted(kept), force_add=True)


def _where(runs: Sequence[str], num_runs: int) -> str:
    """For a problem of some runs of a sweep only: how many, and the first of them."""
    return "" if len(runs) == num_runs else f" [{len(runs)} of {num_runs} runs, the first: {runs[0]}]"


def _claim(sweep_dir: Path) -> list[Path]:
    """Make the folder, or the first free one of ``<name>-2``, ``-3``, ...: two commands may start in one second.

    Returns:
        It, and those above it that had to be made, upwards.

    Raises:
        ConfigError: it cannot be made.
    """
    above = [folder for folder in sweep_dir.parents if not folder.exists()]
    try:
        sweep_dir.parent.mkdir(parents=True, exist_ok=True)
        for number in count(1):
            folder = sweep_dir if number == 1 else sweep_dir.with_name(f"{sweep_dir.name}-{number}")
            with suppress(FileExistsError):
                folder.mkdir()
                return [folder, *above]
    except OSError as error:
        raise ConfigError([f"no run is begun: {not_written(error, sweep_dir)}"]) from error
    raise AssertionError("unreachable")


def _forget(made: Sequence[Path]) -> None:
    """Remove a folder that was made for nothing, and those above it, unless somebody else uses them by now."""
    for folder in made[:1]:
        shutil.rmtree(folder, ignore_errors=True)
    for folder in made[1:]:
        with suppress(OSError):
            folder.rmdir()


def _run_one(run: Accepted, folder: Path, task_function: TaskFunction, unfinished: Path | None = None) -> JobReturn:
    """Carry out a run in a directory of its own, or go on in that of an unfinished one."""
    config = run.typed.composed()
    run_dir = unfinished or (folder / run.subdir).absolute()
    with read_write(config), read_write(config.hydra.runtime), open_dict(config):
        config.hydra.runtime.output_dir = str(run_dir)
    HydraConfig.instance().set_config(config)
    task = OmegaConf.masked_copy(config, [str(key) for key in config if key != HYDRA])
    result = JobReturn(overrides=run.typed.overrides, working_dir=str(run_dir))
    try:
        result.return_value = task_function(task)
        result.status = JobStatus.COMPLETED
    except RunFailed as failure:
        _fail(result, failure)
    except OSError as error:
        if (run_dir / "run.json").exists() or placement_from_environment() is not None:
            raise
        shutil.rmtree(run_dir, ignore_errors=True)
        _fail(result, RunFailed(f"not begun: {not_written(error, run_dir)}"))
    return result


def _fail(result: JobReturn, failure: RunFailed) -> None:
    sys.stderr.write(f"{failure}\n")
    result.return_value, result.status = failure, JobStatus.FAILED


def _say_which_failed(failed: Sequence[JobReturn], num_runs: int) -> None:
    if num_runs == 1:
        return
    sys.stderr.write(f"{len(failed)} of {num_runs} runs failed:\n")
    for result in failed:
        sys.stderr.write(f"  {result.working_dir}: {' '.join(result.overrides or [])}\n")
