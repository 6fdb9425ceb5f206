"""A sweeper and a launcher that write nothing before every run of the command was accepted."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import BaseSubmititLauncher
from omegaconf import DictConfig

from imgnet.config import ConfigError
from imgnet.launch.commandline import names_nothing, runs_of, typed_overrides
from imgnet.launch.composition import Composer
from imgnet.launch.slurm.watcher import queue_watched
from imgnet.launch.sweep import read_returns, refuse_what_others_cannot, run_sweep, typed_runs


@dataclass
class LauncherConfig:
    """The launcher's place in Hydra's configuration; what it does is set by ``cluster``."""

    _target_: str = "hydra_plugins.imgnet_hydra.plugins.ImgnetLauncher"


@dataclass
class SweeperConfig:
    """The sweeper's place in Hydra's configuration."""

    _target_: str = "hydra_plugins.imgnet_hydra.plugins.ImgnetSweeper"


ConfigStore.instance().store(group="hydra/launcher", name="imgnet", node=LauncherConfig, provider="imgnet")
ConfigStore.instance().store(group="hydra/sweeper", name="imgnet", node=SweeperConfig, provider="imgnet")


class ImgnetLauncher(BaseSubmititLauncher):
    """The plugin's launcher, with the resources of each run from its own ``cluster`` in place of one set for all.

    What it does with the runs is :func:`imgnet.launch.sweep.run_sweep`'s.
    """

    _EXECUTOR = "slurm"

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra offers until the runs are known.

        Raises:
            ConfigError: a parameter was given to the launcher.
        """
        if self.params:
            raise ConfigError([f"hydra.launcher.{name}: cluster.{name} says it" for name in self.params])
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self._composer = Composer(hydra_context.config_loader, config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Compose, check and carry out the runs."""
        assert self.config is not None
        assert self.task_function is not None
        return run_sweep(
            typed_runs(job_overrides, self._composer, first=initial_job_idx),
            Path(self.config.hydra.sweep.dir),
            self.task_function,
            needs_results=self.config.hydra.sweeper._target_ != SweeperConfig._target_,
        )


class ImgnetSweeper(BasicSweeper):
    """The product of the values on the command line. Hydra's own would write a folder before the first check."""

    def __init__(self) -> None:
        super().__init__(max_batch_size=None)

    def sweep(self, arguments: list[str]) -> Any:
        """Give all runs to the launcher at once, so that they are accepted or refused together."""
        assert self.hydra_context is not None
        assert self.launcher is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides(typed_overrides() or arguments)
        if empty := [override.input_line for override in overrides if names_nothing(override)]:
            raise ConfigError([f"{line}: names nothing, so there is no run to make" for line in empty])
        runs = runs_of(overrides)
        if isinstance(self.launcher, ImgnetLauncher):
            return self.launcher.launch(runs, initial_job_idx=0)
        return self._through_another(self.launcher, runs)

    def _through_another(self, launcher: Launcher, runs: Sequence[Sequence[str]]) -> Sequence[JobReturn]:
        assert self.hydra_context is not None
        assert self.config is not None
        composer = Composer(self.hydra_context.config_loader, self.config)
        hydra = self.config.hydra
        refuse_what_others_cannot(typed_runs(runs, composer), hydra.runtime.choices["hydra/launcher"], hydra.launcher)
        with queue_watched():
            returns = launcher.launch(runs, initial_job_idx=0)
        read_returns(returns)
        return returns
