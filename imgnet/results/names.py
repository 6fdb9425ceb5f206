"""What runs are called where a command prints them."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from imgnet.rundir import read_json


def distinct_names(run_dirs: Sequence[Path]) -> list[str]:
    """A name for each run: the overrides in which they differ, or the folder where there are none."""
    names = differing([read_json(path / "run.json").get("overrides", []) for path in run_dirs])
    return [name or display_path(path) for name, path in zip(names, run_dirs, strict=True)]


def differing(overrides: Sequence[Sequence[str]]) -> list[str]:
    """Of the overrides of each run those that not all have; all of them where there is one run only."""
    common = set(overrides[0]).intersection(*overrides) if len(overrides) > 1 else set()
    return [" ".join(word for word in words if word not in common) for words in overrides]


def display_path(path: Path) -> str:
    """A path as it is seen from here."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def typed_path(path: Path) -> str:
    """The same as one word of a command that is to be typed."""
    return shlex.quote(display_path(path))
