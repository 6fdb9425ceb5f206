"""Two runs side by side: what they were told, what they were made with, and where their numbers part."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from imgnet.results.files import Problems, Table, as_text, printable, read_steps, read_text
from imgnet.results.measures import MEASURES
from imgnet.results.read import Run
from imgnet.results.statistics import Floats

TIMES = frozenset({"train_time_s", "images_per_s", "eval_time_s", "step_s", "data_s", "communication_s", "compute_s"})
"""Columns that differ between any two runs."""
PLACES = frozenset({"epoch", "step"})


@dataclass(frozen=True)
class Pair:
    """A setting and its two values; None where a run has none."""

    key: str
    first: str | None
    second: str | None


@dataclass(frozen=True)
class Parting:
    """Where the numbers of two runs part.

    Attributes:
        file: that they stand in.
        place: ``step`` or ``epoch``.
        num_common: rows for the same step or epoch in both.
        at: the first of these at which they differ; None where they never do.
        last_equal: the last before it; None where there is none.
        numbers: the columns that differ there, with both values.
    """

    file: str
    place: str
    num_common: int
    at: int | None
    last_equal: int | None
    numbers: list[Pair]


@dataclass(frozen=True)
class Differences:
    """All that is told of two runs."""

    configuration: list[Pair]
    environment: list[Pair]
    partings: list[Parting]
    results: list[Pair]

    @property
    def numbers_are_equal(self) -> bool:
        """Whether there are numbers to compare, and none differs; nothing is said of those that one run lacks."""
        return any(one.num_common for one in self.partings) and all(one.at is None for one in self.partings)


def differences(first: Run, second: Run, problems: Problems, tolerance: float = 0.0) -> Differences:
    """Compare two runs.

    Args:
        first: a run.
        second: another.
        problems: gets a line for what cannot be read.
        tolerance: relative; numbers that are nearer to each other are the same. 0: to the last bit.
    """
    steps = [read_steps(run.path / "steps.jsonl", problems) for run in (first, second)]
    return Differences(
        _pairs(first.settings, second.settings),
        _pairs(_environment(first, problems), _environment(second, problems)),
        [
            parting(steps[0], steps[1], "steps.jsonl", "step", tolerance),
            parting(first.epochs, second.epochs, "metrics.csv", "epoch", tolerance),
        ],
        _pairs(_outcome(first), _outcome(second)),
    )


def _pairs(first: Mapping[str, str], second: Mapping[str, str]) -> list[Pair]:
    keys = dict.fromkeys([*first, *second])
    return [Pair(key, first.get(key), second.get(key)) for key in keys if first.get(key) != second.get(key)]


def _environment(run: Run, problems: Problems) -> dict[str, str]:
    """Commit, changes to it, versions and machines."""
    about, versions = run.about, run.about.get("versions")
    found = {key: as_text(about.get(key)) for key in ("commit", "python", "hosts", "slurm_job_id")}
    found["uncommitted changes"] = _changes(run, problems)
    if isinstance(versions, Mapping):
        found |= {printable(str(name)): as_text(version) for name, version in versions.items()}
    return found


def _changes(run: Run, problems: Problems) -> str:
    """The files that ``code.diff`` touches, and eight digits that change with what it does to them."""
    path = run.path / "code.diff"
    if not path.is_file():
        return "in files that git does not know" if run.about.get("dirty") else "none"
    text = read_text(path, problems)
    heads = [line for line in text.splitlines() if line.startswith("diff --git ")]
    files = ", ".join(printable(head.rpartition(" b/")[2]) for head in heads)
    return f"{files} ({sha256(text.encode()).hexdigest()[:8]})"


def _outcome(run: Run) -> dict[str, str]:
    numbers = {f"{measure.title}{' s' * measure.is_time}": measure.of(run) for measure in MEASURES}
    shown = {title: f"{number:.6g}" for title, number in numbers.items() if math.isfinite(number)}
    return {"status": run.status, **({"error": run.error} if run.error else {}), **shown}


def parting(first: Table, second: Table, file: str, place: str, tolerance: float = 0.0) -> Parting:
    """The first common row in which a column that is no time differs.

    Args:
        first: columns of one run, ``place`` among them.
        second: of the other.
        file: that they come from.
        place: the column that says which rows belong together; of several with one place the last counts.
        tolerance: relative to the larger of two numbers.
    """
    if place not in first or place not in second:
        return Parting(file, place, 0, None, None, [])
    places, rows, other_rows = _common_rows(first[place], second[place])
    columns = [name for name in first if name in second and name not in TIMES | PLACES]
    differs = {name: _differs(first[name][rows], second[name][other_rows], tolerance) for name in columns}
    anywhere = np.any(list(differs.values()), axis=0) if columns else np.zeros(len(places), bool)
    if not anywhere.any():
        return Parting(file, place, len(places), None, int(places[-1]) if len(places) else None, [])
    at = int(np.argmax(anywhere))
    numbers = [
        Pair(name, repr(float(first[name][rows][at])), repr(float(second[name][other_rows][at])))
        for name in columns
        if differs[name][at]
    ]
    return Parting(file, place, len(places), int(places[at]), int(places[at - 1]) if at else None, numbers)


def _common_rows(first: Floats, second: Floats) -> tuple[Floats, NDArray[np.intp], NDArray[np.intp]]:
    """Places that are in both, rising, and their last rows in each."""
    last_rows = [{place: row for row, place in enumerate(column) if math.isfinite(place)} for column in (first, second)]
    places = sorted(last_rows[0].keys() & last_rows[1].keys())
    rows = [np.array([of[place] for place in places], dtype=np.intp) for of in last_rows]
    return np.array(places), rows[0], rows[1]


def _differs(first: Floats, second: Floats, tolerance: float) -> NDArray[np.bool_]:
    """Row by row; what is nan in both is the same."""
    with np.errstate(invalid="ignore"):
        near = np.abs(first - second) <= tolerance * np.maximum(np.abs(first), np.abs(second))
    return ~((first == second) | near | (np.isnan(first) & np.isnan(second)))


def to_json(found: Differences) -> str:
    """All of it."""
    return json.dumps(asdict(found) | {"numbers_are_equal": found.numbers_are_equal}, indent=2) + "\n"


def show(found: Differences, console: Console | None = None) -> None:
    """Print tables of what differs, and a line for each file of numbers."""
    console = console or Console()
    if not console.is_terminal:  # a pipe has no width
        console = Console(width=200, file=console.file)
    for title, pairs in (("configuration", found.configuration), ("code and machine", found.environment)):
        if pairs:
            console.print(_table(title, pairs))
        else:
            console.print(f"{title}: the same")
    for one in found.partings:
        console.print(Text(describe(one)))
        if one.numbers:
            console.print(_table(f"at {one.place} {one.at}", one.numbers))
    console.print(_table("outcome", found.results) if found.results else "outcome: the same")


def _table(title: str, pairs: Iterable[Pair]) -> RichTable:
    table = RichTable(title, "first", "second", box=box.SIMPLE_HEAD)
    for pair in pairs:
        table.add_row(*(Text(text if text is not None else "-", overflow="fold") for text in vars(pair).values()))
    return table


def describe(one: Parting) -> str:
    """One line about where the numbers of a file part."""
    if one.num_common == 0:
        return f"{one.file}: no {one.place} that both have"
    if one.at is None:
        return f"{one.file}: equal at all {one.num_common} {one.place}s that both have, to {one.place} {one.last_equal}"
    before = "the first that both have" if one.last_equal is None else f"equal up to {one.place} {one.last_equal}"
    return f"{one.file}: part at {one.place} {one.at}, {before}"
