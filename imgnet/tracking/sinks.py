"""Where the rows of a run go beside its own files."""

from pathlib import Path
from typing import Any

from imgnet import rundir
from imgnet.config import RunConfig, WandbMode
from imgnet.config.composed import plain
from imgnet.tracking.sink import Sink


def open_sinks(config: RunConfig, run_dir: Path, done_steps: int) -> list[Sink]:
    """Those that a run asks for.

    Args:
        config: the run.
        run_dir: its directory, which holds their files too.
        done_steps: optimizer steps that earlier processes made, and that are not made again.

    Raises:
        ModuleNotFoundError: the package of one is not installed.
    """
    sinks: list[Sink] = []
    about = _about(config, run_dir)
    if config.tracking.wandb is not WandbMode.disabled:
        from imgnet.tracking.wandb_run import WandbRun

        sinks.append(WandbRun(config.tracking, about, run_dir, config.name))
    if config.tracking.tensorboard:
        from imgnet.tracking.tensorboard_events import TensorBoardEvents

        sinks.append(TensorBoardEvents(run_dir, about, done_steps))
    return sinks


def _about(config: RunConfig, run_dir: Path) -> dict[str, Any]:
    """The composed configuration, and with which code and machines it runs."""
    run = rundir.read_json(run_dir / "run.json")
    known = ("commit", "dirty", "versions", "world_size", "overrides")
    return plain(config) | {"run": {key: run.get(key) for key in known} | {"directory": str(run_dir)}}
