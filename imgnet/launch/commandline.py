"""Sweeps without ``-m``, over groups whose options have different keys: ``cluster=4xA40,8xA40 cluster.wait=true``.

Before it hands the runs of a sweep to anybody, Hydra composes one configuration from the words that are no sweep. There
``cluster.wait`` is a key of the default cluster, which has none of that name, and the command is refused. So Hydra is
shown the first run in place of the sweep, and the sweeper (``hydra_plugins/``) gets what was typed.

``zip=[seed,optimizer.lr]`` among the words is no key either: the values of these move together, the first of each, then
the second, instead of each with each.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString, ValueType
from hydra.errors import OverrideParseException

from imgnet.config import ConfigError

ZIP = "zip"
COMMAND = "on_sweep_end"
_typed: list[str] = []


@contextmanager
def first_run_shown_to_hydra() -> Iterator[None]:
    """Around Hydra's ``main``, which reads ``sys.argv`` itself."""
    before = sys.argv
    sys.argv = [before[0], *map(_quoted, before[1:])]
    typed = _overrides(sys.argv[1:])
    shown = [_first(override) for override in typed]
    if shown != [override.input_line for override in typed]:
        _typed[:] = [line for override in typed if (line := override.input_line) and not override.is_hydra_override()]
        replaced = {override.input_line: first for override, first in zip(typed, shown, strict=True)}
        sys.argv = [before[0], *(word for one in sys.argv[1:] if (word := replaced.get(one, one)))]
    try:
        yield
    finally:
        sys.argv = before
        _typed.clear()


def _quoted(word: str) -> str:
    """A command as a value: its braces and its own equals signs would be grammar to Hydra, unless it is in quotes."""
    key, _, value = word.partition("=")
    if key != COMMAND:
        return word
    try:
        OverridesParser.create().parse_overrides([word])
    except OverrideParseException:
        return f"{key}={QuotedString(value, Quote.single).with_quotes()}"
    return word


def typed_overrides() -> list[str]:
    """The sweep as it was typed; nothing where there is none."""
    return list(_typed)


def _overrides(words: list[str]) -> list[Override]:
    """What a command that runs something overrides; nothing where Hydra would refuse to read it, and will say so."""
    arguments, _ = get_args_parser().parse_known_args(words)
    only_looks = arguments.cfg or arguments.info or arguments.help or arguments.hydra_help or arguments.shell_completion
    if only_looks or any(word.startswith("hydra/sweeper=") for word in arguments.overrides):
        return []
    try:
        return OverridesParser.create().parse_overrides(arguments.overrides)
    except OverrideParseException:
        return []


def _first(override: Override) -> str:
    """The first value of a sweep, nothing for ``zip``; anything else as it was typed."""
    line = override.input_line or ""
    if override.key_or_group == ZIP:
        return ""
    is_glob = override.value_type is ValueType.GLOB_CHOICE_SWEEP  # only Hydra knows what there is to match
    if override.is_hydra_override() or is_glob or not override.is_discrete_sweep():
        return line
    first = next(override.sweep_string_iterator(), None)
    return line if first is None else f"{line.partition('=')[0]}={first}"


def runs_of(overrides: Sequence[Override]) -> list[list[str]]:
    """The overrides of each run: the product of all values that were typed, where ``zip`` does not say otherwise.

    Raises:
        ConfigError: values are to move together that cannot.
    """
    together = [override for override in overrides if override.key_or_group == ZIP]
    axes = {override.key_or_group: _values(override) for override in overrides if override.key_or_group != ZIP}
    columns: dict[str, list[list[str]]] = {key: [[line] for line in lines] for key, lines in axes.items()}
    keys = [key for override in together for key in _keys(override, axes)]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise ConfigError([f"zip: {key} is named more than once" for key in twice])
    for override in together:
        first, *others = _keys(override, axes)
        columns[first] = [list(lines) for lines in zip(*(axes[key] for key in (first, *others)), strict=True)]
        for key in others:
            del columns[key]
    return [[line for lines in row for line in lines] for row in product(*columns.values())]


def _keys(override: Override, axes: Mapping[str, Sequence[str]]) -> list[str]:
    keys, line = override.value(), override.input_line
    if not isinstance(keys, list) or len(keys) < 2 or not all(isinstance(key, str) for key in keys):
        raise ConfigError([f"{line}: must be a list of keys, such as zip=[seed,optimizer.lr]"])
    if unknown := [key for key in keys if len(axes.get(key, [])) < 2]:
        raise ConfigError([f"{line}: {key} has no values to move with the others" for key in unknown])
    if len({len(axes[key]) for key in keys}) > 1:
        counts = ", ".join(f"{key} has {len(axes[key])}" for key in keys)
        raise ConfigError([f"{line}: each must have as many values as the others, and {counts}"])
    return [str(key) for key in keys]


def _values(override: Override) -> list[str]:
    """What an override says, once for each of its values, in the words of Hydra's own sweeper."""
    key = override.get_key_element()
    if override.is_discrete_sweep():
        return [f"{key}={value}" for value in override.sweep_string_iterator()]
    return [f"{key}={override.get_value_element_as_str()}"]


def names_nothing(override: Override) -> bool:
    """Whether it is a sweep over no value at all: ``range(3,3)``, or a ``glob`` that matches nothing."""
    return override.is_discrete_sweep() and next(override.sweep_string_iterator(), None) is None
