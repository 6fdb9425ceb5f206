"""Every value of every schema that is out of its range is refused in one line. The cases follow from the schemas."""

import copy
from collections.abc import Iterator
from dataclasses import is_dataclass, replace
from enum import Enum
from functools import cache
from math import inf, nan, nextafter
from typing import Any, get_args

import pytest
from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from imgnet.config import AveragingConfig, ConfigError, ModelConfig, RunConfig, parse
from imgnet.config.explain import explain
from imgnet.config.ranges import Declared, declared, taken_apart, wrong_values
from imgnet.config.settings import schemas
from imgnet.launch.checks import check
from imgnet.parallel.averaging.methods.push_sum import PushSumConfig
from tests.composing import compose_plain

pytestmark = pytest.mark.usefixtures("unmeasured")
EVERY_SCHEMA = [(group, schema) for group, of_group in schemas().items() for schema in of_group]
ON_THIS_MACHINE = ["data=synthetic", "cluster.accelerator=cpu", "precision=fp32"]
SWITCHED = "topology.schedule=[{after_epochs: 5, topology: complete}]"
EXAMPLES = {
    "AllReduceConfig": ["topology=allreduce"],
    "DecentralizedConfig": ["topology=exp", SWITCHED],
    "WeightedConfig": ["topology=ring", SWITCHED],
    "StaticRingConfig": ["topology=static-ring", SWITCHED],
    "BaseGraphConfig": ["topology=base-graph", SWITCHED],
    "EquiStaticConfig": ["topology=equi-static", SWITCHED],
    "EquiDynConfig": ["topology=equi-dyn", SWITCHED],
    "RandomConfig": ["topology=random", SWITCHED],
    "LatticeConfig": ["topology=grid", SWITCHED],
    "CustomConfig": ["topology=custom", "topology.rounds=[[{ranks: [0, 1, 2, 3], weight: 0.5}], [[0, 1, 0.5]]]"],
    "AdaptiveConfig": ["topology=ring", "averaging=adaptive"],
    "LocalStepsConfig": ["topology=ring", "averaging=local"],
    "OuterConfig": ["topology=ring", "averaging=outer"],
    "PushSumConfig": ["topology=directed-ring", "averaging=push_sum"],
    "StreamingConfig": ["topology=ring", "averaging=streaming_diloco"],
    "SgdConfig": ["optimizer=sgd"],
    "AdamConfig": ["optimizer=adam"],
    "AccumAdamConfig": ["optimizer=accum_adam"],
    "SimulatedConfig": ["cluster=simulated"],
    "SlurmConfig": ["data=synthetic", "cluster=4xA40"],
}
"""What a run has the schema with; any run has the others."""


@cache
def _composed(words: tuple[str, ...]) -> DictConfig:
    return compose_plain(*words)


def example(schema: type) -> DictConfig:
    """An accepted run that has the keys of a schema."""
    words = EXAMPLES.get(schema.__name__, [])
    return copy.deepcopy(_composed((*([] if "cluster=4xA40" in words else ON_THIS_MACHINE), *words)))


def refused(config: DictConfig, key: str, value: Any) -> list[str]:
    """The lines that a run gets in which one value is another; as for a command, but in this process."""
    changed = copy.deepcopy(config)
    try:
        OmegaConf.update(changed, key, value)
        check(parse(changed))
    except ConfigError as error:
        return error.problems
    except OmegaConfBaseException as error:
        return [explain(error)]
    return []


def wrong_of_schema(schema: Any, group: str, values: Any) -> Iterator[tuple[str, Any]]:
    """A key and a wrong value for it: each kind that its declaration has."""
    for name, kind in declared(schema).items():
        if name not in schemas():  # a group of a run has its own examples
            yield from wrong_of(kind, f"{group}.{name}" if group else name, values[name])


def wrong_of(kind: Declared, key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if is_dataclass(kind.plain):
        yield from wrong_of_schema(kind.plain, key, value)
    elif kind.plain in (int, float):
        yield from ((key, wrong) for wrong in numbers_outside(kind))
    elif isinstance(kind.plain, type) and issubclass(kind.plain, Enum):
        yield key, "nonsense"
    elif getattr(kind.plain, "__origin__", None) is list:
        yield from _wrong_lists(kind, key, list(value))


def _wrong_lists(kind: Declared, key: str, value: list[Any]) -> Iterator[tuple[str, Any]]:
    if any(isinstance(limit, MinLen) for limit in kind.limits):
        yield key, value[:-1]
    if any(isinstance(limit, MaxLen) for limit in kind.limits):
        yield key, [*value, value[-1]]
    element = taken_apart(get_args(kind.plain)[0])
    for place, one in enumerate(value):
        yield from wrong_of(element, f"{key}[{place}]", one)


def numbers_outside(kind: Declared) -> Iterator[float]:
    """What is not finite, and the nearest number beyond each bound."""
    if kind.plain is float:
        yield from (nan, inf, -inf)
    for limit in kind.limits:
        match limit:
            case Gt(gt=bound) | Lt(lt=bound):
                yield bound
            case Ge(ge=bound):
                yield _next(kind, bound, -inf)
            case Le(le=bound):
                yield _next(kind, bound, inf)


def numbers_inside(kind: Declared) -> Iterator[float]:
    """The last number within each bound."""
    for limit in kind.limits:
        match limit:
            case Ge(ge=bound) | Le(le=bound):
                yield bound
            case Gt(gt=bound):
                yield _next(kind, bound, inf)
            case Lt(lt=bound):
                yield _next(kind, bound, -inf)


def _next(kind: Declared, number: Any, towards: float) -> float:
    return nextafter(number, towards) if kind.plain is float else number + (1 if towards > 0 else -1)


@pytest.mark.parametrize(("group", "schema"), EVERY_SCHEMA, ids=lambda value: getattr(value, "__name__", value))
def test_every_wrong_value_is_refused_in_one_line_that_names_its_key(group: str, schema: type) -> None:
    config = example(schema)
    check(parse(config))
    cases = list(wrong_of_schema(schema, group, config[group] if group else config))
    answers = [(key, wrong, refused(config, key, wrong)) for key, wrong in cases]
    assert [answer for answer in answers if not is_clear(*answer)] == []
    assert cases or schema in (ModelConfig, AveragingConfig, PushSumConfig), "which have names and switches only"


def is_clear(key: str, wrong: Any, lines: list[str]) -> bool:
    """One line that begins with what was typed, and says what would be right."""
    typed = f"{key}=[" if isinstance(wrong, list) else f"{key}={wrong}"
    return len(lines) == 1 and lines[0].startswith(typed) and ("must be" in lines[0] or "no such choice" in lines[0])


def leaves(kind: Declared) -> Iterator[Declared]:
    """A type, and those of its elements or fields."""
    yield kind
    parts = declared(kind.plain).values() if is_dataclass(kind.plain) else map(taken_apart, get_args(kind.plain))
    for part in parts:
        yield from leaves(part)


@pytest.mark.parametrize("schema", [schema for _, schema in EVERY_SCHEMA])
def test_every_number_has_a_range(schema: type) -> None:
    without = [
        key
        for key, kind in declared(schema).items()
        for leaf in leaves(kind)
        if leaf.plain in (int, float) and not leaf.limits
    ]
    assert without == [], "declare it beside the field, as Annotated[int, Interval(ge=..., le=...)]"


@pytest.mark.parametrize(("group", "schema"), EVERY_SCHEMA, ids=lambda value: getattr(value, "__name__", value))
def test_bounds_themselves_are_in_the_range(group: str, schema: type) -> None:
    config = parse(example(schema))
    part = getattr(config, group) if group else config
    for key, kind in declared(schema).items():
        for number in numbers_inside(kind) if kind.plain in (int, float) else ():
            assert wrong_values(replace(part, **{key: number})) == {}


def test_numbers_anywhere_in_values_of_any_kind_are_finite() -> None:
    config = example(next(schema for _, schema in EVERY_SCHEMA if schema.__name__ == "CustomConfig"))
    places = {"topology.rounds[0][0].weight": nan, "topology.rounds[1][0][2]": inf}
    for key, value in places.items():
        assert f"{key}={value} must be finite" in refused(config, key, value)


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("optimizer.lr", nan, "optimizer.lr=nan must be finite and above 0"),
        ("optimizer.lr", -1, "optimizer.lr=-1.0 must be above 0"),
        ("max_grad_norm", inf, "max_grad_norm=inf must be finite and above 0, or null"),
        ("label_smoothing", 1.5, "label_smoothing=1.5 must be below 1"),
        ("data.std", [0.5, 0.5, 0.0], "data.std[2]=0.0 must be at least 0.001"),
        ("data.mean", [123.7, 0.5, 0.5], "data.mean[0]=123.7 must be at most 1"),
        ("data.mean", [0.5], "data.mean=[0.5] must be a list of 3; it has 1"),
        ("epochs", 0, "epochs=0 must be at least 1"),
        ("data.num_workers", 10**6, "data.num_workers=1000000 must be at most 1024, or null"),
        ("precision", "fp8", "precision=fp8: no such choice; known: bf16, fp16, fp32"),
    ],
)
def test_the_line_says_what_would_be_right(key: str, value: Any, line: str) -> None:
    assert refused(example(RunConfig), key, value) == [line]


def test_a_wrong_value_hides_no_other_problem() -> None:
    config = example(RunConfig)
    OmegaConf.update(config, "epochs", 0)
    OmegaConf.update(config, "global_batch_size", 63)
    assert refused(config, "optimizer.lr", nan) == [
        "epochs=0 must be at least 1",
        "optimizer.lr=nan must be finite and above 0",
        "global_batch_size=63 is not divisible by 4 workers (cluster=local)",
    ]
