"""The runs that a command describes, composed from ``conf/`` as ``run.py`` would, without starting any."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from itertools import product
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

import imgnet
from imgnet.config import AveragingConfig, ClusterConfig, ConfigError, RunConfig, parse, register_schemas
from imgnet.config.explain import explain
from imgnet.parallel.averaging.registry import WAYS
from imgnet.parallel.averaging.rhythm import Rhythm
from imgnet.suggest import nearest

CONF = Path(imgnet.__file__).parents[1] / "conf"


def composed_runs(overrides: Sequence[str]) -> list[RunConfig]:
    """One for each combination of the values: ``topology=ring,exp cluster=8xA40`` are two runs.

    Raises:
        ConfigError: an override that cannot be read, or a key or choice that does not exist, in one line.
    """
    register_schemas()
    try:
        with _hydra():
            return [_composed(words) for words in _expanded(overrides)]
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError([explain(error)]) from None


@cache  # each is a composition
def rhythms_as_published(*, is_directed: bool) -> Mapping[str, Rhythm]:
    """When each way to average does so by the settings of its option in ``conf/averaging``, after any start.

    Args:
        is_directed: ways for topologies with directed rounds; else those for all others.
    """
    found = {}
    for name, way in sorted(WAYS.items(), key=lambda named: named[0] != AveragingConfig.name):
        if way.rhythms is not None and way.is_directed == is_directed:
            (config,) = composed_runs([f"averaging={name}"])
            *_, (_, found[name]) = way.rhythms(config.averaging, config, lambda: 1)
    return found


@cache  # for each run of a sweep the same
def described_cluster(name: str) -> ClusterConfig:
    """A cluster of ``conf/cluster``.

    Raises:
        ConfigError: there is none of that name whose workers are machines of their own.
    """
    with _hydra():
        known = GlobalHydra.instance().config_loader().get_group_options("cluster")
    known = [option for option in known if option not in ("local", "simulated")]
    if name not in known:
        raise ConfigError([f"there is no such cluster; {nearest(name, known)}"])
    return composed_runs([f"cluster={name}"])[0].cluster


def _hydra() -> AbstractContextManager[object]:
    """Hydra's own of ``run.py`` where this is a part of it, with the folders that its command adds; else a new one."""
    if GlobalHydra.instance().is_initialized():
        return nullcontext()
    return initialize_config_dir(str(CONF), version_base="1.3")


def _expanded(overrides: Sequence[str]) -> list[tuple[str, ...]]:
    parser = OverridesParser.create()
    choices = []
    for line in overrides:
        (override,) = parser.parse_overrides([line])
        key = line.partition("=")[0]
        is_sweep = override.is_discrete_sweep()
        choices.append([f"{key}={value}" for value in override.sweep_string_iterator()] if is_sweep else [line])
    return list(product(*choices))


def _composed(words: tuple[str, ...]) -> RunConfig:
    return parse(compose("config", list(words)))
