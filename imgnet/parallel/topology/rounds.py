"""Rounds of averaging as pure data, and what each worker does in them.

A round is a matrix W: after it worker i holds ``sum_j W[i, j] * x_j``. It is written as disjoint groups (one collective
each), as weighted neighbour lists, or as weighted lists of receivers. The first two are symmetric and doubly
stochastic: the mean stays, and so do workers that are equal. A directed one is column-stochastic: the mean stays, but
what a worker takes need not add up to 1, for which push-sum corrects. Nothing here knows of processes or tensors.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Matrix: TypeAlias = NDArray[np.float64]
TOLERANCE = 1e-12
"""Largest error of a sum of weights that is taken for rounding."""


@dataclass(frozen=True)
class Group:
    """Workers that average with one another, each with all.

    Each member keeps ``weight`` of its own parameters and takes ``(1 - weight) / (n - 1)`` of every other one's, as in
    ``decent_dp``; ``1 / n`` is the plain mean. A group of one is idle, and its weight is 1.
    """

    ranks: tuple[int, ...]
    """Ascending."""
    weight: float

    @property
    def is_uniform(self) -> bool:
        """Whether the result is the plain mean, which one all-reduce gives."""
        return abs(self.weight * len(self.ranks) - 1.0) <= TOLERANCE


@dataclass(frozen=True)
class Neighbours:
    """One worker's part in a neighbour round: ``x <- self_weight * x + sum(weight * x_peer)``."""

    peers: tuple[tuple[int, float], ...]
    """(rank, weight) of each, ascending by rank; ``peer`` has this worker in its own list with the same weight."""

    @property
    def self_weight(self) -> float:
        """What the worker keeps of its own, in [0, 1]."""
        return 1.0 - sum(weight for _, weight in self.peers)


@dataclass(frozen=True)
class GroupRound:
    """Disjoint groups in which every rank is exactly once."""

    groups: tuple[Group, ...]

    @property
    def is_idle(self) -> bool:
        """Whether nobody communicates."""
        return all(len(group.ranks) == 1 for group in self.groups)

    def part(self, rank: int) -> Group | None:
        """What ``rank`` does in this round; None: nothing."""
        group = next(group for group in self.groups if rank in group.ranks)
        return group if len(group.ranks) > 1 else None


@dataclass(frozen=True)
class NeighbourRound:
    """For each rank its (peer, weight) list, ascending by peer; symmetric."""

    neighbours: tuple[tuple[tuple[int, float], ...], ...]

    @property
    def is_idle(self) -> bool:
        """Whether nobody communicates."""
        return not any(self.neighbours)

    def part(self, rank: int) -> Neighbours | None:
        """What ``rank`` does in this round; None: nothing."""
        peers = self.neighbours[rank]
        return Neighbours(peers) if peers else None


@dataclass(frozen=True)
class Arrows:
    """One worker's part in a directed round: ``x <- self_weight * x + sum(weight * x_sender)``."""

    receivers: tuple[tuple[int, float], ...]
    """(rank, weight) of each worker that this one sends its ``x`` to, ascending by rank."""
    senders: tuple[tuple[int, float], ...]
    """(rank, weight) of each worker whose ``x`` this one gets, ascending by rank."""

    @property
    def self_weight(self) -> float:
        """What the worker keeps of its own, in (0, 1]: what it does not give away."""
        return 1.0 - sum(weight for _, weight in self.receivers)


@dataclass(frozen=True)
class DirectedRound:
    """For each rank its (receiver, weight) list, ascending by receiver; nobody gives all of its own away.

    The matrix is column-stochastic; where each worker gives as much as it takes it is doubly stochastic as well.
    """

    receivers: tuple[tuple[tuple[int, float], ...], ...]

    @property
    def is_idle(self) -> bool:
        """Whether nobody communicates."""
        return not any(self.receivers)

    def part(self, rank: int) -> Arrows | None:
        """What ``rank`` does in this round; None: nothing."""
        senders = tuple(
            (sender, weight)
            for sender, receivers in enumerate(self.receivers)
            for receiver, weight in receivers
            if receiver == rank
        )
        return Arrows(self.receivers[rank], senders) if self.receivers[rank] or senders else None


Round: TypeAlias = GroupRound | NeighbourRound | DirectedRound
Part: TypeAlias = Group | Neighbours | Arrows | None


def mixing_matrix(round_: Round, world_size: int) -> Matrix:
    """The matrix of a round, float64 of shape (world_size, world_size): row i is what worker i takes of each.

    Doubly stochastic and symmetric for groups and neighbours, column-stochastic for a directed round.
    """
    matrix = np.zeros((world_size, world_size))
    if isinstance(round_, GroupRound):
        for group in round_.groups:
            members = np.array(group.ranks)
            others = (1.0 - group.weight) / max(len(members) - 1, 1)
            matrix[np.ix_(members, members)] = others
            matrix[members, members] = group.weight
        return matrix
    for rank, peers in enumerate(lists_of(round_)):
        for peer, weight in peers:
            matrix[rank, peer] = weight
        matrix[rank, rank] = 1.0 - sum(weight for _, weight in peers)
    return matrix.T if isinstance(round_, DirectedRound) else matrix


def lists_of(round_: NeighbourRound | DirectedRound) -> tuple[tuple[tuple[int, float], ...], ...]:
    """For each rank the workers that it sends to, with the weights that its values have there."""
    return round_.neighbours if isinstance(round_, NeighbourRound) else round_.receivers


def uniform(ranks: Iterable[int], self_weight: float | None = None) -> Group:
    """A group that averages, or whose members keep ``self_weight``. One rank alone keeps all."""
    members = tuple(sorted(ranks))
    if len(members) == 1 or self_weight is None:
        return Group(members, 1.0 / len(members))
    return Group(members, self_weight)


def group_round(groups: Iterable[Group], world_size: int) -> GroupRound:
    """A round of ``groups`` in which all ranks that are in none of them rest."""
    given = tuple(groups)
    named = {rank for group in given for rank in group.ranks}
    return GroupRound((*given, *(uniform([rank]) for rank in range(world_size) if rank not in named)))


def idle_round(world_size: int) -> GroupRound:
    """A round without communication."""
    return group_round((), world_size)


def neighbour_round(edges: Iterable[tuple[int, int, float]], world_size: int) -> NeighbourRound:
    """A round from undirected edges (rank, rank, weight), each pair once."""
    neighbours: list[list[tuple[int, float]]] = [[] for _ in range(world_size)]
    for one, other, weight in edges:
        neighbours[one].append((other, weight))
        neighbours[other].append((one, weight))
    return NeighbourRound(tuple(tuple(sorted(peers)) for peers in neighbours))


def directed_round(arrows: Iterable[tuple[int, int, float]], world_size: int) -> DirectedRound:
    """A round from arrows (sender, receiver, weight of the sender's own that the receiver adds), each pair once."""
    receivers: list[list[tuple[int, float]]] = [[] for _ in range(world_size)]
    for sender, receiver, weight in arrows:
        receivers[sender].append((receiver, weight))
    return DirectedRound(tuple(tuple(sorted(given)) for given in receivers))


def edges_of(round_: Round) -> Iterator[tuple[int, int]]:
    """Pairs (sender, receiver) of a round; where two exchange parameters, both (i, j) and (j, i)."""
    if not isinstance(round_, GroupRound):
        yield from ((rank, peer) for rank, peers in enumerate(lists_of(round_)) for peer, _ in peers)
        return
    for group in round_.groups:
        yield from ((rank, peer) for rank in group.ranks for peer in group.ranks if rank != peer)
