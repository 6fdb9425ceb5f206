"""What the values of a schema may be, and which are not: every number has its range beside its field.

A range is a part of the type, in the words of ``annotated_types``: ``lr: Annotated[float, Gt(0)]``. Elements of lists
have theirs, lists their lengths, and ``| None`` allows null besides. That numbers are finite goes without saying.
"""

from collections.abc import Iterator
from dataclasses import astuple, fields, is_dataclass
from functools import cache
from itertools import islice
from math import isfinite
from operator import ge, gt, le, lt
from types import NoneType, UnionType
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin, get_type_hints

from annotated_types import BaseMetadata, Ge, GroupedMetadata, Gt, Le, Lt, MaxLen, MinLen

_BOUNDS = {Gt: (gt, "above"), Ge: (ge, "at least"), Lt: (lt, "below"), Le: (le, "at most")}


class Declared(NamedTuple):
    """A field's type, taken apart."""

    plain: Any
    """Without its range, and without ``| None``."""
    limits: list[BaseMetadata]
    """Single bounds and lengths."""
    may_be_null: bool


@cache
def declared(schema: type) -> dict[str, Declared]:
    """The fields of a schema, in their order."""
    hints = get_type_hints(schema, include_extras=True)
    return {entry.name: taken_apart(hints[entry.name]) for entry in fields(schema)}


def taken_apart(hint: Any) -> Declared:
    """A type as it is written: ``Annotated[float, Gt(0)] | None``."""
    if get_origin(hint) in (Union, UnionType):
        (kind,) = (part for part in get_args(hint) if part is not NoneType)
        return taken_apart(kind)._replace(may_be_null=True)
    if get_origin(hint) is not Annotated:
        return Declared(hint, [], may_be_null=False)
    plain, *written = get_args(hint)
    single = [limit for part in written for limit in (part if isinstance(part, GroupedMetadata) else [part])]
    return Declared(plain, [limit for limit in single if isinstance(limit, BaseMetadata)], may_be_null=False)


def wrong_values(config: Any, parent: str = "") -> dict[str, str]:
    """The values that are not in their ranges: for the key of each a line that names it, and what would be right.

    Of a list that is its length, or its first wrong element.

    Args:
        config: a configuration, or a part of it: a dataclass whose values have the types of its fields.
        parent: the key of that part.
    """
    found: dict[str, str] = {}
    for name, kind in declared(type(config)).items():
        found |= _wrong(f"{parent}.{name}" if parent else name, getattr(config, name), kind)
    return found


def _wrong(key: str, value: Any, kind: Declared) -> dict[str, str]:
    if is_dataclass(value):
        return wrong_values(value, key)
    if isinstance(value, list):
        elements = _wrong_elements([(f"{key}[{place}]", element) for place, element in enumerate(value)], kind)
        return _wrong_length(key, value, kind.limits) or dict(islice(elements.items(), 1))
    if isinstance(value, dict):
        return _wrong_elements([(f"{key}.{name}", element) for name, element in value.items()], kind)
    if isinstance(value, int | float) and not isinstance(value, bool):
        right = " and ".join(_right_instead(value, kind.limits))
        return {key: f"{key}={value} must be {right}{', or null' * kind.may_be_null}"} if right else {}
    return {}


def _wrong_elements(elements: list[tuple[str, Any]], kind: Declared) -> dict[str, str]:
    of_elements = taken_apart(get_args(kind.plain)[-1]) if get_args(kind.plain) else kind._replace(limits=[])
    found: dict[str, str] = {}
    for key, element in elements:
        found |= _wrong(key, element, of_elements)
    return found


def _wrong_length(key: str, values: list[Any], limits: list[BaseMetadata]) -> dict[str, str]:
    least = max((limit.min_length for limit in limits if isinstance(limit, MinLen)), default=0)
    most = min((limit.max_length for limit in limits if isinstance(limit, MaxLen)), default=len(values))
    if least <= len(values) <= most:
        return {}
    wanted = f"{least}" if least == most else f"{least} or more" if len(values) < least else f"{most} or fewer"
    return {key: f"{key}={shown(values)} must be a list of {wanted}; it has {len(values)}"}


def _right_instead(value: float, limits: list[BaseMetadata]) -> Iterator[str]:
    """The bounds that a number breaks, in words. One that is not finite breaks all of them."""
    is_finite = isinstance(value, int) or isfinite(value)
    if not is_finite:
        yield "finite"
    for limit in limits:
        holds, word = _BOUNDS[type(limit)]
        (bound,) = astuple(limit)  # type: ignore[call-overload]
        if not (is_finite and holds(value, bound)):
            yield f"{word} {bound}"


def shown(values: list[Any]) -> str:
    """A list as it is typed."""
    return "[" + ",".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values) + "]"
