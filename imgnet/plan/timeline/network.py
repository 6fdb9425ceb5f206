"""What a message costs: latency, bandwidth, and how flows share a network interface.

All times in seconds, sizes in bytes. A link carries as much in both directions at once. A flow, such as the messages
of one pair of workers or of one ring, passes through one interface of each node; several flows are spread over all.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, inf, log2

from imgnet.config import GroupAlgorithm

UNLIMITED = 1e30
"""Bytes per second; not infinite, so that shares of it are numbers."""


@dataclass(frozen=True)
class Link:
    """A message of ``m`` bytes takes ``latency_s + m / bytes_per_s``."""

    latency_s: float
    bytes_per_s: float

    def seconds(self, num_bytes: float) -> float:
        """Of one message."""
        return self.latency_s + num_bytes / self.bytes_per_s

    def of_any_size(self) -> "Link":
        """The same latency, and nothing for the bytes."""
        return Link(self.latency_s, UNLIMITED)


@dataclass(frozen=True)
class Network:
    """Nodes of ``workers_per_node`` workers each, ranks of a node contiguous.

    Attributes:
        num_nodes: nodes.
        workers_per_node: workers of each.
        within: between two workers of a node.
        between: one interface of a node; its latency is that from a worker of one node to one of another.
        nics_per_node: interfaces of a node.
        all_reduce: how a group of workers is summed.
        kinds_take_turns: messages between pairs begin when the collectives are through that a worker started before
            them, and these when those are. So the engine has it where gloo sends both over the same connections.
    """

    num_nodes: int
    workers_per_node: int
    within: Link
    between: Link
    nics_per_node: int = 1
    all_reduce: GroupAlgorithm = GroupAlgorithm.auto
    kinds_take_turns: bool = False

    @property
    def world_size(self) -> int:
        """Number of workers."""
        return self.num_nodes * self.workers_per_node

    def without_bandwidth(self) -> "Network":
        """Links on which size costs nothing."""
        return replace(self, within=self.within.of_any_size(), between=self.between.of_any_size())

    def without_cost(self) -> "Network":
        """Links on which messages take no time."""
        return replace(self, within=Link(0.0, UNLIMITED), between=Link(0.0, UNLIMITED))

    def node_of(self, rank: int) -> int:
        """The node of a worker."""
        return rank // self.workers_per_node

    def flow_bytes_per_s(self, num_flows: float) -> float:
        """What each of ``num_flows`` that leave a node at once gets."""
        return self.between.bytes_per_s * min(1.0, self.nics_per_node / max(num_flows, 1.0))

    def all_reduce_cost(self, members: Sequence[int], num_sharing: int = 1) -> "Cost":
        """What summing over a group costs while ``num_sharing`` groups use the same interfaces."""
        shape = self._shape(members, num_sharing)
        match self.all_reduce:
            case GroupAlgorithm.ring:
                return Cost((_ring(shape),))
            case GroupAlgorithm.tree:
                return Cost((_tree(shape),))
            case GroupAlgorithm.two_level:
                return Cost((_two_level(shape, self, num_sharing),))
            case GroupAlgorithm.auto:
                return Cost((_ring(shape), _tree(shape)))

    def exchange_all_cost(self, members: Sequence[int], num_sharing: int = 1) -> "Cost":
        """Two exchanges in which each member sends its share of ``1 / n`` to every other one: bf16 groups of three."""
        shape = self._shape(members, num_sharing)
        n, per_node = shape.size, shape.size / shape.num_nodes
        within = (per_node - 1) / n / shape.within.bytes_per_s
        # All flows of a node to others at once, spread over its interfaces.
        crossing = per_node * (n - per_node) / n
        between = crossing * num_sharing / (self.between.bytes_per_s * self.nics_per_node) if shape.num_nodes > 1 else 0
        latency = shape.between.latency_s if shape.num_nodes > 1 else shape.within.latency_s
        return Cost((Link(2 * latency, 1 / (2 * max(within, between))),))

    def _shape(self, members: Sequence[int], num_sharing: int) -> "_Shape":
        num_nodes = len({self.node_of(rank) for rank in members})
        between = Link(self.between.latency_s, self.flow_bytes_per_s(num_sharing))
        return _Shape(len(members), num_nodes, self.within, between)


@dataclass(frozen=True)
class Cost:
    """What bytes cost where there are several ways: the least of straight lines."""

    ways: tuple[Link, ...]

    def way(self, num_bytes: float) -> Link:
        """The fastest for a message of this size."""
        return min(self.ways, key=lambda way: way.seconds(num_bytes))

    def seconds(self, num_bytes: float) -> float:
        """On that way."""
        return self.way(num_bytes).seconds(num_bytes)


@dataclass(frozen=True)
class _Shape:
    """A group of ``size`` workers on ``num_nodes`` nodes, and the links that it has for itself."""

    size: int
    num_nodes: int
    within: Link
    between: Link

    @property
    def narrowest(self) -> float:
        """Bytes per second of the slowest link that the group uses."""
        own = [self.within.bytes_per_s] if self.size > self.num_nodes else [inf]
        return min([*own, self.between.bytes_per_s] if self.num_nodes > 1 else own)


def _ring(shape: _Shape) -> Link:
    """``2 (n - 1)`` messages of ``1 / n`` each, one after the other; two for each further node go between nodes."""
    steps, crossing = 2 * (shape.size - 1), 2 * (shape.num_nodes - 1)
    latency = (steps - crossing) * shape.within.latency_s + crossing * shape.between.latency_s
    return Link(latency, shape.narrowest * shape.size / steps)


def _tree(shape: _Shape) -> Link:
    """A chain in each node and a binary tree of nodes, up and down, pipelined: every link carries two copies."""
    per_node = ceil(shape.size / shape.num_nodes)
    depth = ceil(log2(shape.num_nodes))
    latency = 2 * ((per_node - 1) * shape.within.latency_s + depth * shape.between.latency_s)
    return Link(latency, shape.narrowest / 2)


def _two_level(shape: _Shape, network: Network, num_sharing: int) -> Link:
    """Parts summed within each node, each part by a ring of nodes, then gathered; all interfaces are used."""
    per_node, nodes = shape.size / shape.num_nodes, shape.num_nodes
    within = 2 * (per_node - 1) / per_node / shape.within.bytes_per_s
    rate = network.flow_bytes_per_s(per_node * num_sharing) * per_node
    between = 2 * (nodes - 1) / nodes / rate if nodes > 1 else 0.0
    latency = 2 * (per_node - 1) * shape.within.latency_s + 2 * (nodes - 1) * shape.between.latency_s
    return Link(latency, 1 / (within + between))
