"""The strategy that a configuration asks for, and the workers that take part in it here."""

from dataclasses import replace
from typing import Any

from torch.nn import Module

from imgnet.config import (
    AllReduceConfig,
    ConfigError,
    DecentralizedConfig,
    Engine,
    Precision,
    RunConfig,
)
from imgnet.optim.loss_scale import LossScaler
from imgnet.parallel.averaging.consensus import AdaptiveConfig, consensus_factor
from imgnet.parallel.averaging.registry import num_fragments, way_of
from imgnet.parallel.engines.allreduce import AllReduce
from imgnet.parallel.engines.compression import build_compressor
from imgnet.parallel.engines.decent_dp import DecentDp
from imgnet.parallel.engines.decentralized import Decentralized
from imgnet.parallel.engines.members import Member
from imgnet.parallel.engines.simulated import SimulatedAllReduce, SimulatedDecentralized, copies_of
from imgnet.parallel.engines.strategy import Objective, OptimizerFactory, Strategy
from imgnet.parallel.schedule import build_schedule, exact_topology, node_size
from imgnet.parallel.topology import Schedule
from imgnet.parallel.wire.memory import MemoryNetwork
from imgnet.randomness import random_state, seed_all
from imgnet.runtime import Runtime


def build_strategy(
    config: RunConfig,
    module: Module,
    objective: Objective,
    make_optimizer: OptimizerFactory,
    runtime: Runtime,
    steps_per_epoch: int,
) -> Strategy:
    """AllReduce for ``topology=allreduce``, decentralized for every other topology. Collective."""
    topology = config.topology
    if isinstance(topology, AllReduceConfig):
        compressor = build_compressor(topology, round(config.optimizer.warmup_epochs * steps_per_epoch))
        settings = {"bucket_mb": topology.bucket_mb, "compressor": compressor} | _common(config, runtime)
        return AllReduce(module, objective, make_optimizer, runtime, **settings)
    assert isinstance(topology, DecentralizedConfig)
    schedule = _schedule(config, topology, runtime, steps_per_epoch)
    if topology.engine is Engine.decent_dp:
        sizes: dict[str, Any] = {
            "num_accumulation_steps": config.num_accumulation_steps,
            "bucket_mb": topology.bucket_mb,
        }
        if isinstance(config.averaging, AdaptiveConfig):
            sizes["factor"] = consensus_factor(config.averaging, config, steps_per_epoch)
        return DecentDp(module, objective, make_optimizer, schedule.phases[0].topology, runtime, **sizes)
    settings = _settings(config, topology, module, runtime, steps_per_epoch)
    return Decentralized(module, objective, make_optimizer, schedule, runtime, **settings)


def build_workers(
    config: RunConfig,
    module: Module,
    objective: Objective,
    make_optimizer: OptimizerFactory,
    runtime: Runtime,
    steps_per_epoch: int,
) -> tuple[Strategy, list[Member]]:
    """The strategy, and the workers that this process is, or stands for; random states are begun anew. Collective."""
    if runtime.num_simulated:
        strategy, members = _simulated(config, module, objective, make_optimizer, runtime, steps_per_epoch)
    else:
        strategy = build_strategy(config, module, objective, make_optimizer, runtime, steps_per_epoch)
        members = [Member(runtime.rank, module, strategy)]
    seed_all(_seed(config, runtime.rank))  # dropout differs between workers
    return strategy, members


def _simulated(
    config: RunConfig,
    module: Module,
    objective: Objective,
    make_optimizer: OptimizerFactory,
    runtime: Runtime,
    steps_per_epoch: int,
) -> tuple[Strategy, list[Member]]:
    topology, common = config.topology, _common(config, runtime)
    share = isinstance(topology, AllReduceConfig)
    *modules, average = copies_of(module, runtime.num_workers + 1, share_parameters=share)
    randoms = [_random_of(_seed(config, rank)) for rank in runtime.ranks]
    if isinstance(topology, AllReduceConfig):
        together = SimulatedAllReduce(modules, average, objective, make_optimizer, **common)
        together.members = [Member(rank, modules[rank], together, randoms[rank]) for rank in runtime.ranks]
        return together, together.members
    assert isinstance(topology, DecentralizedConfig)
    schedule, network = _schedule(config, topology, runtime, steps_per_epoch), MemoryNetwork()
    settings = _settings(config, topology, module, runtime, steps_per_epoch)
    members = []
    for rank in runtime.ranks:
        worker, wire = replace(runtime, rank=rank), network.wire(rank)
        of_one = Decentralized(modules[rank], objective, make_optimizer, schedule, worker, wire=wire, **settings)
        members.append(Member(rank, modules[rank], of_one, randoms[rank]))
    return SimulatedDecentralized(members, average, schedule), members


def _seed(config: RunConfig, rank: int) -> int:
    return config.seed + 1_000_003 * (rank + 1)


def _random_of(seed: int) -> dict[str, Any]:
    """The random states of a worker that begins with this seed, which are those of the process for now."""
    seed_all(seed)
    return random_state()


def _schedule(config: RunConfig, topology: DecentralizedConfig, runtime: Runtime, steps_per_epoch: int) -> Schedule:
    per_node = node_size(config.cluster, runtime.workers_per_node)
    schedule = build_schedule(topology, runtime.num_workers, per_node, steps_per_epoch)
    return replace(schedule, exact=exact_topology(config.averaging, runtime.num_workers, per_node))


def _settings(
    config: RunConfig, topology: DecentralizedConfig, module: Module, runtime: Runtime, steps_per_epoch: int
) -> dict[str, Any]:
    own = {"bucket_mb": topology.bucket_mb, "wire_dtype": topology.wire_dtype}
    own["num_buckets"] = _num_blocks(config, module, steps_per_epoch)
    make_method = way_of(config.averaging).make(config.averaging, config, steps_per_epoch)
    return own | {"make_method": make_method} | _common(config, runtime)


def _num_blocks(config: RunConfig, module: Module, steps_per_epoch: int) -> int:
    """The blocks that the way to average needs.

    Raises:
        ConfigError: more than there are tensors to make them of.
    """
    wanted = num_fragments(config, steps_per_epoch)
    trained = sum(parameter.requires_grad for parameter in module.parameters())
    if wanted > trained:
        what = f"model={config.model.name} has {trained} tensors to make them of"
        raise ConfigError([f"averaging={config.averaging.name} needs {wanted} parts, and {what}"])
    return wanted


def _common(config: RunConfig, runtime: Runtime) -> dict[str, Any]:
    return {
        "num_accumulation_steps": config.num_accumulation_steps,
        "max_grad_norm": config.max_grad_norm,
        "scaler": LossScaler(runtime.device, enabled=config.precision is Precision.fp16),
    }
