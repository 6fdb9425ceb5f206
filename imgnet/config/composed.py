"""From what Hydra composed, or a run directory holds, to typed configurations and back."""

import json
from collections.abc import Iterator
from dataclasses import asdict, fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from imgnet.config.errors import ConfigError
from imgnet.config.groups import group_schemas, schema_of_option
from imgnet.config.renamed import rename
from imgnet.config.schemas import HYDRA, RunConfig
from imgnet.suggest import unknown_key


def register_schemas() -> None:
    """Tell Hydra the type of every key. The files in ``conf/`` start from these through their defaults lists.

    They stand under ``hydra/`` so that ``--help`` does not offer them as choices.
    """
    store = ConfigStore.instance()
    store.store(name="run_schema", node=RunConfig)
    for group, schemas in group_schemas().items():
        for name, schema in schemas.items():
            store.store(group=f"hydra/schema/{group}", name=name, node=schema)


def parse(composed: DictConfig) -> RunConfig:
    """Turn what Hydra composed into a typed :class:`RunConfig`, with every interpolation resolved.

    Raises:
        ConfigError: keys without a value, or unknown ones that a ``+`` added; all of them named.
    """
    task = _with_all_keys(composed)
    if problems := [*_unknown_keys(task), *_missing_values(task)]:
        raise ConfigError(problems)
    return RunConfig(**{name: _without_nodes(task[name]) for name in _names(RunConfig)})


def _with_all_keys(composed: DictConfig) -> DictConfig:
    """A configuration that knows its schema: what Hydra composed as it is, anything else merged into it."""
    if OmegaConf.get_type(composed) is RunConfig and set(_names(RunConfig)) <= set(composed):
        return composed
    values = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != HYDRA])
    merged = OmegaConf.merge(RunConfig, values)
    assert isinstance(merged, DictConfig)
    return merged


def _unknown_keys(task: DictConfig) -> Iterator[str]:
    """A line for each key that its schema lacks: nodes are typed, but take any key that is added with a ``+``."""
    for parent, node, schema in _typed_nodes(task):
        known = _names(schema)
        unknown = (str(key) for key in node if key not in known)
        yield from (unknown_key(parent + key, known) for key in unknown if parent or key != HYDRA)


def _missing_values(task: DictConfig) -> Iterator[str]:
    missing = [name for name in _names(RunConfig) if OmegaConf.is_missing(task, name)]
    groups = (node for parent, node, _ in _typed_nodes(task) if parent)  # Hydra's own part may lack some
    missing += [str(key) for node in groups for key in OmegaConf.missing_keys(node)]
    yield from (f"{key} has no value; set it with {key}=..." for key in sorted(missing))


def _typed_nodes(task: DictConfig) -> Iterator[tuple[str, DictConfig, type]]:
    """The root and its groups: what stands before their keys, the node, and its schema."""
    yield "", task, RunConfig
    for name, node in task.items_ex(resolve=False):
        schema = OmegaConf.get_type(node) if isinstance(node, DictConfig) else None
        if name != HYDRA and not OmegaConf.is_missing(task, name) and is_dataclass(schema):
            yield f"{name}.", node, schema


def _names(schema: type) -> list[str]:
    return [entry.name for entry in fields(schema)]


def _without_nodes(value: Any) -> Any:
    return OmegaConf.to_object(value) if OmegaConf.is_config(value) else value


def plain(config: RunConfig) -> dict[str, Any]:
    """The values of a configuration without types, as YAML and JSON hold them; :func:`parse_saved` reads them."""
    return asdict(config, dict_factory=lambda pairs: {key: _plain_value(value) for key, value in pairs})


def _plain_value(value: Any) -> Any:
    return value.name if isinstance(value, Enum) else value


def as_yaml(config: RunConfig) -> str:
    """The same as the text of a file, for :func:`read`."""
    return "".join(_section(key, json.dumps(value)) for key, value in plain(config).items())


@cache  # hundreds of runs of a sweep differ in few keys
def _section(key: str, value: str) -> str:
    return OmegaConf.to_yaml({key: json.loads(value)})


def read(path: Path) -> RunConfig:
    """The configuration that a run directory holds, typed again: YAML does not say which schema a group had.

    Raises:
        ConfigError: keys without a value.
    """
    saved = OmegaConf.load(path)
    assert isinstance(saved, DictConfig)
    return parse_saved(saved)


def parse_saved(saved: DictConfig) -> RunConfig:
    """The same from values without types, for every key of a run.

    Raises:
        ConfigError: keys without a value.
    """
    _bring_up_to_date(saved)
    for group, schemas in group_schemas().items():
        schema = schema_of_option(group, saved[group].get("name")) or _schema_of(set(saved[group]), [*schemas.values()])
        saved[group] = OmegaConf.merge(schema, saved[group])
    return parse(saved)


def _bring_up_to_date(saved: DictConfig) -> None:
    """A run that was made before there was a choice of how to average; rests between averages were the topology's."""
    rename(saved)
    every = saved["topology"].pop("every", 1)
    if every > 1:
        saved["averaging"] = {"name": "local", "every": every, "overlap": True}
    elif "averaging" not in saved:
        saved["averaging"] = {"name": "every_step"}


def _schema_of(keys: set[str], schemas: list[type]) -> type:
    """The smallest schema that knows all ``keys``; the largest where none does, which then names the unknown one."""
    by_size = sorted(schemas, key=lambda schema: len(fields(schema)))
    return next((schema for schema in by_size if keys <= set(_names(schema))), by_size[-1])
