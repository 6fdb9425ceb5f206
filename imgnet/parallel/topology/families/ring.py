"""Rings: one neighbour at a time, all in every step, or one direction only."""

from imgnet.parallel.topology.families.layout import Layout, Rounds, refuse_below, refuse_share
from imgnet.parallel.topology.rounds import GroupRound, directed_round, neighbour_round, uniform


def ring(layout: Layout, *, self_weight: float | None = None) -> Rounds:
    """One neighbour at a time: round 0 pairs (0,1), (2,3), ...; round 1 pairs (1,2), ..., (n-1,0).

    With an odd number of workers the last three of each round form one group, (n-3,n-2,n-1) and (n-2,n-1,0), so that
    nobody idles. ``self_weight``, in (0, 1), is what each keeps of its own; by default 1/2 (1/3 in the group of three).
    """
    refuse_share("ring", self_weight=self_weight)
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


def static_ring(layout: Layout, *, neighbours: int = 1, self_weight: float | None = None) -> Rounds:
    """``neighbours`` on each side in every step (one: Lian et al., NeurIPS 2017).

    ``self_weight``, in (0, 1), is what each keeps of its own; the neighbours have equal shares of the rest. By default
    all weights are the same, ``1 / (2 * neighbours + 1)``. Where the two sides meet, the worker opposite counts once.
    """
    refuse_below(1, "static-ring", neighbours=neighbours)
    refuse_share("static-ring", self_weight=self_weight)
    size = layout.world_size
    if neighbours > size // 2:
        raise ValueError(
            f"topology=static-ring has neighbours={neighbours}; {size} workers have at most {size // 2} on each side"
        )
    reach = range(1, neighbours + 1)
    edges = {(min(rank, peer), max(rank, peer)) for rank in range(size) for peer in [(rank + d) % size for d in reach]}
    num_peers = min(2 * neighbours, size - 1)
    given = num_peers / (num_peers + 1) if self_weight is None else 1.0 - self_weight
    return (neighbour_round(((one, other, given / num_peers) for one, other in sorted(edges)), size),)


def directed_ring(layout: Layout) -> Rounds:
    """Each keeps half of its own and sends it to the next one: rank r to r + 1, the last one to rank 0."""
    size = layout.world_size
    return (directed_round(((rank, (rank + 1) % size, 0.5) for rank in range(size)), size),)
