"""The strategy that a configuration asks for."""

from torch.nn import Module

from imgnet.config import AllReduceConfig, DecentralizedConfig, Engine, Precision, RunConfig
from imgnet.optim.loss_scale import LossScaler
from imgnet.parallel.allreduce import AllReduce
from imgnet.parallel.compression import build_compressor
from imgnet.parallel.decent_dp import DecentDp
from imgnet.parallel.decentralized import Decentralized
from imgnet.parallel.schedule import build_schedule, node_size
from imgnet.parallel.strategy import Objective, OptimizerFactory, Strategy
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
    passes = config.num_accumulation_steps
    common = {
        "num_accumulation_steps": passes,
        "max_grad_norm": config.max_grad_norm,
        "scaler": LossScaler(runtime.device, enabled=config.precision is Precision.fp16),
    }
    if isinstance(topology, AllReduceConfig):
        warmup_steps = round(config.optimizer.warmup_epochs * steps_per_epoch)
        settings = {"bucket_mb": topology.bucket_mb, "compressor": build_compressor(topology, warmup_steps)} | common
        return AllReduce(module, objective, make_optimizer, runtime, **settings)
    assert isinstance(topology, DecentralizedConfig)
    per_node = node_size(config.cluster, runtime.local_world_size)
    schedule = build_schedule(topology, runtime.world_size, per_node, steps_per_epoch)
    settings = {"bucket_mb": topology.bucket_mb, "wire_dtype": topology.wire_dtype} | common
    if topology.engine is Engine.decent_dp:
        rounds, sizes = schedule.phases[0].topology, {"num_accumulation_steps": passes, "bucket_mb": topology.bucket_mb}
        return DecentDp(module, objective, make_optimizer, rounds, runtime, **sizes)
    return Decentralized(module, objective, make_optimizer, schedule, runtime, **settings)
