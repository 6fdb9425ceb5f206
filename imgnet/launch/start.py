"""One run: its directory, its workers, its end."""

import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from imgnet import rundir
from imgnet.config import ConfigError, RunConfig, SimulatedConfig, SlurmConfig, parse, read
from imgnet.config.settings import differing, every_setting
from imgnet.launch import owner
from imgnet.launch.causes import RunFailed, cause_known_to
from imgnet.launch.checks import check
from imgnet.launch.repeats import identity
from imgnet.launch.slurm.deputy import Deputy
from imgnet.launch.slurm.snapshot import PACKAGE
from imgnet.launch.workers.cores import keep_to_share
from imgnet.launch.workers.local import run_workers
from imgnet.layout import Layout, layout_of
from imgnet.results.names import display_path
from imgnet.results.table import show_run
from imgnet.runtime import (
    Placement,
    Submitted,
    available_cores,
    placement_from_environment,
    prefer_loopback,
    running_under_slurm,
    share_threads,
    slurm_job,
    submitted,
)


def launch(composed: DictConfig) -> float | None:
    """Carry out one run. Inside a job (torchrun, srun, ours) this process is a worker; elsewhere it starts them.

    Returns:
        The last validation top-1 accuracy in percent; None where there was no evaluation.

    Raises:
        ConfigError: the run was refused.
        RunFailed: it failed; the run directory says so.
    """
    if (job := submitted()) is not None:
        _work_for(job, composed)
        return None
    config = parse(composed)
    placement = placement_from_environment()
    layout = check(config, placement)
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    if placement is not None:
        _take_part(config, composed, run_dir, placement, layout)
        return None
    if isinstance(config.cluster, SlurmConfig):
        raise ConfigError([no_other_launcher(config.cluster.name, "hydra.mode=RUN, or another hydra/launcher,")])
    with owner.held(run_dir) as claim:
        _create(run_dir, composed, config, layout)
        _run_here(config, run_dir, layout, claim.number)
    show_run(run_dir)
    return rundir.read_json(run_dir / "summary.json").get("val_acc1")


def no_other_launcher(cluster: str, typed: str) -> str:
    """The line for a run that would end before it has begun, since nobody submits it."""
    return f"cluster={cluster}: {typed} submits nothing to Slurm; leave it out, or choose cluster=local"


def _create(run_dir: Path, composed: DictConfig, config: RunConfig, layout: Layout) -> None:
    _make(run_dir, composed, config, layout)
    job = slurm_job() if running_under_slurm() else None
    rundir.write_run(run_dir, inside=None if job is None else {"job": job.name, "cluster": job.cluster})
    if isinstance(config.cluster, SimulatedConfig) and config.cluster.like is not None:
        from imgnet.plan.forecast import predicted_like

        rundir.write_atomically(run_dir / rundir.PREDICTION, json.dumps(predicted_like(config, config.cluster)) + "\n")


def _make(run_dir: Path, composed: DictConfig, config: RunConfig, layout: Layout) -> None:
    if (run_dir / "run.json").is_file():
        rundir.reopen(run_dir)
        return
    hydra = HydraConfig.get()
    rundir.create(
        run_dir,
        OmegaConf.to_yaml(composed),
        hydra=OmegaConf.to_yaml(OmegaConf.structured(hydra)),
        overrides=list(hydra.overrides.task),
        seed=config.seed,
        epochs=config.epochs,
        world_size=layout.world_size,
        identity=identity(config),
    )


def _run_here(config: RunConfig, run_dir: Path, layout: Layout, claim: int) -> None:
    try:
        run_workers(config, run_dir, layout.processes, claim)
    except RunFailed as failure:
        rundir.finish(run_dir, "failed", failure.summary)
        raise
    except KeyboardInterrupt:
        rundir.finish(run_dir, "failed", "interrupted")
        raise
    if rundir.read_json(run_dir / "run.json")["status"] == "preempted":
        raise KeyboardInterrupt(f"saved in {display_path(run_dir)}; the same command goes on from there")


def _work_for(job: Submitted, composed: DictConfig) -> None:
    """Be one worker of a job that this package submitted. What was accepted then is what is carried out now."""
    placement = placement_from_environment()
    assert placement is not None, "srun states a rank"
    deputy = Deputy(job.run_dir, job.claim) if placement.rank == 0 else None
    config = read(job.run_dir / ".hydra" / "config.yaml")
    layout = layout_of(config.cluster, placement)
    if placement.world_size != layout.world_size or placement.local_world_size != layout.workers_per_node:
        raise ConfigError(
            [
                f"srun started {placement}, and {layout} was submitted; "
                "see cluster.additional_parameters and cluster.srun_args"
            ]
        )
    if placement.rank == 0:
        _say_what_has_changed(config, composed)
    if layout.num_nodes == 1:
        prefer_loopback()
    submission = rundir.read_json(job.run_dir / rundir.SUBMISSION)
    keep_to_share(job.run_dir.name, submission.get("together", [job.run_dir.name]))
    share_threads(max(1, available_cores() // layout.workers_per_node))
    from imgnet.launch.workers.worker import work

    package = Path(submission["code"]) / PACKAGE.name
    work(config, job.run_dir, job.claim, job.store_file, layout.use_gpu, package)
    if deputy is not None:
        deputy.speak()
    sys.stdout.flush()
    os._exit(0)  # Slurm leaves a job that it ends few seconds, of which an orderly exit would take some


def _say_what_has_changed(accepted: RunConfig, composed: DictConfig) -> None:
    """Name what the overrides would mean here, after ``conf/`` or the environment changed: the run keeps its own."""
    try:
        changed = differing(every_setting(accepted), every_setting(parse(composed)))
    except (ConfigError, OmegaConfBaseException) as error:
        changed = {"": (None, error)}
    for key, (kept, here) in changed.items():
        sys.stderr.write(f"{key}={kept}, as it was submitted; composed here it would be {here}\n")


def _take_part(config: RunConfig, composed: DictConfig, run_dir: Path, placement: Placement, layout: Layout) -> None:
    """Be the worker that torchrun or srun made of this process."""
    from imgnet.launch.workers.worker import exit_record, give_up_on, hang_watch, watch_signals, write_to_log
    from imgnet.parallel.collectives import agree, shared_store
    from imgnet.runtime import joined
    from imgnet.train import run

    with joined(placement, layout.use_gpu, store_file=None) as runtime, ExitStack() as stack:
        claim = stack.enter_context(owner.held(run_dir)).number if runtime.is_main else 0
        if runtime.is_main:
            _create(run_dir, composed, config, layout)
        run_dir, claim = Path(agree(str(run_dir))), int(agree(str(claim)))
        write_to_log(run_dir, runtime.rank)
        stop = watch_signals(run_dir, runtime.rank, claim, in_slurm=False)
        watch = hang_watch(config, placement, give_up_on(run_dir, runtime.rank, claim))
        watch.meet(shared_store)
        try:
            with exit_record(run_dir, runtime.rank, claim):
                run(config, runtime, run_dir, stop, watch)
        except Exception as error:
            if not runtime.is_main:
                raise
            cause = cause_known_to(run_dir, error, layout.world_size)
            rundir.finish(run_dir, "failed", cause.summary)
            raise cause from error
    if runtime.is_main:
        show_run(run_dir)
    sys.stdout.flush()
