"""What makes a round valid; a wrong one is refused in one line."""

from collections.abc import Iterable

from imgnet.parallel.topology.rounds import TOLERANCE, Group, GroupRound, NeighbourRound, Round


def check_round(round_: Round, world_size: int) -> None:
    """Raise ValueError where ``round_`` is not a valid round of ``world_size`` workers."""
    if isinstance(round_, GroupRound):
        _check_groups(round_.groups, world_size)
    elif isinstance(round_, NeighbourRound):
        _check_neighbours(round_.neighbours, world_size)
    else:
        _check_receivers(round_.receivers, world_size)


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


def _check_receivers(receivers: tuple[tuple[tuple[int, float], ...], ...], world_size: int) -> None:
    if len(receivers) != world_size:
        raise ValueError(f"{len(receivers)} lists of receivers for {world_size} workers; there must be one for each")
    for rank, given in enumerate(receivers):
        ranks = [receiver for receiver, _ in given]
        if ranks != sorted(set(ranks)):
            raise ValueError(f"rank {rank} sends to {ranks}; each may be there once, ascending")
        for receiver, weight in given:
            check_rank(receiver, world_size)
            if receiver == rank:
                raise ValueError(f"rank {rank} sends to itself; what a rank keeps is 1 less its weights, not listed")
            if not 0.0 < weight < 1.0:
                raise ValueError(f"rank {rank} gives {weight} to rank {receiver}; it must be above 0 and below 1")
        if sum(weight for _, weight in given) > 1.0 - TOLERANCE:
            raise ValueError(f"rank {rank} gives away all of its own; it must keep a part, so that nobody has nothing")
