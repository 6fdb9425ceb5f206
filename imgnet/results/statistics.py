"""What a few seeds say, and no more: intervals, paired differences, and what a bounded validation set adds.

Pure functions of numbers. Accuracies are in percent; every interval is a Student t interval, which holds its level for
three seeds as for thirty where a bootstrap of the same three numbers holds 76 % of the promised 95.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit

LEVEL = 0.95
"""Of every interval that is shown."""
MIN_PAIRS_FOR_P = 6
"""Below it no p is shown: by signs alone, without trust in a normal distribution, five pairs give at best 2 / 2^5."""

ROUNDING = 1e-12
"""Relative; what is nearer to each other is the same."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean over runs with its interval; ``low`` and ``high`` are nan where the values do not show how they spread."""

    mean: float
    low: float
    high: float
    deviation: float
    """Of one value (of a sample); nan for a single one."""
    num_values: int

    @property
    def half_width(self) -> float:
        """Of the interval."""
        return (self.high - self.low) / 2


def estimate(values: ArrayLike, level: float = LEVEL) -> Estimate:
    """Mean and t interval; the interval is nan for a single value, and where all are alike.

    Raises:
        ValueError: there is no value, or one that is not finite.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or len(sample) == 0 or not np.isfinite(sample).all():
        raise ValueError(f"finite numbers are needed, at least one: {values}")
    mean, deviation = float(sample.mean()), _deviation(sample)
    half = t_quantile(len(sample), level) * deviation / math.sqrt(len(sample)) if deviation > 0 else math.nan
    return Estimate(mean, mean - half, mean + half, deviation, len(sample))


def _deviation(sample: Floats) -> float:
    """Of a sample; exactly 0 where all are alike but for rounding, which would pass for a spread."""
    if len(sample) < 2:
        return math.nan
    return 0.0 if np.ptp(sample) <= ROUNDING * np.abs(sample).max() else float(sample.std(ddof=1))


def t_quantile(num_values: int, level: float = LEVEL) -> float:
    """How many standard errors of the mean an interval reaches to either side."""
    return float(stdtrit(num_values - 1, 0.5 + level / 2))


@dataclass(frozen=True)
class Difference:
    """Of pairs of runs with the same seed."""

    estimate: Estimate
    """Of ours minus the baseline's."""
    p: float
    """Of a two-sided paired t test, for this comparison alone; nan where the interval is."""


def paired_difference(ours: ArrayLike, baseline: ArrayLike) -> Difference:
    """Ours minus the baseline's, pair by pair; what a seed does to both cancels out."""
    ours, baseline = np.asarray(ours, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    unit = ROUNDING * max(np.abs(ours).max(initial=0.0), np.abs(baseline).max(initial=0.0)) or 1.0
    differences = estimate(np.round((ours - baseline) / unit) * unit)
    if not differences.deviation > 0:
        return Difference(differences, math.nan)
    t = differences.mean / (differences.deviation / math.sqrt(differences.num_values))
    return Difference(differences, float(2 * stdtr(differences.num_values - 1, -abs(t))))


def paired_ratio(ours: ArrayLike, baseline: ArrayLike) -> Estimate:
    """Ours over the baseline's, pair by pair: geometric mean, and the t interval of the logarithms raised again.

    ``deviation`` is that of the logarithms.
    """
    logs = estimate(np.log(np.asarray(ours, dtype=np.float64) / np.asarray(baseline, dtype=np.float64)))
    return Estimate(math.exp(logs.mean), math.exp(logs.low), math.exp(logs.high), logs.deviation, logs.num_values)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted for so many comparisons, in the order given (Holm 1979). A nan stays one and counts as no comparison."""
    order = [index for index in np.argsort(p_values, kind="stable") if not math.isnan(p_values[index])]
    adjusted, largest = [math.nan] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def binomial_deviation(accuracy: float, num_images: int) -> float:
    """How far an accuracy moves, by one standard deviation, when other images of the same kind are drawn. In percent.

    All runs share the images, so more seeds do not make it smaller; in a paired difference much of it cancels out.
    """
    share = min(max(accuracy / 100, 0.0), 1.0)
    return 100 * math.sqrt(share * (1 - share) / num_images)


def time_to(target: float, times: ArrayLike, accuracies: ArrayLike) -> float:
    """The time of the first evaluation that reaches the target; inf where none does. Nothing is interpolated."""
    times, accuracies = np.asarray(times, dtype=np.float64), np.asarray(accuracies, dtype=np.float64)
    reached = np.flatnonzero(accuracies >= target)
    return float(times[reached[0]]) if len(reached) else math.inf


def on_common_range(curves: Sequence[tuple[Floats, Floats]], most_points: int = 256) -> tuple[Floats, Floats]:
    """Curves at the same places, between the last of their beginnings and the first of their ends.

    Args:
        curves: pairs of ``x``, increasing, and ``y``.
        most_points: where the curves have more places than these together, so many evenly spaced ones are taken.

    Returns:
        The places ``[k]``, none where no range is common, and the values ``[len(curves), k]``. They are interpolated
        between points of a curve, never beyond its ends.
    """
    first, last = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    places = np.unique(np.concatenate([x for x, _ in curves]))
    places = places[(places >= first) & (places <= last)]
    if len(places) > most_points:
        places = np.linspace(first, last, most_points)
    return places, np.array([np.interp(places, x, y) for x, y in curves])


def interval_of_columns(values: Floats, level: float = LEVEL) -> tuple[Floats, Floats, Floats]:
    """Mean, low and high of each column of ``[n, k]``; low and high are nan for ``n`` = 1."""
    mean, num_values = values.mean(axis=0), len(values)
    if num_values == 1:
        return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    half = t_quantile(num_values, level) * values.std(axis=0, ddof=1) / math.sqrt(num_values)
    return mean, mean - half, mean + half


def pareto_front(costs: ArrayLike, gains: ArrayLike) -> list[int]:
    """Indices of the points that no other one beats in both, by rising cost."""
    costs, gains = np.asarray(costs, dtype=np.float64), np.asarray(gains, dtype=np.float64)
    front: list[int] = []
    for index in np.lexsort((-gains, costs)):
        if not front or gains[index] > gains[front[-1]]:
            front.append(int(index))
    return front
