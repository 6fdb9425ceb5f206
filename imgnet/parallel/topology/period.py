"""A topology: rounds that are repeated for ever."""

from dataclasses import dataclass

from imgnet.parallel.topology.rounds import DirectedRound, GroupRound, Part, Round
from imgnet.parallel.topology.validity import check_round


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

    @property
    def is_directed(self) -> bool:
        """Whether there is a round in which workers send to others than they get from."""
        return any(isinstance(round_, DirectedRound) for round_ in self.rounds)

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
