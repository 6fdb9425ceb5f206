"""What is known of a way to average before any worker exists."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from imgnet.config import AveragingConfig, RunConfig, SgdConfig
from imgnet.parallel.averaging.method import MakeMethod
from imgnet.parallel.averaging.rhythm import FindRhythms


def none_wrong(averaging: Any, config: RunConfig) -> Iterator[str]:
    """Nothing can be said against settings that are in their ranges."""
    yield from ()


def no_average_before_an_update(averaging: Any, config: RunConfig) -> Iterator[str]:
    """What is wrong where parameters are averaged between two steps, not between a gradient and its update."""
    if isinstance(config.optimizer, SgdConfig) and config.optimizer.quasi_global:
        yield f"optimizer.quasi_global=true takes averages before updates; averaging={averaging.name} has none there"


def weights_need_not_add_up_to_1(averaging: Any, config: RunConfig) -> Iterator[str]:
    """What is wrong where a worker may take more or less than one share, as in directed rounds."""
    if isinstance(config.optimizer, SgdConfig) and config.optimizer.quasi_global:
        key = f"averaging={averaging.name}"
        yield f"optimizer.quasi_global=true needs averages whose weights add up to 1; those of {key} need not"


def starts_in_time(averaging: Any, config: RunConfig) -> Iterator[str]:
    """What is wrong with ``averaging.start_epoch``."""
    if averaging.start_epoch >= config.epochs:
        key = f"averaging={averaging.name}"
        yield f"averaging.start_epoch={averaging.start_epoch:g} leaves nothing of epochs={config.epochs} to {key}"


@dataclass(frozen=True)
class Way:
    """A way to average. ``averaging`` is what the run's configuration says, of type ``schema``."""

    names: tuple[str, ...]
    """Its options in ``conf/averaging``."""
    schema: type[AveragingConfig]
    """Of its settings; the options start from ``/hydra/schema/averaging/<name of the module>``."""
    make: Callable[[Any, RunConfig, int], MakeMethod]
    """``(averaging, config, steps per epoch)`` to what makes a worker's method."""
    problems: Callable[[Any, RunConfig], Iterator[str]] = none_wrong
    """``(averaging, config)`` to a line for each thing that is wrong beside values out of their ranges."""
    rhythms: FindRhythms | None = None
    """When averages start and are needed, and in how many parts the model; None: in one, and nobody can predict it."""
    averages_exactly: Callable[[Any], bool] = lambda averaging: False
    """Whether all workers average now and then, whatever the topology."""
    is_of_decent_dp: bool = False
    """Whether the engine ``decent_dp`` has it too."""
    is_directed: bool = False
    """Whether it is for topologies with directed rounds, and for no others."""
