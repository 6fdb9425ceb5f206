"""The strategy that a configuration asks for."""

from torch.nn import Module

from imgnet.config import AllReduceConfig, DecentralizedConfig, Engine, Precision, RunConfig
from imgnet.optim.loss_scale import LossScaler
from imgnet.parallel.allreduce import AllReduce
from imgnet.parallel.decent_dp import DecentDp
from imgnet.parallel.decentralized import Decentralized
from imgnet.parallel.strategy import Objective, OptimizerFactory, Strategy
from imgnet.parallel.topology import build_topology
from imgnet.runtime import Runtime


def build_strategy(
    config: RunConfig, module: Module, objective: Objective, make_optimizer: OptimizerFactory, runtime: Runtime
) -> Strategy:
    """AllReduce for ``topology=allreduce``, decentralized for every other topology. Collective."""
    common = {
        "num_accumulation_steps": config.num_accumulation_steps,
        "max_grad_norm": config.max_grad_norm,
        "scaler": LossScaler(runtime.device, enabled=config.precision is Precision.fp16),
    }
    if isinstance(config.topology, AllReduceConfig):
        return AllReduce(module, objective, make_optimizer, runtime, bucket_mb=config.topology.bucket_mb, **common)
    assert isinstance(config.topology, DecentralizedConfig)
    topology = build_topology(config.topology.name, runtime.world_size, runtime.local_world_size)
    if config.topology.engine is Engine.decent_dp:
        return DecentDp(
            module,
            objective,
            make_optimizer,
            topology,
            runtime,
            num_accumulation_steps=config.num_accumulation_steps,
            bucket_mb=config.topology.bucket_mb,
        )
    return Decentralized(
        module, objective, make_optimizer, topology, runtime, bucket_mb=config.topology.bucket_mb, **common
    )
