"""Every way to average, found in its folder."""

from importlib import import_module
from pkgutil import iter_modules

from imgnet.config import AveragingConfig, RunConfig
from imgnet.parallel.averaging import methods
from imgnet.parallel.averaging.way import Way

BY_MODULE: dict[str, Way] = {
    module.name: import_module(f"{methods.__name__}.{module.name}").WAY for module in iter_modules(methods.__path__)
}
SCHEMAS: dict[str, type[AveragingConfig]] = {name: way.schema for name, way in BY_MODULE.items()}
"""What the options in ``conf/averaging`` start from."""
WAYS: dict[str, Way] = {name: way for way in BY_MODULE.values() for name in way.names}
"""By option."""
OPTIONS: dict[str, type[AveragingConfig]] = {name: way.schema for name, way in WAYS.items()}
"""The schema of each option's settings."""


def way_of(averaging: AveragingConfig) -> Way:
    """The way that a configuration chose; its name has been checked."""
    return WAYS[averaging.name]


def num_fragments(config: RunConfig, steps_per_epoch: int) -> int:
    """The parts of the model that take turns."""
    find = way_of(config.averaging).rhythms
    if find is None:
        return 1
    _, rhythm = next(find(config.averaging, config, lambda: steps_per_epoch))
    return rhythm.fragments.number
