"""Topologies that know which workers share a node."""

from imgnet.parallel.topology.families.complete import complete
from imgnet.parallel.topology.families.exp import digit_groups, prime_factors
from imgnet.parallel.topology.families.layout import Layout, Rounds
from imgnet.parallel.topology.families.ring import ring_pairs
from imgnet.parallel.topology.rounds import GroupRound, Round, uniform


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
    for groups in digit_groups(prime_factors(layout.num_nodes)):
        rounds += [_alternate(layout, groups, 0), _alternate(layout, groups, 1)]
    return tuple(rounds)


def _alternate(layout: Layout, node_groups: list[list[int]], half: int) -> GroupRound:
    members: list[list[int]] = []
    for position, nodes in enumerate(node_groups):
        together = position % 2 != half
        members += [layout.workers(nodes)] if together else [layout.workers([node]) for node in nodes]
    return GroupRound(tuple(map(uniform, members)))


def _refuse_fewer(name: str, value: int, things: str, advice: str) -> None:
    if value < 2:
        raise ValueError(f"topology={name} needs 2 or more {things}; cluster has {value} ({advice})")


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
