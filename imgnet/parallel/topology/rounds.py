"""Rounds of averaging as pure data, and what each worker does in them.

A round is a doubly stochastic matrix W: after it worker i holds ``sum_j W[i, j] * x_j``. It is written either as
disjoint groups (one collective each) or as weighted neighbour lists. Nothing here knows of processes or tensors.
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


Round: TypeAlias = GroupRound | NeighbourRound
Part: TypeAlias = Group | Neighbours | None


@dataclass(frozen=True)
class Topology:
    """Rounds of averaging, one after each optimizer step, repeated for ever. Ranks of a node are contiguous."""

    name: str
    world_size: int
    workers_per_node: int
    rounds: tuple[Round, ...]

    def __post_init__(self) -> None:
        check_division(self.world_size, self.workers_per_node)
        if not self.rounds:
            raise ValueError(f"topology={self.name} has no rounds; it needs 1 or more")
        for number, round_ in enumerate(self.rounds):
            try:
                check_round(round_, self.world_size)
            except ValueError as error:
                raise ValueError(f"topology={self.name}, round {number}: {error}") from None

    @property
    def num_nodes(self) -> int:
        """Number of nodes, ``world_size / workers_per_node``."""
        return self.world_size // self.workers_per_node

    def round_at(self, step: int) -> Round:
        """The round of step 0, 1, 2, ..."""
        return self.rounds[step % len(self.rounds)]

    def plan(self, rank: int) -> tuple[Part, ...]:
        """What ``rank`` does in each round of a period. All the same for a given topology, whatever the machine."""
        return tuple(round_.part(rank) for round_ in self.rounds)

    def communicators(self) -> tuple[tuple[int, ...], ...]:
        """Distinct groups of two or more ranks, in the order of first use: the process groups that all ranks create."""
        groups = (group.ranks for round_ in self.rounds if isinstance(round_, GroupRound) for group in round_.groups)
        return tuple(dict.fromkeys(ranks for ranks in groups if len(ranks) > 1))


def check_division(world_size: int, workers_per_node: int) -> None:
    """Raise ValueError where ``world_size`` workers do not make full nodes."""
    for name, value in (("world_size", world_size), ("workers_per_node", workers_per_node)):
        if value < 1:
            raise ValueError(f"{name}={value} must be 1 or more")
    if world_size % workers_per_node:
        raise ValueError(f"world_size={world_size} is not divisible by workers_per_node={workers_per_node}")


def check_round(round_: Round, world_size: int) -> None:
    """Raise ValueError where ``round_`` is not a valid round of ``world_size`` workers."""
    if isinstance(round_, GroupRound):
        _check_groups(round_.groups, world_size)
    else:
        _check_neighbours(round_.neighbours, world_size)


def check_rank(rank: int, world_size: int) -> None:
    """Raise ValueError where there is no such worker."""
    if not 0 <= rank < world_size:
        known = "rank is 0" if world_size == 1 else f"ranks are 0 to {world_size - 1}"
        raise ValueError(f"rank {rank} does not exist; with {world_size} workers the {known}")


def _check_groups(groups: Iterable[Group], world_size: int) -> None:
    seen: set[int] = set()
    for group in groups:
        for rank in group.ranks:
            check_rank(rank, world_size)
            if rank in seen:
                raise ValueError(f"rank {rank} is listed twice; each rank may be in one group of a round")
            seen.add(rank)
        _check_group(group)
    if len(seen) < world_size:
        missing = sorted(set(range(world_size)) - seen)
        raise ValueError(f"ranks {missing} are in no group; put each in a group of its own")


def _check_group(group: Group) -> None:
    if not group.ranks:
        raise ValueError("a group has no ranks; it needs 1 or more")
    if list(group.ranks) != sorted(group.ranks):
        raise ValueError(f"ranks {list(group.ranks)} are not in ascending order")
    if len(group.ranks) == 1 and group.weight != 1.0:
        raise ValueError(f"rank {group.ranks[0]} is alone in its group with weight={group.weight}; there it must be 1")
    if len(group.ranks) > 1 and not 0.0 < group.weight < 1.0:
        raise ValueError(f"ranks {list(group.ranks)} have weight={group.weight}; it must be above 0 and below 1")


def _check_neighbours(neighbours: tuple[tuple[tuple[int, float], ...], ...], world_size: int) -> None:
    if len(neighbours) != world_size:
        raise ValueError(f"{len(neighbours)} neighbour lists for {world_size} workers; there must be one for each")
    weights = [dict(peers) for peers in neighbours]
    for rank, peers in enumerate(neighbours):
        if [peer for peer, _ in peers] != sorted(weights[rank]):
            raise ValueError(f"rank {rank} has peers {[p for p, _ in peers]}; each may be there once, ascending")
        given = sum(weights[rank].values())
        if given > 1.0 + TOLERANCE:
            raise ValueError(f"the weights of rank {rank} add up to {given:g}; they may add up to 1")
        for peer, weight in peers:
            check_rank(peer, world_size)
            _check_edge(rank, peer, weight, weights[peer].get(rank))


def _check_edge(rank: int, peer: int, weight: float, back: float | None) -> None:
    if peer == rank:
        raise ValueError(f"rank {rank} is its own peer; what a rank keeps is 1 less its weights, and is not listed")
    if not 0.0 < weight <= 1.0:
        raise ValueError(f"ranks {rank} and {peer} have weight={weight}; it must be above 0 and at most 1")
    if weight != back:
        raise ValueError(
            f"rank {rank} takes {weight} of rank {peer}, which takes {back or 0} of it; both must be the same"
        )


def mixing_matrix(round_: Round, world_size: int) -> Matrix:
    """The doubly stochastic, symmetric matrix of a round; float64 of shape (world_size, world_size)."""
    matrix = np.zeros((world_size, world_size))
    if isinstance(round_, GroupRound):
        for group in round_.groups:
            members = np.array(group.ranks)
            others = (1.0 - group.weight) / max(len(members) - 1, 1)
            matrix[np.ix_(members, members)] = others
            matrix[members, members] = group.weight
        return matrix
    for rank, peers in enumerate(round_.neighbours):
        for peer, weight in peers:
            matrix[rank, peer] = weight
        matrix[rank, rank] = Neighbours(peers).self_weight
    return matrix


def uniform(ranks: Iterable[int], self_weight: float | None = None) -> Group:
    """A group that averages, or whose members keep ``self_weight``. One rank alone keeps all."""
    members = tuple(sorted(ranks))
    if len(members) == 1 or self_weight is None:
        return Group(members, 1.0 / len(members))
    return Group(members, self_weight)


def idle_round(world_size: int) -> GroupRound:
    """A round without communication."""
    return GroupRound(tuple(uniform([rank]) for rank in range(world_size)))


def neighbour_round(edges: Iterable[tuple[int, int, float]], world_size: int) -> NeighbourRound:
    """A round from undirected edges (rank, rank, weight), each pair once."""
    neighbours: list[list[tuple[int, float]]] = [[] for _ in range(world_size)]
    for one, other, weight in edges:
        neighbours[one].append((other, weight))
        neighbours[other].append((one, weight))
    return NeighbourRound(tuple(tuple(sorted(peers)) for peers in neighbours))


def edges_of(round_: Round) -> Iterator[tuple[int, int]]:
    """Pairs (rank, peer) that exchange parameters in a round, in both directions."""
    if isinstance(round_, NeighbourRound):
        yield from ((rank, peer) for rank, peers in enumerate(round_.neighbours) for peer, _ in peers)
        return
    for group in round_.groups:
        yield from ((rank, peer) for rank in group.ranks for peer in group.ranks if rank != peer)
