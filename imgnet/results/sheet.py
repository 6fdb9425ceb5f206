"""Results as cells of text, with what a reader must know to believe them; every format shows these."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from imgnet.results.groups import Group, name_of_run
from imgnet.results.measures import MEASURES, TOP1, Comparison, Measure, Results, Row
from imgnet.results.names import display_path
from imgnet.results.read import Run
from imgnet.results.statistics import MIN_PAIRS_FOR_P, Estimate

NONE = "-"
MOST_NAMED = 10
"""Runs of a kind that notes name one by one."""
S_PER_H = 3600
SHOWN_IN_HOURS = 2 * S_PER_H


@dataclass(frozen=True)
class Cell:
    """What is shown, and what it is sorted by."""

    text: str
    value: float | str

    @property
    def sort_key(self) -> str:
        """The value as a page holds it; empty for nan."""
        return (
            ""
            if isinstance(self.value, float) and math.isnan(self.value)
            else f"{self.value}".replace("inf", "Infinity")
        )


@dataclass(frozen=True)
class Column:
    """A title and a cell for each row. ``tells`` columns name the row and are words, all others are numbers."""

    key: str
    title: str
    cells: list[Cell]
    tells: bool = False


@dataclass(frozen=True)
class Sheet:
    """A table, and what is to be said under it."""

    title: str
    columns: list[Column]
    notes: list[str] = field(default_factory=list)

    def rows(self) -> list[tuple[Cell, ...]]:
        """The cells, row by row."""
        return list(zip(*(column.cells for column in self.columns), strict=True))


@dataclass(frozen=True)
class Unit:
    """Of times in a column."""

    name: str
    seconds: float
    form: str

    @classmethod
    def of(cls, times: Sequence[float]) -> "Unit":
        """Seconds, and hours where one takes more than two; of predictions for small models thousandths of a second."""
        longest = max((time for time in times if math.isfinite(time)), default=0.0)
        if longest > SHOWN_IN_HOURS:
            return cls("h", S_PER_H, ".2f")
        return cls("s", 1, ".1f" if longest >= 1 else ".3f")


def show(found: Estimate | None, form: str, scale: float = 1) -> Cell:
    """``98.61 ± 0.44``, or the mean alone where the values do not show how they spread."""
    if found is None:
        return Cell(NONE, math.nan)
    mean, half = format(found.mean / scale, form), found.half_width / scale
    return Cell(mean if math.isnan(half) else f"{mean} ± {format(half, form)}", found.mean)


def results_sheet(results: Results) -> Sheet:
    """A row for each group."""
    rows = results.rows
    columns = [*label_columns([row.group for row in rows]), _runs_column(rows)]
    for measure in MEASURES:
        columns += _measure_columns(measure, rows)
        if measure is TOP1:
            columns += _deviation_columns(rows)
    if results.target is not None:
        columns.append(_target_column(rows, results.target))
    return Sheet("", columns, [*_legend(results, columns), *notes(results)])


def label_columns(groups: Sequence[Group]) -> list[Column]:
    """The settings in which groups differ, one column for each."""
    keys = list(groups[0].labels) if groups else []
    if not keys:
        return [Column("runs", "runs", [Cell(group.name, group.name) for group in groups], tells=True)]
    return [
        Column(key, key, [Cell(group.labels[key], group.labels[key]) for group in groups], tells=True) for key in keys
    ]


def _runs_column(rows: Sequence[Row]) -> Column:
    """How many seeds count; of single runs how they ended."""
    if all(len(row.group.runs) == 1 for row in rows):
        words = [row.group.runs[0].status for row in rows]
        return Column("status", "status", [Cell(word, word) for word in words], tells=True)
    return Column("seeds", "seeds", [Cell(_seeds(row.group), len(row.group.completed)) for row in rows])


def _seeds(group: Group) -> str:
    """``5``, or ``3 of 5; 2 failed, 4 running``, where 2 and 4 are the seeds."""
    counted = str(len(group.completed))
    if not group.missing:
        return counted
    by_status: dict[str, list[str]] = {}
    for run in group.missing:
        by_status.setdefault(run.status, []).append(str(run.seed))
    lacking = ", ".join(f"{' '.join(seeds)} {status}" for status, seeds in by_status.items())
    return f"{counted} of {len(group.runs)}; {lacking}"


def _measure_columns(measure: Measure, rows: Sequence[Row]) -> list[Column]:
    """One, or none where no run has the number."""
    found = [row.estimates[measure.key] for row in rows]
    if not any(found):
        return []
    unit = Unit.of([one.mean for one in found if one]) if measure.is_time else Unit("", 1, measure.form)
    cells = [show(one, unit.form, unit.seconds) for one in found]
    return [Column(measure.key, f"{measure.title} {unit.name}".strip(), cells)]


def _deviation_columns(rows: Sequence[Row]) -> Iterator[Column]:
    """How far top-1 moves with the seed, and with the images that it is measured on."""
    of_seeds = [row.estimates["top1"].deviation if row.estimates["top1"] else math.nan for row in rows]
    of_images = [row.image_deviation for row in rows]
    for key, title, values in (("sd_seeds", "sd seeds", of_seeds), ("sd_images", "sd images", of_images)):
        if not all(map(math.isnan, values)):
            yield Column(key, title, [Cell(NONE if math.isnan(value) else f"{value:.2f}", value) for value in values])


def _target_column(rows: Sequence[Row], target: float) -> Column:
    found = [row.estimates["target"] for row in rows]
    unit = Unit.of([one.mean for one in found if one])
    return Column("target", f"{unit.name} to {target:g} %", [_target_cell(row, unit) for row in rows])


def _target_cell(row: Row, unit: Unit) -> Cell:
    """An interval only where every run came there: the mean of the others is not the mean."""
    found = row.estimates["target"]
    if found is None:
        return Cell("not reached" if row.not_reached else NONE, math.inf)
    if not row.not_reached:
        return show(found, unit.form, unit.seconds)
    share = f"{found.num_values} of {found.num_values + len(row.not_reached)}"
    return Cell(f"{found.mean / unit.seconds:{unit.form}} ({share})", found.mean)


def _legend(results: Results, columns: Sequence[Column]) -> Iterator[str]:
    """What the numbers are."""
    keys = {column.key for column in columns}
    if any(found and not math.isnan(found.low) for row in results.rows for found in row.estimates.values()):
        yield "Mean ± half width of its 95 % Student t interval over seeds; last epoch, completed runs only."
    if "predicted" in keys:
        yield "predicted training: what the steps would take on cluster.like, not measured."
    if "sd_seeds" in keys:
        yield "sd seeds: standard deviation of top-1 from seed to seed."
    if "sd_images" in keys:
        yield (
            "sd images: binomial standard deviation of top-1 with the choice of validation images; these are the same "
            "for all runs, so that seeds do not lessen it and a paired difference is free of much of it."
        )
    if results.target is not None:
        yield f"Time to {results.target:g} %: training until the first evaluation at or above it."


def notes(results: Results) -> Iterator[str]:
    """What is not in the numbers, run by run, and what the runs of a group do not share."""
    groups = [row.group for row in results.rows]
    lacking = [(group, run) for group in groups for run in group.missing]
    for status in dict.fromkeys(run.status for _, run in lacking):
        yield from _named(f"{status}, not counted", [_left_out(*pair) for pair in lacking if pair[1].status == status])
    late = [(row.group, run) for row in results.rows for run in row.not_reached]
    yield from _named(f"never at {results.target:g} %" if late else "", [name_of_run(*pair) for pair in late])
    again = [(group, run) for group in groups for run in group.repeats]
    yield from _named(
        "same configuration and seed as another, not counted", [_shown(group, run) for group, run in again]
    )
    for key, what in (("commit", "commits"), ("versions", "sets of package versions")):
        mixed = [group.name for group in groups if len({str(run.about.get(key)) for run in group.runs}) > 1]
        yield from _named(f"of several {what}", mixed)


def _named(what: str, lines: Sequence[str]) -> Iterator[str]:
    for line in lines[:MOST_NAMED]:
        yield f"{what}: {line}"
    if len(lines) > MOST_NAMED:
        yield f"{what}: {len(lines) - MOST_NAMED} more"


def _shown(group: Group, run: Run) -> str:
    return f"{name_of_run(group, run)} ({display_path(run.path)})"


def _left_out(group: Group, run: Run) -> str:
    epochs = run.epochs.get("epoch", np.array([]))
    how_far = f"epoch {epochs[-1]:.0f} of {run.settings.get('epochs', '?')}" if len(epochs) else "no epoch done"
    return f"{_shown(group, run)}, {run.error or how_far}"


def comparison_sheet(results: Results) -> Sheet | None:
    """A row for each group that has a baseline; None where none was asked for."""
    if not results.baseline:
        return None
    found = results.comparisons
    columns = label_columns([one.group for one in found])
    columns.append(Column("pairs", "pairs", [Cell(str(len(one.seeds)), len(one.seeds)) for one in found]))
    columns += _difference_columns(found)
    columns += _ratio_columns("speed_up", "speed-up", [one.speed_up for one in found])
    if results.target is not None:
        title = f"speed-up to {results.target:g} %"
        columns += _ratio_columns("speed_up_to_target", title, [one.speed_up_to_target for one in found])
    title = f"Against {' '.join(map(str, results.baseline))}, paired by seed"
    return Sheet(title, columns, [*_comparison_notes(results)])


def _difference_columns(found: Sequence[Comparison]) -> list[Column]:
    estimates = [one.accuracy.estimate if one.accuracy else None for one in found]
    return [
        Column("difference", "top-1, points", [Cell(f"{e.mean:+.2f}", e.mean) if e else _nothing() for e in estimates]),
        Column("difference_interval", "95 % t", [_interval(e, "+.2f") for e in estimates]),
        Column("p", "p (Holm)", [Cell(_p(one.p), one.p) for one in found]),
    ]


def _ratio_columns(key: str, title: str, estimates: Sequence[Estimate | None]) -> list[Column]:
    means = [Cell(f"{one.mean:.2f}", one.mean) if one else _nothing() for one in estimates]
    return [Column(key, title, means), Column(f"{key}_interval", "95 % t", [_interval(e, ".2f") for e in estimates])]


def _nothing() -> Cell:
    return Cell(NONE, math.nan)


def _interval(found: Estimate | None, form: str) -> Cell:
    if found is None or math.isnan(found.low):
        return _nothing()
    return Cell(f"{format(found.low, form)} to {format(found.high, form)}", found.low)


def _p(p: float) -> str:
    if math.isnan(p):
        return NONE
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def _comparison_notes(results: Results) -> Iterator[str]:
    yield (
        "Of pairs of runs with the same seed: mean and its 95 % Student t interval, for each comparison by itself. "
        "Speed-up: the baseline's training time over ours, geometric mean."
    )
    if any(not math.isnan(one.p) for one in results.comparisons):
        yield f"p: two-sided paired t test of top-1, adjusted for {len(results.comparisons)} comparisons (Holm)."
    if any(len(one.seeds) < MIN_PAIRS_FOR_P for one in results.comparisons):
        yield (
            f"No p for fewer than {MIN_PAIRS_FOR_P} pairs: without trust in a normal distribution the signs of n "
            f"differences give 2/2^n at best, {2 / 2 ** (MIN_PAIRS_FOR_P - 1):g} for {MIN_PAIRS_FOR_P - 1}."
        )
    yield from _named("not compared", [f"{group.name}: {why}" for group, why in results.unpaired])
