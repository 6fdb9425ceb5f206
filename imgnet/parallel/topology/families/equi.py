"""EquiTopo: shifts drawn at random, with a rate of consensus that does not depend on the number of workers.

(Song, Li, Jin, Shi, Yan, Yin, Yuan, NeurIPS 2022, arXiv 2210.07881.) A shift ``u`` from 1 to n - 1, in which each takes
(n-1)/n of what the worker ``u`` ranks before it has, is the exact average in the mean over all u. All four families are
doubly stochastic; the undirected ones are symmetric as well.
"""

from collections import defaultdict
from collections.abc import Iterator
from math import gcd

from imgnet.parallel.topology.families.drawn import draws, refuse_unconnected
from imgnet.parallel.topology.families.layout import Layout, Rounds, refuse_below
from imgnet.parallel.topology.rounds import GroupRound, directed_round, group_round, neighbour_round, uniform

MOST_DRAWS = 1000
"""Of the shifts of a static graph, until one connects all workers, as most do."""


def equi_static(layout: Layout, *, num_shifts: int | None = None, seed: int = 0) -> Rounds:
    """U-EquiStatic: ``num_shifts`` shifts, each in both directions, in every step.

    By default as many as a worker of the static exponential graph has peers, log2(n) rounded up, as where the paper
    compares the two. Shifts are drawn with replacement; a worker has at most two peers for each.
    """
    size = layout.world_size
    weights: dict[tuple[int, int], float] = defaultdict(float)
    for one, other, weight in _static_arrows("equi-static", size, num_shifts, seed):
        weights[min(one, other), max(one, other)] += weight / 2
    return (neighbour_round(((one, other, weight) for (one, other), weight in weights.items()), size),)


def directed_equi_static(layout: Layout, *, num_shifts: int | None = None, seed: int = 0) -> Rounds:
    """D-EquiStatic: ``num_shifts`` shifts in every step; see ``equi_static``. At most one receiver for each."""
    size = layout.world_size
    weights: dict[tuple[int, int], float] = defaultdict(float)
    for sender, receiver, weight in _static_arrows("directed-equi-static", size, num_shifts, seed):
        weights[sender, receiver] += weight
    return (directed_round(((*arrow, weight) for arrow, weight in weights.items()), size),)


def _static_arrows(name: str, size: int, num_shifts: int | None, seed: int) -> Iterator[tuple[int, int, float]]:
    refuse_below(1, name, num_shifts=num_shifts)
    number = (size - 1).bit_length() if num_shifts is None else num_shifts
    candidates = draws(name, seed, MOST_DRAWS, number) % (size - 1) + 1
    shifts = next(drawn for drawn in candidates.tolist() if gcd(size, *drawn) == 1)
    weight = (size - 1) / size / number
    return ((rank, (rank + shift) % size, weight) for shift in shifts for rank in range(size))


def equi_dyn(layout: Layout, *, seed: int = 0, num_rounds: int = 64, eta: float = 0.5) -> Rounds:
    """OU-EquiDyn: pairs at a distance that is drawn anew for each of ``num_rounds`` rounds, out of all n - 1.

    From a rank that is drawn too, each that is still alone pairs with the one at that distance, if that is alone as
    well; the others rest. A worker gives and takes ``eta (n-1)/n``, with ``eta`` in (0, 1]; 0.5 in the paper.
    """
    _refuse_dyn("equi-dyn", num_rounds, eta)
    size = layout.world_size
    drawn = draws("equi-dyn", seed, num_rounds, 2)
    keeps = 1.0 - eta * (size - 1) / size
    rounds = tuple(_pairs(int(shift) % (size - 1) + 1, int(first) % size, size, keeps) for shift, first in drawn)
    refuse_unconnected("equi-dyn", rounds, size)
    return rounds


def _pairs(shift: int, first: int, size: int, keeps: float) -> GroupRound:
    alone, groups = set(range(size)), []
    for place in range(size):
        pair = {(first + place) % size, (first + place + shift) % size}
        if pair <= alone:
            alone -= pair
            groups.append(uniform(pair, keeps))
    return group_round(groups, size)


def directed_equi_dyn(layout: Layout, *, seed: int = 0, num_rounds: int = 64, eta: float = 0.5) -> Rounds:
    """OD-EquiDyn: each sends ``eta (n-1)/n`` of its own as far as is drawn for the round. See ``equi_dyn``."""
    _refuse_dyn("directed-equi-dyn", num_rounds, eta)
    size = layout.world_size
    shifts = draws("directed-equi-dyn", seed, num_rounds) % (size - 1) + 1
    given = eta * (size - 1) / size
    rounds = tuple(
        directed_round(((rank, (rank + shift) % size, given) for rank in range(size)), size)
        for shift in shifts.tolist()
    )
    refuse_unconnected("directed-equi-dyn", rounds, size)
    return rounds


def _refuse_dyn(name: str, num_rounds: int, eta: float) -> None:
    refuse_below(1, name, num_rounds=num_rounds)
    if not 0.0 < eta <= 1.0:
        raise ValueError(f"topology={name} has eta={eta}; it must be above 0 and at most 1")
