"""The families of topologies: each a function from the workers and nodes there are to the rounds of one period.

Every family is built for every number of workers and nodes, or refuses with a ValueError that says what would be right.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import isqrt

import numpy as np

from imgnet.parallel.topology.analysis import is_connected
from imgnet.parallel.topology.rounds import GroupRound, NeighbourRound, Round, neighbour_round, uniform

Rounds = tuple[Round, ...]


@dataclass(frozen=True)
class Layout:
    """Two or more workers, and how many of them share a node (a divisor of ``world_size``)."""

    world_size: int
    workers_per_node: int

    @property
    def num_nodes(self) -> int:
        """Number of nodes."""
        return self.world_size // self.workers_per_node

    def workers(self, nodes: Sequence[int]) -> list[int]:
        """Ranks on ``nodes``."""
        return [node * self.workers_per_node + local for node in nodes for local in range(self.workers_per_node)]


Family = Callable[..., Rounds]
"""Takes a Layout and keyword-only options with defaults."""


def complete(layout: Layout) -> Rounds:
    """Everybody averages with everybody in each step: exact consensus in one round."""
    return (GroupRound((uniform(range(layout.world_size)),)),)


def ring(layout: Layout, *, self_weight: float | None = None) -> Rounds:
    """One neighbour at a time: round 0 pairs (0,1), (2,3), ...; round 1 pairs (1,2), ..., (n-1,0).

    With an odd number of workers the last three of each round form one group, (n-3,n-2,n-1) and (n-2,n-1,0), so that
    nobody idles. ``self_weight``, in (0, 1), is what each keeps of its own; by default 1/2 (1/3 in the group of three).
    """
    _check_self_weight("ring", self_weight)
    return tuple(
        GroupRound(tuple(uniform(pair, self_weight) for pair in pairs)) for pairs in ring_pairs(layout.world_size)
    )


def ring_pairs(size: int) -> tuple[list[list[int]], list[list[int]]]:
    """Members of the groups in the two rounds of a one-peer ring of ``size`` >= 2, in ring order."""
    return _pairs_from(0, size), _pairs_from(1, size)


def _pairs_from(start: int, size: int) -> list[list[int]]:
    order = [(start + offset) % size for offset in range(size)]
    pairs = [order[first : first + 2] for first in range(0, size - size % 2, 2)]
    if size % 2:
        pairs[-1].append(order[-1])
    return pairs


def static_ring(layout: Layout, *, self_weight: float | None = None) -> Rounds:
    """Both neighbours in every step (Lian et al., NeurIPS 2017). ``self_weight``, in (0, 1): what each keeps.

    By default all weights are the same: 1/3, or 1/2 where there are two workers and so a single neighbour.
    """
    _check_self_weight("static-ring", self_weight)
    size = layout.world_size
    edges = {(min(rank, peer), max(rank, peer)) for rank in range(size) for peer in [(rank + 1) % size]}
    num_neighbours = min(2, size - 1)
    given = num_neighbours / (num_neighbours + 1) if self_weight is None else 1.0 - self_weight
    return (neighbour_round(((one, other, given / num_neighbours) for one, other in sorted(edges)), size),)


def exp(layout: Layout) -> Rounds:
    """One-peer exponential graph: exact consensus in as many rounds as the world size has prime factors.

    For 2^k workers round i pairs the ranks that differ in bit i alone, as ``decent_dp``'s ``one-peer-exp`` does: it
    pairs each free rank r in turn with r + 2^i, which never wraps around. Otherwise ranks are written in mixed radix,
    with the prime factors ascending, and round i averages groups of ranks that differ in digit i alone: the averages
    of digits commute and together are the average of all. (One-peer exponential graphs: Ying et al., NeurIPS 2021;
    the factors: Takezawa et al., "Beyond exponential graph", NeurIPS 2023.)
    """
    return tuple(GroupRound(tuple(map(uniform, groups))) for groups in digit_groups(layout.world_size))


def digit_groups(size: int) -> Iterator[list[list[int]]]:
    """For each mixed-radix digit of 0..size-1, lowest first: the groups that differ in that digit alone."""
    stride = 1
    for factor in prime_factors(size):
        firsts = [number for number in range(size) if number // stride % factor == 0]
        yield [[first + digit * stride for digit in range(factor)] for first in firsts]
        stride *= factor


def prime_factors(number: int) -> list[int]:
    """Prime factors with multiplicity, ascending; none for 1."""
    factors: list[int] = []
    divisor = 2
    while number > 1:
        while number % divisor == 0:
            factors.append(divisor)
            number //= divisor
        divisor += 1
    return factors


def alternating_exp_ring(layout: Layout) -> Rounds:
    """Within nodes and between pairs of nodes by turns (arXiv 2410.11998); pairs of nodes form an exponential graph.

    For each digit of the node number (as in ``exp``) there are two rounds. In one of them a group of nodes averages
    all its workers, in the other each of its nodes averages its own; every second group of nodes has them in the
    other order, so that only half of the nodes use the network at a time. For 2^k nodes these are ``decent_dp``'s
    rounds; other numbers have groups of a prime number of nodes. Exact consensus in twice as many rounds as the
    number of nodes has prime factors, or sooner.
    """
    _refuse_fewer("alternating-exp-ring", layout.num_nodes, "nodes", "use topology=exp or complete on one node")
    _refuse_fewer(
        "alternating-exp-ring",
        layout.workers_per_node,
        "workers per node",
        "with one, topology=exp does the same without its empty rounds",
    )
    rounds: list[Round] = []
    for groups in digit_groups(layout.num_nodes):
        rounds += [_alternate(layout, groups, 0), _alternate(layout, groups, 1)]
    return tuple(rounds)


def _alternate(layout: Layout, node_groups: list[list[int]], half: int) -> GroupRound:
    members: list[list[int]] = []
    for position, nodes in enumerate(node_groups):
        together = position % 2 != half
        members += [layout.workers(nodes)] if together else [layout.workers([node]) for node in nodes]
    return GroupRound(tuple(map(uniform, members)))


def hierarchical(layout: Layout) -> Rounds:
    """Each node is one member of a one-peer ring of nodes: all workers of two neighbouring nodes average exactly.

    The matrix is the Kronecker product of the ring's and the plain mean of a node, so that the workers of a node
    always agree after a round. Over the network each group moves as much as one all-reduce, whatever the workers per
    node. Three nodes at the end of an odd ring of nodes form one group, as in ``ring``. On one node it is
    ``complete``; with one worker per node it is ``ring``.
    """
    if layout.num_nodes == 1:
        return complete(layout)
    pairs = ring_pairs(layout.num_nodes)
    return tuple(GroupRound(tuple(uniform(layout.workers(nodes)) for nodes in part)) for part in pairs)


def random(layout: Layout, *, seed: int = 0, num_rounds: int = 64, self_weight: float | None = None) -> Rounds:
    """A perfect matching drawn anew for each of ``num_rounds`` rounds; one worker idles where their number is odd.

    (Randomised gossip: Boyd et al., 2006.) The same ``seed`` (0 or more) gives the same rounds on every machine.
    ``self_weight``, in (0, 1), is what each keeps of its own; by default 1/2.
    """
    _check_self_weight("random", self_weight)
    if seed < 0:
        raise ValueError(f"topology=random has seed={seed}; it must be 0 or more")
    if num_rounds < 1:
        raise ValueError(f"topology=random has num_rounds={num_rounds}; it must be 1 or more")
    # numpy keeps the raw output of its bit generators the same for ever, but not that of its shuffles.
    bits = np.random.PCG64(seed).random_raw((num_rounds, layout.world_size))
    rounds = tuple(_matching(order, self_weight) for order in np.argsort(bits, axis=1, kind="stable").tolist())
    if not is_connected(rounds, layout.world_size):
        raise ValueError(f"topology=random with num_rounds={num_rounds} leaves workers unconnected; draw more rounds")
    return rounds


def _matching(order: list[int], self_weight: float | None) -> GroupRound:
    pairs = sorted(sorted(order[first : first + 2]) for first in range(0, len(order), 2))
    return GroupRound(tuple(uniform(pair, self_weight) for pair in pairs))


def star(layout: Layout) -> Rounds:
    """Rank 0 averages with everybody: each other one gives and takes 1/n of rank 0's, and keeps the rest of its own."""
    size = layout.world_size
    return (metropolis([(0, rank) for rank in range(1, size)], size),)


def grid(layout: Layout, *, num_rows: int | None = None) -> Rounds:
    """A grid of ``num_rows`` rows, by default as near to a square as the number of workers allows.

    Rank r stands in row ``r // num_columns``. Metropolis-Hastings weights (Xiao and Boyd, 2004).
    """
    return (_lattice("grid", layout.world_size, num_rows, wraps=False),)


def torus(layout: Layout, *, num_rows: int | None = None) -> Rounds:
    """A grid whose rows and columns close to rings, with Metropolis-Hastings weights. See ``grid``."""
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
    """Metropolis-Hastings weights ``1 / (1 + max(degree, peer's degree))`` on undirected edges."""
    distinct = sorted({(min(edge), max(edge)) for edge in edges})
    degrees = np.bincount(np.array(distinct).ravel(), minlength=size)
    return neighbour_round(((one, other, 1.0 / (1 + int(max(degrees[[one, other]])))) for one, other in distinct), size)


def _check_self_weight(name: str, self_weight: float | None) -> None:
    if self_weight is not None and not 0.0 < self_weight < 1.0:
        raise ValueError(f"topology={name} has self_weight={self_weight}; it must be above 0 and below 1")


def _refuse_fewer(name: str, value: int, things: str, advice: str) -> None:
    if value < 2:
        raise ValueError(f"topology={name} needs 2 or more {things}; cluster has {value} ({advice})")
