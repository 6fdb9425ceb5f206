"""Sweeps without ``-m``, over groups whose options have different keys: ``cluster=4xA40,8xA40 cluster.wait=true``.

Before it hands the runs of a sweep to anybody, Hydra composes one configuration from the words that are no sweep. There
``cluster.wait`` is a key of the default cluster, which has none of that name, and the command is refused. So Hydra is
shown the first run in place of the sweep, and the sweeper (``hydra_plugins/``) gets what was typed.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import OverrideParseException

_typed: list[str] = []


@contextmanager
def first_run_shown_to_hydra() -> Iterator[None]:
    """Around Hydra's ``main``, which reads ``sys.argv`` itself."""
    before = sys.argv
    typed = _overrides(before[1:])
    shown = [_first(override) for override in typed]
    if shown != [override.input_line for override in typed]:
        _typed[:] = [line for override in typed if (line := override.input_line) and not override.is_hydra_override()]
        replaced = {override.input_line: first for override, first in zip(typed, shown, strict=True)}
        sys.argv = [before[0], *(replaced.get(word) or word for word in before[1:])]
    try:
        yield
    finally:
        sys.argv = before
        _typed.clear()


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
    """The first value of a sweep; anything else as it was typed."""
    line = override.input_line or ""
    is_glob = override.value_type is ValueType.GLOB_CHOICE_SWEEP  # only Hydra knows what there is to match
    if override.is_hydra_override() or is_glob or not override.is_discrete_sweep():
        return line
    first = next(override.sweep_string_iterator(), None)
    return line if first is None else f"{line.partition('=')[0]}={first}"


def names_nothing(override: Override) -> bool:
    """Whether it is a sweep over no value at all: ``range(3,3)``, or a ``glob`` that matches nothing."""
    return override.is_discrete_sweep() and next(override.sweep_string_iterator(), None) is None
