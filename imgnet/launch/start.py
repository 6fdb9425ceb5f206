"""One run: its directory, its workers, its end."""

import sys
from contextlib import ExitStack
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from imgnet import rundir
from imgnet.config import ConfigError, RunConfig, SlurmConfig, parse
from imgnet.launch import owner
from imgnet.launch.causes import RunFailed
from imgnet.launch.checks import check
from imgnet.launch.layout import Layout
from imgnet.launch.local import run_workers
from imgnet.launch.repeats import identity
from imgnet.results.table import display_path, show_run
from imgnet.runtime import Placement, placement_from_environment


def launch(composed: DictConfig) -> float | None:
    """Carry out one run. Inside a job of torchrun or srun this process is a worker; elsewhere it starts them.

    Returns:
        The last validation top-1 accuracy in percent; None where there was no evaluation.

    Raises:
        ConfigError: the run was refused.
        RunFailed: it failed; the run directory says so.
    """
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


def _take_part(config: RunConfig, composed: DictConfig, run_dir: Path, placement: Placement, layout: Layout) -> None:
    """Be the worker that torchrun or srun made of this process."""
    from imgnet.launch.worker import exit_record, give_up_on, watch_signals, write_to_log
    from imgnet.parallel.collectives import agree
    from imgnet.runtime import joined
    from imgnet.train import run

    with joined(placement, layout.use_gpu, store_file=None) as runtime, ExitStack() as stack:
        claim = stack.enter_context(owner.held(run_dir)).number if runtime.is_main else 0
        if runtime.is_main:
            _create(run_dir, composed, config, layout)
        run_dir, claim = Path(agree(str(run_dir))), int(agree(str(claim)))
        write_to_log(run_dir, runtime.rank)
        stop = watch_signals(run_dir, runtime.rank, claim, ends_run=True)
        try:
            with exit_record(run_dir, runtime.rank, claim):
                run(config, runtime, run_dir, stop, give_up_on(run_dir, runtime.rank, claim))
        except Exception as error:
            if runtime.is_main:
                rundir.finish(run_dir, "failed", f"rank {runtime.rank} failed: {error}")
            raise
    if runtime.is_main:
        show_run(run_dir)
    sys.stdout.flush()
