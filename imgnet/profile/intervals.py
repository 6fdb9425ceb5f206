"""Sets of moments, as sorted intervals that do not touch. Times in any unit."""

from collections.abc import Iterable, Iterator

Intervals = list[tuple[float, float]]


def union(parts: Iterable[tuple[float, float]]) -> Intervals:
    """The moments that lie in any of these intervals, which may come in any order and overlap."""
    joined: Intervals = []
    for start, end in sorted(parts):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        elif end > start:
            joined.append((start, end))
    return joined


def intersection(some: Intervals, others: Intervals) -> Intervals:
    """The moments that lie in both sets."""
    return list(_common(some, others))


def _common(some: Intervals, others: Intervals) -> Iterator[tuple[float, float]]:
    left, right = 0, 0
    while left < len(some) and right < len(others):
        start, end = max(some[left][0], others[right][0]), min(some[left][1], others[right][1])
        if start < end:
            yield start, end
        if some[left][1] < others[right][1]:
            left += 1
        else:
            right += 1


def difference(some: Intervals, others: Intervals) -> Intervals:
    """The moments of the first set that are not in the second."""
    if not some:
        return []
    edges = [some[0][0], *(edge for interval in others for edge in interval), some[-1][1]]
    gaps = [(start, end) for start, end in zip(edges[::2], edges[1::2], strict=True) if start < end]
    return intersection(some, gaps)


def length(some: Intervals) -> float:
    """How long the set is."""
    return sum(end - start for start, end in some)
