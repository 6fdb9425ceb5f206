"""The runs of one command: accepted or refused together, carried out in turn, compared at the end."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from imgnet.config import ConfigError, RunConfig, SlurmConfig, parse
from imgnet.launch.batch import QueuedRun
from imgnet.launch.checks import check
from imgnet.launch.local import RunFailed
from imgnet.launch.repeats import made_before, to_be_continued
from imgnet.launch.submit import is_dry, refuse_what_slurm_would, show_plan, submit
from imgnet.launch.wait import wait_for, waits
from imgnet.published import PREPROCESSING
from imgnet.results.table import show_comparison
from imgnet.runtime import placement_from_environment


def run_sweep(
    composed: Sequence[DictConfig],
    overrides: Sequence[Sequence[str]],
    first: int,
    sweep_dir: Path,
    task_function: TaskFunction,
    *,
    needs_results: bool = False,
) -> list[JobReturn]:
    """Check every run; then queue those for Slurm, and carry out the others one after the other.

    Args:
        composed: the configuration of each run, with Hydra's own part.
        overrides: what the user typed for each.
        first: number of the first run; a searching sweeper calls this again and again.
        sweep_dir: where the runs' directories go, and a free name beside it where that is taken.
        task_function: ``run.py``'s ``main``.
        needs_results: wait for Slurm's jobs, whatever ``cluster.wait`` says.

    Returns:
        One for each run, without a value where the run is in Slurm's queue and nobody waits for it.

    Raises:
        ConfigError: at least one run was refused; none was started.
        SystemExit: with 1, after all were tried, where one failed.
    """
    configs = _check_all(composed, overrides)
    numbered = dict(enumerate(composed, start=first))
    if placement_from_environment() is not None:
        returns = {number: _run_one(config, sweep_dir, number, task_function) for number, config in numbered.items()}
    else:
        by_number = dict(zip(numbered, configs, strict=True))
        returns = _carry_out(numbered, by_number, sweep_dir, task_function, needs_results=needs_results)
    return _conclude([returns[number] for number in numbered if number in returns])


def _carry_out(
    numbered: dict[int, DictConfig],
    configs: dict[int, RunConfig],
    sweep_dir: Path,
    task_function: TaskFunction,
    *,
    needs_results: bool,
) -> dict[int, JobReturn]:
    """Make the runs that were not made before. A dry run prints, and returns nothing."""
    returns = made_before(configs, sweep_dir)
    lacking = {number: config for number, config in numbered.items() if number not in returns}
    queued = [number for number in lacking if isinstance(configs[number].cluster, SlurmConfig)]
    planned = [_queued_run(number, configs[number], numbered[number], sweep_dir) for number in queued]
    if is_dry(planned):
        show_plan(planned)
        return {}
    refuse_what_slurm_would(planned)
    if lacking:
        folder = (_claim(sweep_dir) if 0 in numbered else sweep_dir).absolute()
        submit([replace(run, run_dir=folder / run.run_dir.name) for run in planned], folder, code=folder / "code")
        returns |= {number: JobReturn(working_dir=str(folder / str(number))) for number in queued}
        for number in lacking.keys() - returns.keys():
            unfinished = to_be_continued(configs[number], sweep_dir)
            returns[number] = _run_one(numbered[number], folder, number, task_function, unfinished)
    if needs_results or any(waits(config) for config in configs.values()):
        wait_for([result for result in returns.values() if result.status is JobStatus.UNKNOWN])
    return returns


def _queued_run(number: int, config: RunConfig, composed: DictConfig, folder: Path) -> QueuedRun:
    run_dir = _set_run_dir(composed, folder, number)
    if run_dir.name != str(number) or run_dir.parent != folder.absolute():
        subdir = composed.hydra.sweep.subdir
        raise ConfigError([f"hydra.sweep.subdir={subdir}: a Slurm array needs folders that are named by their number"])
    return QueuedRun(number, config, list(composed.hydra.overrides.task), run_dir)


def _conclude(returns: list[JobReturn]) -> list[JobReturn]:
    """Compare what came out, and end the process where a run failed."""
    ended = [result for result in returns if result.status is not JobStatus.UNKNOWN]
    if len(ended) == len(returns) > 1:
        show_comparison([Path(result.working_dir) for result in returns if result.working_dir])
    failed = [result for result in ended if result.status is JobStatus.FAILED]
    if failed:
        _say_which_failed(failed, len(returns))
        sys.exit(1)
    return returns


def _check_all(composed: Sequence[DictConfig], overrides: Sequence[Sequence[str]]) -> list[RunConfig]:
    placement = placement_from_environment()
    if placement is not None and len(composed) > 1:
        raise ConfigError([f"a sweep of {len(composed)} runs inside one job of torchrun or srun; start one run there"])
    refused: dict[str, list[str]] = {}
    configs = []
    for config, typed in zip(composed, overrides, strict=True):
        try:
            _keep_what_was_typed(config, typed)
            configs.append(parse(config))
            check(configs[-1], placement)
        except ConfigError as error:
            for problem in error.problems:
                refused.setdefault(problem, []).append(" ".join(typed))
    if refused:
        raise ConfigError([problem + _where(runs, len(composed)) for problem, runs in refused.items()])
    return configs


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


def _claim(sweep_dir: Path) -> Path:
    """Make the folder, or the first free one of ``<name>-2``, ``-3``, ...: two commands may start in one second."""
    sweep_dir.parent.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        folder = sweep_dir if number == 1 else sweep_dir.with_name(f"{sweep_dir.name}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise AssertionError("unreachable")


def _run_one(
    config: DictConfig, folder: Path, number: int, task_function: TaskFunction, unfinished: Path | None = None
) -> JobReturn:
    """Carry out a run in a directory of its own, or go on in that of an unfinished one."""
    run_dir = _set_run_dir(config, folder, number, unfinished)
    task = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    result = JobReturn(overrides=list(config.hydra.overrides.task), working_dir=str(run_dir))
    try:
        result.return_value = task_function(task)
        result.status = JobStatus.COMPLETED
    except RunFailed as failure:
        sys.stderr.write(f"{failure}\n")
        result.return_value = failure
        result.status = JobStatus.FAILED
    return result


def _set_run_dir(config: DictConfig, folder: Path, number: int, unfinished: Path | None = None) -> Path:
    """Complete Hydra's own part of the configuration, as its launchers do, so that ``${hydra:...}`` can be used."""
    with read_write(config), read_write(config.hydra.runtime), open_dict(config):
        config.hydra.job.num = number
        config.hydra.job.id = str(number)
        HydraConfig.instance().set_config(config)
        run_dir = unfinished or (folder / str(config.hydra.sweep.subdir)).absolute()
        config.hydra.runtime.output_dir = str(run_dir)
    HydraConfig.instance().set_config(config)
    return run_dir


def _say_which_failed(failed: Sequence[JobReturn], num_runs: int) -> None:
    if num_runs == 1:
        return
    sys.stderr.write(f"{len(failed)} of {num_runs} runs failed:\n")
    for result in failed:
        sys.stderr.write(f"  {result.working_dir}: {' '.join(result.overrides or [])}\n")
