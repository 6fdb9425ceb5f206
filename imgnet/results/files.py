"""Files of a run directory, read without trust: half written, of another version, or somebody else's.

Each function gives what is whole, and adds one line to the problems for what is not.
"""

import csv
import json
import math
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from imgnet.results.names import display_path

Table = Mapping[str, NDArray[np.float64]]
"""Columns of numbers, all of one length; nan where a cell is empty."""

MOST_BYTES = 2**26
"""Of a file; a run of 90 epochs that logs every step of ImageNet writes half of it."""
MOST_SETTINGS = 5000
DEEPEST = 50
BYTES_OF_A_STEP = 512
"""More than a row of ``steps.jsonl`` takes."""
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|[@-_])")
"""What a terminal would obey."""


class UnreadableError(Exception):
    """What is wrong with a file, in a few words."""


class Problems:
    """One line for each kind of damage: the first file that has it, and how many more there are."""

    def __init__(self) -> None:
        self._paths: dict[str, list[Path]] = {}

    def add(self, path: Path, what: str) -> None:
        """Take note of a file, once for each kind."""
        paths = self._paths.setdefault(what, [])
        if path not in paths[-1:]:
            paths.append(path)

    def lines(self) -> list[str]:
        """Such as ``a/0/metrics.csv: the last line is cut short and left out (3 more like it)``."""
        return [
            f"{printable(display_path(paths[0]))}: {what}" + (f" ({len(paths) - 1} more like it)" * (len(paths) > 1))
            for what, paths in self._paths.items()
        ]


def printable(text: str, keep: str = "") -> str:
    """Without what a terminal, a table or a page would obey instead of showing; ``keep`` stays."""
    plain = ESCAPES.sub("", text)
    return plain if plain.isprintable() else "".join(c if c.isprintable() or c in keep else "\ufffd" for c in plain)


def read_text(path: Path, problems: Problems) -> str:
    """A text file; empty where it cannot be had."""
    try:
        return _read(path)
    except UnreadableError as error:
        problems.add(path, f"{error}; left out")
        return ""


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UnreadableError(f"larger than {MOST_BYTES >> 20} MiB")
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UnreadableError((error.strerror or str(error)).lower()) from None


def read_end(path: Path, most_bytes: int) -> str:
    """Whole lines of the end of a text file; empty where there is none."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - most_bytes))
        text = file.read(most_bytes).decode("utf-8", errors="replace")
    return text if size <= most_bytes else text.partition("\n")[2]


def read_object(path: Path, problems: Problems) -> dict[str, Any] | None:
    """The JSON object in a file; None where it is no such thing."""
    try:
        found = json.loads(_read(path))
        if not isinstance(found, dict):
            raise UnreadableError("not a JSON object")
    except UnreadableError as error:
        problems.add(path, f"{error}; left out")
    except (ValueError, RecursionError):
        problems.add(path, "half written, or not JSON; left out")
    else:
        return found
    return None


def read_settings(path: Path, problems: Problems) -> dict[str, str]:
    """A composed configuration in one level, ``{"optimizer.lr": "0.1"}``; empty where it is no such thing."""
    try:
        # The runs of a sweep have few different texts but for their seeds, and parsing is what takes the time.
        text, seed = re.subn(r"^seed: *(-?\d+)$", "", whole := _read(path), flags=re.MULTILINE)
        found = dict(_parsed(text))
    except UnreadableError as error:
        problems.add(path, f"{error}; the run is known by its overrides alone")
        return {}
    if seed == 1:
        found["seed"] = re.search(r"^seed: *(-?\d+)$", whole, flags=re.MULTILINE)[1]  # type: ignore[index]
    return found


@cache
def _parsed(text: str) -> Mapping[str, str]:
    """Raises UnreadableError."""
    try:
        _refuse_bombs(text)
        found = yaml.load(text, LOADER)  # noqa: S506  (a safe loader, in C where there is one)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise UnreadableError("half written, or not YAML") from None
    if not isinstance(found, dict):
        raise UnreadableError("not a configuration")
    return flat(found)


def _refuse_bombs(text: str) -> None:
    """What is small on disk and endless in memory: the C parser dies of deep nesting, and aliases multiply."""
    depth = 0
    for event in yaml.parse(text, LOADER):
        if isinstance(event, yaml.AliasEvent):
            raise UnreadableError("it has aliases, which no composed configuration has")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise UnreadableError(f"nested more than {DEEPEST} deep")


def flat(values: Mapping[Any, Any]) -> dict[str, str]:
    """A configuration in one level, values as text.

    Raises:
        UnreadableError: it has too many keys to be one.
    """
    into: dict[str, str] = {}
    _flatten(values, "", into)
    return into


def _flatten(values: Mapping[Any, Any], prefix: str, into: dict[str, str]) -> None:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            _flatten(value, f"{name}.", into)
        else:
            into[printable(name)] = as_text(value)
    if len(into) > MOST_SETTINGS:
        raise UnreadableError(f"more than {MOST_SETTINGS} settings")


def as_text(value: Any) -> str:
    """A value as YAML would have it in one line."""
    return printable(value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False))


def read_rows(path: Path, problems: Problems) -> Table:
    """A table of comma-separated numbers; no columns where there is none."""
    if not path.is_file():
        return {}
    *lines, rest = read_text(path, problems).split("\n")
    if rest:
        problems.add(path, "the last line is cut short and left out")
    try:
        header, *rows = list(csv.reader(lines)) or [[]]
    except csv.Error:
        problems.add(path, "no table of comma-separated values; left out")
        return {}
    whole = [row for row in rows if len(row) == len(header)]
    if len(whole) < len(rows):
        problems.add(path, f"rows that have not {len(header)} cells are left out")
    columns = list(zip(*whole, strict=True)) or [()] * len(header)
    return {printable(name): _column(cells, path, problems) for name, cells in zip(header, columns, strict=True)}


def _column(cells: tuple[str, ...], path: Path, problems: Problems) -> NDArray[np.float64]:
    try:
        return np.array([float(cell) if cell else math.nan for cell in cells])
    except ValueError:
        problems.add(path, "cells that are no numbers are left out")
        return np.array([as_number(cell) for cell in cells])


def as_number(value: Any) -> float:
    """A number, and nan for what is none."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def read_steps(path: Path, problems: Problems, last: int | None = None) -> Table:
    """A table of JSON objects, one to a line; with ``last`` so many rows of its end, whatever its length."""
    if not path.is_file():
        return {}
    text = read_text(path, problems) if last is None else read_end(path, last * BYTES_OF_A_STEP)
    lines = text.split("\n")[:-1]
    rows = [row for line in lines if (row := _row(line)) is not None]
    if len(rows) < len(lines):
        problems.add(path, "lines that are no JSON objects are left out")
    rows = rows[-last:] if last else rows
    names = dict.fromkeys(name for row in rows for name in row)
    return {printable(name): np.array([as_number(row.get(name)) for row in rows]) for name in names}


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None
