"""Averaging keeps the mean of all workers for thousands of rounds: rounding is as often up as down."""

import numpy as np
import pytest
import torch

from imgnet.config import WireDtype
from imgnet.parallel.topology import GroupRound, Schedule, Topology, build_topology, mixing_matrix
from tests.in_process import Workers, families

pytestmark = pytest.mark.usefixtures("unmeasured")
NUM_ROUNDS = 6_000
NUM_VALUES = 400
NOISE = 1e-4
"""Standard deviation of what each worker adds between rounds to values of 1, as its own training would."""


def topologies(world_size: int, per_node: int) -> list[Topology]:
    """One of each family; those that come to the same matrices once."""
    found = {}
    for name, options in families(world_size, per_node):
        topology = build_topology(name, world_size, per_node, **options)
        matrices = [mixing_matrix(round_, world_size).round(12).tobytes() for round_ in topology.rounds]
        found.setdefault(tuple(dict.fromkeys(matrices)), topology)
    return list(found.values())


def is_doubly_stochastic(topology: Topology) -> bool:
    rows = [mixing_matrix(round_, topology.world_size).sum(axis=1) for round_ in topology.rounds]
    return np.allclose(rows, 1.0, atol=1e-12)


def limit(topology: Topology, wire: WireDtype) -> float:
    """How far the mean of all workers may move, root mean square.

    Where all members of a group hold the same bits afterwards, their rounding is the same too and does not average out.
    """
    if wire is WireDtype.bf16:
        return 2e-7 if is_doubly_stochastic(topology) else 2e-6  # shares of different weights differ in their last bits
    groups = [group for round_ in topology.rounds if isinstance(round_, GroupRound) for group in round_.groups]
    most_alike = max((len(group.ranks) for group in groups if group.is_uniform), default=1)
    in_groups = 4.5e-6 if topology.world_size <= 6 else 6e-6
    return {1: 2e-6, 2: 2.5e-6 if topology.world_size == 2 else 2e-6}.get(most_alike, in_groups)


def how_far_the_mean_moves(topology: Topology, wire: WireDtype) -> float:
    """By averaging alone: what the workers add is summed up in float64, as it is after its own rounding."""
    draw = torch.Generator().manual_seed(1)
    values = torch.randn(NUM_VALUES, generator=draw).repeat(topology.world_size, 1)
    wanted = values.double().mean(dim=0)
    workers = Workers(Schedule.constant(topology), wire, values)
    for step in range(NUM_ROUNDS):
        before = values.double()
        values.add_(torch.randn(values.shape, generator=draw), alpha=NOISE)
        wanted += (values.double() - before).mean(dim=0)
        workers.mix(step)
    return float((values.double().mean(dim=0) - wanted).square().mean().sqrt())


ODD = ("complete", "ring", "base-graph")
"""What is another round for an odd number of workers; other families have the same for 4 and for 5."""
CASES = [
    pytest.param(
        topology, wire, id=f"{topology.name}-{world_size}-{place}-{wire.value}",
        marks=[pytest.mark.slow] if world_size > 5 or (world_size == 5 and topology.name not in ODD) else [],
    )
    for world_size, per_node in ((2, 2), (4, 2), (5, 5), (6, 3), (12, 4))
    for place, topology in enumerate(topologies(world_size, per_node))
    for wire in WireDtype
]  # fmt: skip


@pytest.mark.parametrize(("topology", "wire"), CASES)
def test_the_mean_of_all_workers_does_not_drift(topology: Topology, wire: WireDtype) -> None:
    moved = how_far_the_mean_moves(topology, wire)
    assert moved <= limit(topology, wire)
