"""Fixed graphs whose workers have different numbers of neighbours: star, grid, torus."""

from math import isqrt

import numpy as np

from imgnet.parallel.topology.families.layout import Layout, Rounds
from imgnet.parallel.topology.rounds import NeighbourRound, neighbour_round


def star(layout: Layout) -> Rounds:
    """Rank 0 averages with everybody: each other one gives and takes 1/n of rank 0's, and keeps the rest of its own."""
    size = layout.world_size
    return (metropolis([(0, rank) for rank in range(1, size)], size),)


def grid(layout: Layout, *, num_rows: int | None = None) -> Rounds:
    """A grid of ``num_rows`` rows, by default as near to a square as the number of workers allows.

    Rank r stands in row ``r // num_columns``. Metropolis weights (Xiao, Boyd and Lall, IPSN 2005).
    """
    return (_lattice("grid", layout.world_size, num_rows, wraps=False),)


def torus(layout: Layout, *, num_rows: int | None = None) -> Rounds:
    """A grid whose rows and columns close to rings, with Metropolis weights. See ``grid``."""
    return (_lattice("torus", layout.world_size, num_rows, wraps=True),)


def _lattice(name: str, size: int, num_rows: int | None, *, wraps: bool) -> NeighbourRound:
    rows = _squarest(size) if num_rows is None else num_rows
    if rows < 1 or size % rows:
        divisors = [number for number in range(1, size + 1) if size % number == 0]
        raise ValueError(f"topology={name} has num_rows={rows}; with {size} workers it must be one of {divisors}")
    columns = size // rows
    edges: set[tuple[int, int]] = set()
    for row, column in np.ndindex(rows, columns):
        for below, right in ((row + 1, column), (row, column + 1)):
            if wraps or (below < rows and right < columns):
                edges.add((row * columns + column, below % rows * columns + right % columns))
    return metropolis([(one, other) for one, other in edges if one != other], size)


def _squarest(size: int) -> int:
    return max(rows for rows in range(1, isqrt(size) + 1) if size % rows == 0)


def metropolis(edges: list[tuple[int, int]], size: int) -> NeighbourRound:
    """Metropolis weights ``1 / (1 + max(degree, peer's degree))`` on undirected edges."""
    distinct = sorted({(min(edge), max(edge)) for edge in edges})
    degrees = np.bincount(np.array(distinct).ravel(), minlength=size)
    return neighbour_round(((one, other, 1.0 / (1 + int(max(degrees[[one, other]])))) for one, other in distinct), size)
