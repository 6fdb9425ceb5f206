"""Where the rows of a run go beside its own files: one interface for every service."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from imgnet import rundir
from imgnet.config import RunConfig, WandbMode
from imgnet.config.composed import plain


class Kind(Enum):
    """What a row tells of. The value stands before the names of its numbers."""

    epoch = ""
    step = "step/"
    system = "system/"


class Sink(ABC):
    """Takes the rows of a run. Used on rank 0 alone, by one thread."""

    @abstractmethod
    def log(self, kind: Kind, row: Mapping[str, float], step: int) -> None:
        """Take a row. Waits for no network.

        Args:
            kind: what it tells of.
            row: numbers by their names.
            step: optimizer steps made; does not fall from one row to the next.
        """

    @abstractmethod
    def close(self, *, failed: bool) -> None:
        """Hand over what is left."""


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
