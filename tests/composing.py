"""Runs as Hydra composes them from ``conf/``, in this process."""

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, open_dict

from imgnet.config import RunConfig, parse, register_schemas
from tests.commands import ROOT
from tests.unmeasured import unmeasured


def compose_whole(*overrides: str) -> DictConfig:
    """With Hydra's own part."""
    with unmeasured():
        register_schemas()
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            return compose("config", overrides=list(overrides))


def compose_plain(*overrides: str) -> DictConfig:
    """Without it."""
    config = compose_whole(*overrides)
    with open_dict(config):
        config.pop("hydra", None)
    return config


def composed(*overrides: str) -> RunConfig:
    """The same, typed."""
    return parse(compose_plain(*overrides))
