"""Runs taken together that differ in nothing but their seed."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property

from omegaconf import OmegaConf

from imgnet.config import RunConfig, group_schemas
from imgnet.config.settings import NOT_IN_THE_RESULT, is_among
from imgnet.results.files import flat
from imgnet.results.read import Run
from imgnet.suggest import nearest

IGNORED = ("seed", *NOT_IN_THE_RESULT)
"""Settings, or groups of them, that put no run into another group."""
NOT_SET = "-"


@dataclass(frozen=True, eq=False)
class Group:
    """Runs of one configuration.

    Attributes:
        labels: the settings in which this group differs from the others beside it, for a reader; may be empty.
        runs: one for each seed, by seed. A completed one where there is one, of several the newest.
        repeats: further runs of the same seeds: no further evidence, for they have the same sample order.
    """

    labels: dict[str, str]
    runs: list[Run]
    repeats: list[Run]

    @property
    def name(self) -> str:
        """Such as ``topology=ring optimizer=adam``; ``all`` where nothing varies."""
        return " ".join(f"{key}={value}" for key, value in self.labels.items()) or "all"

    @property
    def short_name(self) -> str:
        """The values alone, for where the settings are named beside: ``ring, adam``."""
        return ", ".join(self.labels.values()) or "all"

    @cached_property
    def completed(self) -> list[Run]:
        """The runs whose numbers count."""
        return [run for run in self.runs if run.is_completed]

    @cached_property
    def missing(self) -> list[Run]:
        """Those that failed or are not at their end."""
        return [run for run in self.runs if not run.is_completed]


def name_of_run(group: Group, run: Run) -> str:
    """Such as ``topology=ring seed=3``."""
    words = [*(f"{key}={value}" for key, value in group.labels.items()), f"seed={run.seed}"]
    return " ".join(words if "seed" not in group.labels else words[:-1])


def group_runs(runs: Iterable[Run], *, each: bool = False) -> list[Group]:
    """Groups in the order in which their first runs come.

    Args:
        runs: of any number of sweeps.
        each: every run by itself; its seed is one of the settings then.
    """
    by_settings: dict[frozenset[tuple[str, str]], list[Run]] = {}
    for run in runs:
        settings = frozenset(_telling(run).items())
        by_settings.setdefault(settings | {("path", str(run.path))} if each else settings, []).append(run)
    groups = [_group(alike) for alike in by_settings.values()]
    labels = _labels([group.runs[0] for group in groups], each=each)
    return [replace(group, labels=of_group) for group, of_group in zip(groups, labels, strict=True)]


def _telling(run: Run) -> dict[str, str]:
    """What all runs of a group share: the settings that count and are not a default.

    A run of an older version lacks the keys that came later, and means their defaults. One whose configuration cannot
    be read has its overrides instead.
    """
    settings = run.settings if len(run.settings) > 1 else run.overrides
    return {key: value for key, value in settings.items() if _counts(key, value)}


def _counts(key: str, value: str) -> bool:
    is_default = value == "null" or defaults().get(key) == value or (key, value) == ("resume", "none")
    return not (is_default or is_among(IGNORED, key))


@cache
def defaults() -> dict[str, str]:
    """Values of keys that nobody sets, where all schemas that have the key agree."""
    found: dict[str, set[str]] = {}
    of_groups = [(f"{group}.", schema) for group, schemas in group_schemas().items() for schema in schemas.values()]
    for prefix, schema in [("", RunConfig), *of_groups]:
        values = OmegaConf.to_container(OmegaConf.structured(schema), enum_to_str=True)
        assert isinstance(values, dict)
        for key, value in flat(values).items():
            found.setdefault(f"{prefix}{key}", set()).add(value)
    return {key: values.pop() for key, values in found.items() if len(values) == 1}


def _group(alike: Sequence[Run]) -> Group:
    newest_last = sorted(alike, key=lambda run: (run.is_completed, str(run.about.get("start") or ""), str(run.path)))
    chosen = {run.path if run.seed is None else run.seed: run for run in newest_last}
    runs = sorted(chosen.values(), key=lambda run: (run.seed is None, run.seed or 0, str(run.path)))
    return Group({}, runs, [run for run in alike if run not in runs])


def _labels(runs: Sequence[Run], *, each: bool) -> list[dict[str, str]]:
    """For each of these runs the settings that tell it from the others, as few and as near to what was typed as can be.

    First what was typed and varies; then, while some still have the same labels, settings that tell those apart.
    """
    typed = dict.fromkeys(key for run in runs for key in run.overrides if not is_among(IGNORED, key))
    keys = [key for key in typed if _varies(key, runs)]
    different = list({frozenset(_telling(run).items()): run for run in runs}.values())
    while alike := _with_equal_labels(different, keys):
        further = sorted({key for run in alike for key in _telling(run)} - set(keys))
        telling = next((key for key in further if len({_telling(run).get(key) for run in alike}) > 1), None)
        if telling is None:
            break
        keys.append(telling)
    if each and (_varies("seed", runs) or not keys):
        keys.append("seed")
    return [{key: _value(run, key) for key in keys} for run in runs]


def _with_equal_labels(runs: Sequence[Run], keys: Sequence[str]) -> list[Run]:
    """The first runs that have all these settings in common; none where each has its own."""
    seen: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        seen.setdefault(tuple(_value(run, key) for key in keys), []).append(run)
    return next((alike for alike in seen.values() if len(alike) > 1), [])


def _varies(key: str, runs: Iterable[Run]) -> bool:
    return len({_value(run, key) for run in runs}) > 1


def _value(run: Run, key: str) -> str:
    if key == "seed":
        return str(run.seed)
    return run.setting(key) or NOT_SET


class UnknownChoiceError(ValueError):
    """A choice of runs that names what no run has; one line."""


@dataclass(frozen=True)
class Choice:
    """``topology=ring,exp``: a setting, and the values that are meant."""

    key: str
    values: tuple[str, ...]

    @classmethod
    def parse(cls, written: str) -> "Choice":
        """Read it.

        Raises:
            UnknownChoiceError: there is no ``=``, or nothing before it.
        """
        key, equals, values = written.partition("=")
        if not (key and equals):
            raise UnknownChoiceError(f"{written}: write key=value, such as topology=ring")
        return cls(key, tuple(values.split(",")))

    def __str__(self) -> str:
        return f"{self.key}={','.join(self.values)}"

    def fits(self, run: Run) -> bool:
        """Whether the run has one of the values."""
        return _value(run, self.key) in self.values


def chosen(runs: Sequence[Run], choices: Sequence[Choice]) -> list[Run]:
    """Those that fit all the choices.

    Raises:
        UnknownChoiceError: one that no run fits, with the values that there are; or no run fits all.
    """
    for choice in choices:
        for value in choice.values:
            if not any(Choice(choice.key, (value,)).fits(run) for run in runs):
                raise UnknownChoiceError(f"{choice.key}={value}: {_what_there_is(runs, choice.key)}")
    fitting = [run for run in runs if all(choice.fits(run) for choice in choices)]
    if not fitting:
        raise UnknownChoiceError(f"no run is {' and '.join(map(str, choices))} at once")
    return fitting


def _what_there_is(runs: Sequence[Run], key: str) -> str:
    values = {_value(run, key) for run in runs} - {NOT_SET}
    if not values:
        known = {name for run in runs for name in run.overrides} | {"seed"}
        return f"no run has a setting {key!r}; {nearest(key, known)}"
    shown = sorted(values, key=natural)
    return f"no run has it; there are {', '.join(shown[:10])}{' and more' * (len(shown) > 10)}"


def natural(text: str) -> list[tuple[bool, float, str]]:
    """A key to sort by: ``ring2`` before ``ring10``, and numbers by their value."""
    try:
        return [(False, float(text), "")]
    except ValueError:
        parts = re.split(r"(\d+)", text)
        return [(True, float(part[:300]) if part.isdecimal() else 0.0, part) for part in parts]
