"""What is measured of a run, summed up over the seeds of a group, and compared with a baseline.

Of accuracies and distances the last epoch counts: the best one is chosen with the validation images that it is then
scored on.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from imgnet.results.files import as_number
from imgnet.results.groups import Choice, Group, UnknownChoiceError, natural
from imgnet.results.read import Run
from imgnet.results.statistics import (
    MIN_PAIRS_FOR_P,
    Difference,
    Estimate,
    binomial_deviation,
    estimate,
    holm,
    paired_difference,
    paired_ratio,
    time_to,
)
from imgnet.suggest import nearest


def last(run: Run, column: str) -> float:
    """The last number in a column of ``metrics.csv``, else the one in ``summary.json``; nan where there is none."""
    values = run.epochs.get(column, np.array([]))
    numbers = values[~np.isnan(values)]
    return float(numbers[-1]) if len(numbers) else as_number(run.summary.get(column))


def images_per_s(run: Run) -> float:
    """Of all workers together; the median over the epochs, of which the first is slow."""
    values = run.epochs.get("images_per_s", np.array([]))
    values = values[np.isfinite(values)]
    return float(np.median(values)) if len(values) else last(run, "images_per_s")


@dataclass(frozen=True)
class Measure:
    """A number of a run. ``more_is_better`` says which end of a sorted table is the first."""

    key: str
    title: str
    form: str
    of: Callable[[Run], float]
    more_is_better: bool = False
    is_time: bool = False


TOP1 = Measure("top1", "top-1 %", ".2f", lambda run: last(run, "val_acc1"), more_is_better=True)
TOP5 = Measure("top5", "top-5 %", ".2f", lambda run: last(run, "val_acc5"), more_is_better=True)
TIME = Measure("time", "training", ".1f", lambda run: last(run, "train_time_s"), is_time=True)
SPEED = Measure("speed", "images/s", ",.0f", images_per_s, more_is_better=True)
DISTANCE = Measure("distance", "distance", ".3g", lambda run: last(run, "consensus_distance"))
SENT = Measure("sent", "MB sent", ",.0f", lambda run: last(run, "sent_mb"))
PREDICTED = Measure("predicted", "predicted training", ".1f", lambda run: last(run, "predicted_time_s"), is_time=True)
MEASURES = (TOP1, TOP5, TIME, PREDICTED, SPEED, DISTANCE, SENT)


def time_to_accuracy(run: Run, target: float) -> float:
    """Seconds of training until the first evaluation at or above ``target`` percent; inf where it never came there."""
    times, accuracies = run.epochs.get("train_time_s"), run.epochs.get("val_acc1")
    return math.inf if times is None or accuracies is None else time_to(target, times, accuracies)


def num_val_images(run: Run) -> float:
    """That an accuracy is a share of; nan where the run does not say."""
    found = last(run, "num_val_images")
    return as_number(run.summary.get("num_images")) if math.isnan(found) else found


def values_of(runs: Sequence[Run], of: Callable[[Run], float]) -> list[float]:
    """The finite ones."""
    return [value for run in runs if math.isfinite(value := of(run))]


def over(runs: Sequence[Run], of: Callable[[Run], float]) -> Estimate | None:
    """An estimate of these runs; None where none of them has the number."""
    values = values_of(runs, of)
    return estimate(values) if values else None


@dataclass(frozen=True, eq=False)
class Comparison:
    """A group against its baseline, by pairs with the same seed; None for what no pair has."""

    group: Group
    baseline: Group
    seeds: list[int]
    """Of the pairs."""
    accuracy: Difference | None
    """In points of top-1."""
    speed_up: Estimate | None
    """The baseline's training time over ours."""
    speed_up_to_target: Estimate | None
    p: float = math.nan
    """For the accuracy, adjusted for all comparisons of the table; nan for fewer than six pairs."""


@dataclass(frozen=True, eq=False)
class Row:
    """A group and its numbers, over its completed runs."""

    group: Group
    estimates: dict[str, Estimate | None]
    """By the key of a measure, and ``target``: the time to it, of the runs that reached it."""
    image_deviation: float
    """How far top-1 moves with the choice of validation images; nan where their number is not known."""
    not_reached: list[Run] = field(default_factory=list)
    """Completed runs that never came to the target."""


@dataclass(frozen=True)
class Results:
    """All that a table shows.

    Attributes:
        rows: one for each group.
        comparisons: of the groups that have a baseline among the others.
        target: the accuracy, in percent, that times are taken to.
        baseline: what was asked for; empty without one.
        unpaired: groups that nothing could be compared with, and why.
    """

    rows: list[Row]
    comparisons: list[Comparison] = field(default_factory=list)
    target: float | None = None
    baseline: tuple[Choice, ...] = ()
    unpaired: list[tuple[Group, str]] = field(default_factory=list)


def results_of(groups: Sequence[Group], target: float | None = None, baseline: Sequence[Choice] = ()) -> Results:
    """Sum up groups, and compare them with a baseline where one is named.

    Raises:
        UnknownChoiceError: no group is such a baseline.
    """
    rows = [row_of(group, target) for group in groups]
    if not baseline:
        return Results(rows, target=target)
    comparisons, unpaired = compare(groups, baseline, target)
    return Results(rows, comparisons, target, tuple(baseline), unpaired)


def row_of(group: Group, target: float | None) -> Row:
    """Sum up one group."""
    estimates = {measure.key: over(group.completed, measure.of) for measure in MEASURES}
    not_reached = []
    if target is not None:
        estimates["target"] = over(group.completed, lambda run: time_to_accuracy(run, target))
        not_reached = [run for run in group.completed if math.isinf(time_to_accuracy(run, target))]
    return Row(group, estimates, _image_deviation(group, estimates["top1"]), not_reached)


def _image_deviation(group: Group, accuracy: Estimate | None) -> float:
    numbers = values_of(group.completed, num_val_images)
    return binomial_deviation(accuracy.mean, round(min(numbers))) if accuracy and numbers else math.nan


def compare(
    groups: Sequence[Group], baseline: Sequence[Choice], target: float | None
) -> tuple[list[Comparison], list[tuple[Group, str]]]:
    """Each group against the one that differs from it in the baseline's settings alone; or against the only one.

    Returns:
        The comparisons, with p adjusted for all of them; and groups without one, with the reason.
    """
    baselines = [group for group in groups if all(choice.fits(group.runs[0]) for choice in baseline)]
    if not baselines:
        raise UnknownChoiceError(f"--baseline {' '.join(map(str, baseline))}: no runs are so; {_there_are(groups)}")
    comparisons, unpaired = [], []
    for group in groups:
        if group in baselines:
            continue
        partner = _partner(group, baselines, {choice.key for choice in baseline})
        found = partner and _compare(group, partner, target)
        if found:
            comparisons.append(found)
        else:
            unpaired.append((group, "no completed run has a seed of the baseline's" if partner else "no such baseline"))
    return _adjusted(comparisons), unpaired


def _there_are(groups: Sequence[Group]) -> str:
    names = [group.name for group in groups]
    return f"there are {', '.join(names[:8])}{' and more' * (len(names) > 8)}"


def _partner(group: Group, baselines: Sequence[Group], varied: set[str]) -> Group | None:
    """The baseline with the same other settings; where there is only one, that one."""
    if len(baselines) == 1:
        return baselines[0]
    others = {key: value for key, value in group.labels.items() if key not in varied}
    alike = [one for one in baselines if {key: one.labels[key] for key in others} == others]
    return alike[0] if len(alike) == 1 else None


def _compare(group: Group, baseline: Group, target: float | None) -> Comparison | None:
    of_baseline = {run.seed: run for run in baseline.completed if run.seed is not None}
    pairs = [(run, of_baseline[run.seed]) for run in group.completed if run.seed in of_baseline]
    if not pairs:
        return None
    accuracy = _both(pairs, TOP1.of)
    return Comparison(
        group,
        baseline,
        [run.seed for run, _ in pairs if run.seed is not None],
        paired_difference(*accuracy) if accuracy else None,
        _speed_up(pairs, TIME.of),
        None if target is None else _speed_up(pairs, lambda run: time_to_accuracy(run, target)),
    )


def _both(pairs: Sequence[tuple[Run, Run]], of: Callable[[Run], float]) -> tuple[list[float], list[float]] | None:
    """Ours and the baseline's, of the pairs in which both have the number; None where none has."""
    found = [(of(ours), of(baseline)) for ours, baseline in pairs]
    finite = [pair for pair in found if all(map(math.isfinite, pair))]
    return ([ours for ours, _ in finite], [baseline for _, baseline in finite]) if finite else None


def _speed_up(pairs: Sequence[tuple[Run, Run]], of: Callable[[Run], float]) -> Estimate | None:
    both = _both([(ours, baseline) for ours, baseline in pairs if of(ours) > 0 and of(baseline) > 0], of)
    return paired_ratio(both[1], both[0]) if both else None


def _adjusted(comparisons: Sequence[Comparison]) -> list[Comparison]:
    raw = [comparison.accuracy.p if comparison.accuracy else math.nan for comparison in comparisons]
    return [
        replace(comparison, p=p if _has_p(comparison) else math.nan)
        for comparison, p in zip(comparisons, holm(raw), strict=True)
    ]


def _has_p(comparison: Comparison) -> bool:
    return comparison.accuracy is not None and comparison.accuracy.estimate.num_values >= MIN_PAIRS_FOR_P


def sort_rows(results: Results, key: str, *, reverse: bool = False) -> Results:
    """The rows by a number, the best first, or by a setting; those without the number stay at the end.

    Args:
        results: what was measured.
        key: of a measure, ``target``, ``seeds``, or a setting in which the groups differ.
        reverse: the worst first.

    Raises:
        UnknownChoiceError: it is none of these.
    """
    rows = results.rows
    settings = rows[0].group.labels if rows else {}
    if key in settings:
        ordered = sorted(rows, key=lambda row: natural(row.group.labels[key]), reverse=reverse)
        return replace(results, rows=ordered)
    measures = {measure.key: measure for measure in MEASURES}
    known = [*measures, "seeds", *(["target"] if results.target is not None else []), *settings]
    if key not in known:
        raise UnknownChoiceError(f"--sort {key}: {nearest(key, known)}")
    falls = (key == "seeds" or (key in measures and measures[key].more_is_better)) != reverse
    numbers = {row: _number_to_sort_by(row, key) for row in rows}
    there = sorted((row for row in rows if not math.isnan(numbers[row])), key=lambda row: numbers[row], reverse=falls)
    return replace(results, rows=[*there, *(row for row in rows if math.isnan(numbers[row]))])


def _number_to_sort_by(row: Row, key: str) -> float:
    if key == "seeds":
        return len(row.group.completed)
    found = row.estimates[key]
    return found.mean if found else math.nan
