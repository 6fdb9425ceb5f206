"""What can be said against compressed gradients before a run starts."""

import math
from collections.abc import Iterator
from dataclasses import fields

from imgnet.config import AllReduceConfig, Compression, Precision, RunConfig
from imgnet.data import checks as data_checks
from imgnet.parallel.schedule import EARLIEST_POWERSGD_STEP, powersgd_start_step


def problems(config: RunConfig, topology: AllReduceConfig, world_size: int) -> list[str]:
    """One line for each."""
    chosen = topology.compression
    found = []
    if chosen is not Compression.none and world_size < 2:
        found.append(f"topology.compression={chosen.value} has nothing to make smaller: one worker sends nothing")
    return [*found, *(_powersgd(config, topology) if chosen is Compression.powersgd else _not_for(topology))]


def _not_for(topology: AllReduceConfig) -> Iterator[str]:
    """Options of PowerSGD that were set for another compression, or for none."""
    default = AllReduceConfig(name=topology.name)
    for option in (entry.name for entry in fields(topology) if entry.name.startswith("powersgd_")):
        if (value := getattr(topology, option)) != getattr(default, option):
            yield f"topology.{option}={value} needs topology.compression=powersgd; it is {topology.compression.value}"


def _powersgd(config: RunConfig, topology: AllReduceConfig) -> Iterator[str]:
    rank, start, rate = (
        topology.powersgd_rank,
        topology.powersgd_start_step,
        topology.powersgd_min_compression_rate,
    )
    if rank < 1:
        yield f"topology.powersgd_rank={rank}; at least 1 is needed"
    if not 0 <= rate < math.inf:
        yield f"topology.powersgd_min_compression_rate={rate}; a number from 0 on is needed"
    if config.precision is Precision.fp16:
        yield (
            "topology.compression=powersgd would carry an overflow of fp16's loss scale over to all later steps; "
            "use precision=bf16, or topology.compression=bf16"
        )
    if start is not None and start < EARLIEST_POWERSGD_STEP:
        yield f"topology.powersgd_start_step={start}; torch's hook needs at least {EARLIEST_POWERSGD_STEP}"
    else:
        yield from _start(config, topology)


def _start(config: RunConfig, topology: AllReduceConfig) -> Iterator[str]:
    """Whether anything is compressed at all, where the length of the run is known."""
    num_train = data_checks.known_num_train(config.data)
    steps_per_epoch = 0 if num_train is None else num_train // max(config.global_batch_size, 1)
    start = powersgd_start_step(topology, round(config.optimizer.warmup_epochs * steps_per_epoch))
    num_steps = min(config.epochs * steps_per_epoch, config.max_steps or math.inf)
    if steps_per_epoch > 0 and start >= num_steps:
        yield f"topology.powersgd_start_step={start} leaves nothing of the run's {num_steps} steps to compress"
