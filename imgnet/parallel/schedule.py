"""What a configuration asks for, step by step. Without torch: a command is checked with this before it starts."""

from dataclasses import fields
from typing import Any

from imgnet.config import (
    AllReduceConfig,
    AveragingConfig,
    ClusterConfig,
    DecentralizedConfig,
    LocalConfig,
    LocalStepsConfig,
    TopologyConfig,
)
from imgnet.parallel.topology import Phase, Schedule, Topology, build_topology

SEE_NODES = ("alternating-exp-ring", "hierarchical")
"""Topologies whose rounds depend on which workers share a node."""
EARLIEST_POWERSGD_STEP = 2
"""torch allows no earlier one: DDP forms its buckets anew after the first step."""


def build_schedule(
    config: DecentralizedConfig, world_size: int, workers_per_node: int, steps_per_epoch: int
) -> Schedule:
    """The topologies of a run, step by step.

    The run's own topology holds from the first step until the schedule names another one.

    Raises:
        ValueError: in one line what is wrong, and what would be right.
    """
    switches = [(0, config.name)] + [(switch.after_epochs, switch.topology) for switch in config.schedule]
    if config.schedule and config.schedule[0].after_epochs == 0:
        del switches[0]
    epochs = [epoch for epoch, _ in switches]
    if epochs != sorted(set(epochs)) or epochs[0] != 0:
        given = [switch.after_epochs for switch in config.schedule]
        raise ValueError(f"topology.schedule has after_epochs {given}; they must be 0 or more, and ascend")
    return Schedule(
        tuple(
            Phase(epoch * steps_per_epoch, _topology(name, config, world_size, workers_per_node))
            for epoch, name in switches
        )
    )


def exact_topology(averaging: AveragingConfig, world_size: int, workers_per_node: int) -> Topology | None:
    """All workers in one group, where a way to average needs that beside its topology."""
    if not isinstance(averaging, LocalStepsConfig) or not (averaging.start_epoch or averaging.exact_every):
        return None
    return build_topology("complete", world_size, workers_per_node)


def node_size(cluster: ClusterConfig, workers_per_node: int) -> int:
    """Workers that count as a node for the topology: those of a real one, unless the cluster simulates more nodes.

    Raises:
        ValueError: the workers do not make so many nodes.
    """
    nodes = cluster.simulated_nodes if isinstance(cluster, LocalConfig) else 1
    if nodes < 1 or workers_per_node % nodes:
        raise ValueError(f"cluster.simulated_nodes={nodes} does not divide the {workers_per_node} workers")
    return workers_per_node // nodes


def sees_nodes(config: TopologyConfig) -> bool:
    """Whether the rounds depend on which workers share a node."""
    names = {config.name}
    if isinstance(config, DecentralizedConfig):
        names |= {switch.topology for switch in config.schedule}
    return not names.isdisjoint(SEE_NODES)


def _topology(name: str, config: DecentralizedConfig, world_size: int, workers_per_node: int) -> Topology:
    options = own_options(config) if name == config.name else {}
    return build_topology(name, world_size, workers_per_node, **options)


def own_options(config: DecentralizedConfig) -> dict[str, Any]:
    """The options of the topology's family: what its schema has beside that of every decentralized run."""
    common = {entry.name for entry in fields(DecentralizedConfig)}
    return {entry.name: getattr(config, entry.name) for entry in fields(config) if entry.name not in common}


def powersgd_start_step(config: AllReduceConfig, warmup_steps: int) -> int:
    """The first step whose gradients are compressed: after the warm-up, unless told otherwise."""
    if config.powersgd_start_step is not None:
        return config.powersgd_start_step
    return max(EARLIEST_POWERSGD_STEP, warmup_steps)
