"""Which settings count: every key of every schema, unless it is named among those that do not."""

from dataclasses import is_dataclass, replace
from enum import Enum
from typing import Any, get_args, get_origin

import pytest

from imgnet.config import RunConfig, SwitchConfig, parse
from imgnet.config.ranges import Declared, declared
from imgnet.config.settings import (
    MAY_CHANGE_ON_THE_WAY,
    NOT_IN_THE_RESULT,
    defaults,
    differing,
    of_the_result,
    of_the_training,
    schemas,
)
from imgnet.launch.repeats import identity
from tests.test_config_ranges import EVERY_SCHEMA, example

pytestmark = pytest.mark.usefixtures("unmeasured")
KEYS = {f"{group}.{key}" if group else key for group, schema in EVERY_SCHEMA for key in declared(schema)}


def another(kind: Declared, value: Any) -> Any:
    """A value of the same type that is not ``value``."""
    if isinstance(kind.plain, type) and issubclass(kind.plain, Enum):
        return next(choice for choice in kind.plain if choice is not value)
    if kind.plain is bool:
        return not value
    if kind.plain in (int, float):
        return (value or 0) + 1
    if kind.plain is str:
        return f"{value}x"
    if get_origin(kind.plain) is dict:
        return {"other": "1"}
    if is_dataclass(kind.plain):
        name, inner = next(iter(declared(kind.plain).items()))
        return replace(value, **{name: another(inner, getattr(value, name))})
    one_more = {str: "x", SwitchConfig: SwitchConfig(7, "complete")}
    return [*value, one_more.get(get_args(kind.plain)[0]) or value[0]]


def changed(config: RunConfig, key: str, value: Any) -> RunConfig:
    group, _, name = key.rpartition(".")
    return replace(config, **({group: replace(getattr(config, group), **{name: value})} if group else {name: value}))


@pytest.mark.parametrize(("group", "schema"), EVERY_SCHEMA, ids=lambda value: getattr(value, "__name__", value))
def test_every_key_counts_but_those_that_are_named(group: str, schema: type) -> None:
    config = parse(example(schema))
    part = getattr(config, group) if group else config
    for name, kind in declared(schema).items():
        if name not in schemas():
            key = f"{group}.{name}" if group else name
            other = changed(config, key, another(kind, getattr(part, name)))
            differences = list(differing(of_the_training(config), of_the_training(other)))
            assert differences == ([key] if {key, group}.isdisjoint(MAY_CHANGE_ON_THE_WAY) else []), key
            assert (identity(other) != identity(config)) is {key, group}.isdisjoint(NOT_IN_THE_RESULT), key


def test_what_is_named_exists() -> None:
    assert set(MAY_CHANGE_ON_THE_WAY) <= KEYS | set(schemas())
    assert len(set(MAY_CHANGE_ON_THE_WAY)) == len(MAY_CHANGE_ON_THE_WAY)


def test_where_a_run_goes_on_from_counts_unless_it_is_its_own_place() -> None:
    config = parse(example(RunConfig))
    auto, none, path = (identity(replace(config, resume=where)) for where in ("auto", "none", "elsewhere"))
    assert auto == none != path


def test_a_key_that_is_lacking_stands_for_its_default() -> None:
    """A checkpoint of an earlier version, and one of a cluster whose schema has other keys."""
    settings = of_the_training(parse(example(RunConfig)))
    assert defaults()["data.flip_probability"] == 0.5
    assert "optimizer.lr" not in defaults()
    without = {key: value for key, value in settings.items() if key not in ("data.flip_probability", "optimizer.lr")}
    assert differing(without, settings) == {"optimizer.lr": (None, settings["optimizer.lr"])}
    assert differing(settings, without | {"data.flip_probability": 0.25, "optimizer.lr": 1.0}) == {
        "data.flip_probability": (0.5, 0.25)
    }
    assert set(of_the_result(parse(example(RunConfig)))) > set(settings) - {"resume"}
