"""Columns of runs as curves: over epochs, steps or time, with a band over the seeds of a group."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from imgnet.results.files import Problems, Table, read_steps
from imgnet.results.groups import Group
from imgnet.results.measures import num_val_images, values_of
from imgnet.results.read import Run
from imgnet.results.statistics import Floats, interval_of_columns, on_common_range

X_COLUMNS = {
    "epoch": "epoch",
    "step": "step",
    "time": "train_time_s",
    "predicted_time": "predicted_time_s",
    "sent": "sent_mb",
}
"""What ``--x`` may be, and its column."""
ERRORS = {"val_error1": "val_acc1", "val_error5": "val_acc5"}
"""Made of accuracies: 100 less them."""
NO_POINTS = np.array([])


@dataclass(frozen=True)
class Curve:
    """The mean of a group's runs where all of them are, and the t interval of that mean.

    Attributes:
        group: whose.
        x: increasing.
        mean: at each ``x``.
        low: of the interval; nan for a single run.
        high: likewise.
        num_runs: that the mean is of.
        is_finished: whether these are completed; a group without any is drawn by what it has.
    """

    group: Group
    x: Floats
    mean: Floats
    low: Floats
    high: Floats
    num_runs: int
    is_finished: bool


def curve_of(group: Group, x: str, y: str, problems: Problems, most_points: int = 256) -> Curve | None:
    """A group's curve.

    Args:
        group: whose.
        x: ``epoch``, ``step`` or ``time``.
        y: a column of ``metrics.csv``, of ``steps.jsonl``, or one of :data:`ERRORS`.
        problems: gets a line for what is left out.
        most_points: of the curve.

    Returns:
        None where no run has the columns, or the runs have no range in common.
    """
    runs = group.completed or group.runs
    parts = [part for run in runs if len((part := points_of(run, x, y, problems))[0])]
    if not parts:
        return None
    places, values = on_common_range(parts, most_points)
    if len(places) == 0:
        problems.add(group.runs[0].path, f"this and the other seeds have no {x} in common; no curve of {y} over {x}")
        return None
    mean, low, high = interval_of_columns(values)
    return Curve(group, places, mean, low, high, len(parts), bool(group.completed))


def points_of(run: Run, x: str, y: str, problems: Problems) -> tuple[Floats, Floats]:
    """The points of one run by rising ``x``; of several at one place the last. Empty where it has no such columns."""
    source = ERRORS.get(y, y)
    table = run.epochs if source in run.epochs else _steps(run, problems)
    column = X_COLUMNS[x]
    if source not in table or column not in table:
        return NO_POINTS, NO_POINTS
    there = np.isfinite(table[column]) & np.isfinite(table[source])
    xs, ys = table[column][there], table[source][there]
    places, first_from_behind = np.unique(xs[::-1], return_index=True)
    ys = ys[::-1][first_from_behind]
    return places, 100 - ys if y in ERRORS else ys


def _steps(run: Run, problems: Problems) -> Table:
    """``steps.jsonl`` with a column for the time, summed up from that of the steps before."""
    table = dict(read_steps(run.path / "steps.jsonl", problems))
    if "step" in table and "step_s" in table:
        table["train_time_s"] = np.cumsum(np.diff(table["step"], prepend=0) * table["step_s"])
    return table


def columns_of(runs: Sequence[Run], problems: Problems) -> list[str]:
    """What can be drawn of these runs, those of ``metrics.csv`` first."""
    names = dict.fromkeys(name for run in runs for name in run.epochs)
    names |= dict.fromkeys(name for run in runs[:1] for name in _steps(run, problems))
    names |= dict.fromkeys(error for error, accuracy in ERRORS.items() if accuracy in names)
    return [name for name in names if name not in X_COLUMNS.values()]


def least_error(groups: Sequence[Group]) -> float:
    """Half an image, in percent: what stands for no error at all, which has no place on a logarithmic axis."""
    numbers = values_of([run for group in groups for run in group.runs], num_val_images)
    return 50 / max(numbers) if numbers and max(numbers) > 0 else 0.01


PARTS = ("data_s", "compute_s", "communication_s")
"""Of a step, as rank 0 saw it."""
STEPS_OF_A_SPLIT = 200
"""Rows of ``steps.jsonl`` from its end on that a split is the mean of."""


def split_of(run: Run, problems: Problems) -> Floats | None:
    """Milliseconds of a step for data, computation and waiting for averages, ``[3]``; None where it is not known."""
    table = read_steps(run.path / "steps.jsonl", problems, last=STEPS_OF_A_SPLIT)
    if not all(part in table for part in PARTS):
        return None
    parts = np.array([table[part] for part in PARTS])
    parts = parts[:, np.isfinite(parts).all(axis=0)]
    parts = parts[:, 1:] if parts.shape[1] > 1 else parts  # the first of a short run holds what happens but once
    return 1000 * parts.mean(axis=1) if parts.size else None
