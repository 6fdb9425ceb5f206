"""The flows of a round: which workers send to which, over which links, and what a byte of each costs."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from imgnet.parallel.topology import GroupRound, Round
from imgnet.parallel.topology.rounds import edges_of
from imgnet.plan.timeline.network import Cost, Link, Network


@dataclass(frozen=True)
class Flow:
    """What a pair exchanges, or a group sums. It begins when all its workers are ready, and ends for all at once."""

    ranks: tuple[int, ...]
    between_nodes: bool
    """Over the network; else within a node."""
    cost: Cost
    """On links that carry no other round."""
    is_collective: bool
    """Its messages follow one another; else they are all under way at once."""

    def seconds(self, num_bytes: float) -> tuple[float, float]:
        """How long it has its lanes for itself, and how long after that the last message is on its way.

        The next collective begins when this one is over, latency included; the next message of a pair follows at once.
        """
        way = self.cost.way(num_bytes)
        if self.is_collective:
            return way.seconds(num_bytes), 0.0
        return num_bytes / way.bytes_per_s, way.latency_s


@dataclass(frozen=True)
class Traffic:
    """All flows of one round among ``world_size`` workers."""

    world_size: int
    flows: tuple[Flow, ...]

    @cached_property
    def of_rank(self) -> dict[int, list[int]]:
        """For each worker that does not rest, its flows by their place in ``flows``."""
        found: dict[int, list[int]] = {}
        for place, flow in enumerate(self.flows):
            for rank in flow.ranks:
                found.setdefault(rank, []).append(place)
        return found


def traffic_of(round_: Round, network: Network, *, groups_exchange_directly: bool = False) -> Traffic:
    """The flows of a topology's round, as the engine sends them.

    Pairs and neighbours exchange copies; groups of three or more are summed by an all-reduce.

    Args:
        round_: of a topology.
        network: with as many workers.
        groups_exchange_directly: groups send each other shares, as they do in bf16.
    """
    edges, groups = _edges_and_groups(round_)
    collective = _direct if groups_exchange_directly else _summed
    flows = [*_exchanged(edges, network), *collective(groups, network)]
    return Traffic(network.world_size, tuple(flows))


def summed_by_all(network: Network) -> Traffic:
    """One all-reduce of all workers: what ``DistributedDataParallel`` does with a bucket of gradients."""
    everybody = tuple(range(network.world_size))
    return Traffic(network.world_size, tuple(_summed([everybody] if len(everybody) > 1 else [], network)))


def _edges_and_groups(round_: Round) -> tuple[list[tuple[int, int]], list[tuple[int, ...]]]:
    if not isinstance(round_, GroupRound):
        return sorted({(min(edge), max(edge)) for edge in edges_of(round_)}), []
    parts = [group.ranks for group in round_.groups]
    return [(ranks[0], ranks[1]) for ranks in parts if len(ranks) == 2], [ranks for ranks in parts if len(ranks) > 2]


def _exchanged(edges: Sequence[tuple[int, int]], network: Network) -> list[Flow]:
    """A copy in each direction. The workers of a node that send beyond it share its interfaces.

    What a worker has of them it shares between its own flows; that is left to the replay.
    """
    senders = {rank for edge in edges if _crosses(edge, network) for rank in edge}
    sharing = Counter(network.node_of(rank) for rank in senders)
    within = Cost((network.within,))
    between = {number: Cost((_shared(network, number),)) for number in set(sharing.values())}
    flows = []
    for edge in edges:
        crosses = _crosses(edge, network)
        number = max(sharing[network.node_of(rank)] for rank in edge) if crosses else 0
        flows.append(Flow(edge, crosses, between[number] if crosses else within, is_collective=False))
    return flows


def _shared(network: Network, num_workers: int) -> Link:
    return Link(network.between.latency_s, network.flow_bytes_per_s(num_workers))


def _summed(groups: Sequence[tuple[int, ...]], network: Network) -> list[Flow]:
    sharing = _sharing(groups, network)
    return [
        Flow(group, _crosses(group, network), network.all_reduce_cost(group, _most(group, sharing, network)), True)
        for group in groups
    ]


def _direct(groups: Sequence[tuple[int, ...]], network: Network) -> list[Flow]:
    sharing = _sharing(groups, network)
    return [
        Flow(group, _crosses(group, network), network.exchange_all_cost(group, _most(group, sharing, network)), False)
        for group in groups
    ]


def _sharing(groups: Sequence[Sequence[int]], network: Network) -> Counter[int]:
    """For each node how many groups reach beyond it."""
    nodes = [{network.node_of(rank) for rank in group} for group in groups]
    return Counter(node for spanned in nodes if len(spanned) > 1 for node in spanned)


def _most(group: Sequence[int], sharing: Counter[int], network: Network) -> int:
    return max(sharing[network.node_of(rank)] for rank in group)


def _crosses(group: Sequence[int], network: Network) -> bool:
    return network.node_of(min(group)) != network.node_of(max(group))
