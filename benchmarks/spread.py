"""How figures of several rounds are written, the same in all benchmarks."""

from collections.abc import Sequence
from statistics import median


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Median, least and most: ``0.83 (0.80 to 0.85)``; one value alone."""
    middle = format(median(values), form)
    if len(values) == 1:
        return middle
    return f"{middle} ({format(min(values), form)} to {format(max(values), form)})"
