"""What can be said against a topology before anything is started; each of its settings in its range already."""

import math
from collections.abc import Iterator
from dataclasses import fields

from imgnet.config import (
    AllReduceConfig,
    AveragingConfig,
    BaseGraphConfig,
    Compression,
    CustomConfig,
    DecentralizedConfig,
    Engine,
    EquiDynConfig,
    EquiStaticConfig,
    LatticeConfig,
    Precision,
    RandomConfig,
    RunConfig,
    SgdConfig,
    SimulatedConfig,
    StaticRingConfig,
    TopologyConfig,
    WeightedConfig,
    WireDtype,
)
from imgnet.data.checks import known_num_train
from imgnet.parallel.averaging.registry import OPTIONS, way_of
from imgnet.parallel.schedule import build_schedule, node_size, powersgd_start_step
from imgnet.parallel.topology import GroupRound, Schedule
from imgnet.suggest import nearest

SCHEMAS: dict[str, type[TopologyConfig]] = {
    "allreduce": AllReduceConfig,
    "complete": DecentralizedConfig,
    "ring": WeightedConfig,
    "static-ring": StaticRingConfig,
    "exp": DecentralizedConfig,
    "base-graph": BaseGraphConfig,
    "alternating-exp-ring": DecentralizedConfig,
    "hierarchical": DecentralizedConfig,
    "random": RandomConfig,
    "equi-static": EquiStaticConfig,
    "equi-dyn": EquiDynConfig,
    "star": DecentralizedConfig,
    "grid": LatticeConfig,
    "torus": LatticeConfig,
    "directed-ring": DecentralizedConfig,
    "directed-exp": DecentralizedConfig,
    "directed-equi-static": EquiStaticConfig,
    "directed-equi-dyn": EquiDynConfig,
    "custom": CustomConfig,
}
"""Every topology, and the schema of its settings."""


def problems(config: RunConfig, world_size: int, workers_per_node: int) -> Iterator[str]:
    """Everything that is wrong, one line each with the key, its value and what would be right.

    Args:
        config: the run.
        world_size: workers of the run.
        workers_per_node: those of one node.
    """
    topology = config.topology
    names = [*_name_problems(topology), *_averaging_name_problems(config.averaging)]
    if names:
        yield from names
    elif isinstance(topology, DecentralizedConfig):
        yield from _switch_problems(topology, config.epochs)
        yield from way_of(config.averaging).problems(config.averaging, config)
        yield from _interval_problems(config)
        yield from _schedule_problems(config, topology, world_size, workers_per_node)
    else:
        assert isinstance(topology, AllReduceConfig)
        yield from _all_reduce_problems(config, topology, world_size)


def _averaging_name_problems(averaging: AveragingConfig) -> Iterator[str]:
    schema, key = OPTIONS.get(averaging.name), f"averaging.name={averaging.name}"
    if schema is None:
        yield f"{key}: there is no such way to average; {nearest(averaging.name, OPTIONS)}"
    elif schema is not type(averaging):
        yield f"{key} stands among settings that are not its own; choose averaging={averaging.name}"


def _interval_problems(config: RunConfig) -> Iterator[str]:
    """A run that is over before its workers average, where its length is known."""
    num_train = known_num_train(config.data)
    steps_per_epoch = 0 if num_train is None else num_train // max(config.global_batch_size, 1)
    every, num_steps = getattr(config.averaging, "every", 1), config.epochs * steps_per_epoch
    if 0 < num_steps < every:
        yield f"averaging.every={every} is more than the run's {num_steps} steps: its workers would never average"


def _all_reduce_problems(config: RunConfig, topology: AllReduceConfig, world_size: int) -> Iterator[str]:
    if config.averaging.name != "every_step":
        other = "directed-exp" if way_of(config.averaging).is_directed else "complete"
        yield f"averaging={config.averaging.name} averages parameters, and topology=allreduce gradients; use {other}"
    if isinstance(config.optimizer, SgdConfig) and config.optimizer.quasi_global:
        yield (
            "optimizer.quasi_global=true is momentum for workers that differ, and with topology=allreduce none do; "
            "choose another topology"
        )
    chosen = topology.compression
    if chosen is not Compression.none and world_size < 2:
        yield f"topology.compression={chosen.value} has nothing to make smaller: one worker sends nothing"
    elif chosen is not Compression.none and isinstance(config.cluster, SimulatedConfig):
        yield f"topology.compression={chosen.value} is of torch's hooks between processes; cluster=simulated has none"
    if chosen is Compression.powersgd:
        yield from _powersgd_problems(config, topology)
    else:
        yield from _powersgd_settings_of_another(topology)


def _powersgd_settings_of_another(topology: AllReduceConfig) -> Iterator[str]:
    """Options of PowerSGD that were set for another compression, or for none."""
    default = AllReduceConfig(name=topology.name)
    for option in (entry.name for entry in fields(topology) if entry.name.startswith("powersgd_")):
        if (value := getattr(topology, option)) != getattr(default, option):
            yield f"topology.{option}={value} needs topology.compression=powersgd; it is {topology.compression.value}"


def _powersgd_problems(config: RunConfig, topology: AllReduceConfig) -> Iterator[str]:
    """fp16, and whether anything is compressed at all where the length of the run is known."""
    if config.precision is Precision.fp16:
        yield (
            "topology.compression=powersgd would carry an overflow of fp16's loss scale over to all later steps; "
            "use precision=bf16, or topology.compression=bf16"
        )
    num_train = known_num_train(config.data)
    steps_per_epoch = 0 if num_train is None else num_train // max(config.global_batch_size, 1)
    start = powersgd_start_step(topology, round(config.optimizer.warmup_epochs * steps_per_epoch))
    num_steps = min(config.epochs * steps_per_epoch, config.max_steps or math.inf)
    if 0 < num_steps <= start:
        yield f"topology.powersgd_start_step={start} leaves nothing of the run's {num_steps} steps to compress"


def _name_problems(topology: TopologyConfig) -> Iterator[str]:
    """Names that are no topology, and a topology among the settings of another."""
    schema = SCHEMAS.get(topology.name)
    if schema is None:
        yield f"topology.name={topology.name}: there is no such topology; {nearest(topology.name, SCHEMAS)}"
    elif not issubclass(schema, type(topology)):
        yield (
            f"topology.name={topology.name} stands among settings that are not its own; choose topology={topology.name}"
        )
    for number, switch in enumerate(getattr(topology, "schedule", [])):
        key = f"topology.schedule[{number}].topology={switch.topology}"
        if switch.topology not in SCHEMAS:
            yield f"{key}: there is no such topology; {nearest(switch.topology, SCHEMAS)}"
        elif SCHEMAS[switch.topology] is AllReduceConfig:
            yield f"{key} averages gradients; use complete, which averages parameters exactly"


def _switch_problems(topology: DecentralizedConfig, epochs: int) -> Iterator[str]:
    for switch in topology.schedule:
        if switch.after_epochs >= epochs:
            yield f"topology.schedule has after_epochs={switch.after_epochs}, which epochs={epochs} never reaches"
    names = {switch.topology for switch in topology.schedule}
    if names and topology.schedule[0].after_epochs == 0 and topology.name not in names:
        yield (
            f"topology.schedule replaces topology={topology.name} from the first step to the last; name it there too, "
            f"such as {{after_epochs: 5, topology: {topology.name}}}"
        )


def _schedule_problems(
    config: RunConfig, topology: DecentralizedConfig, world_size: int, workers_per_node: int
) -> Iterator[str]:
    try:
        per_node = node_size(config.cluster, workers_per_node)
        schedule = build_schedule(topology, world_size, per_node, steps_per_epoch=1)
    except ValueError as error:
        yield f"{error} (cluster={config.cluster.name})"
        return
    wrong = [*_direction_problems(config.averaging, topology, schedule, world_size)]
    yield from wrong
    if not wrong and topology.engine is Engine.decent_dp:
        reasons = _reasons_against_decent_dp(config, topology, schedule, world_size)
        yield from (f"topology.engine=decent_dp {reason}; use topology.engine=imgnet" for reason in reasons)


def _direction_problems(
    averaging: AveragingConfig, topology: DecentralizedConfig, schedule: Schedule, world_size: int
) -> Iterator[str]:
    """Directed rounds need a way to average that corrects for them, which is for no others."""
    corrects = way_of(averaging).is_directed
    if schedule.directed is not None and not corrects:
        wrong = f"is directed, for which averaging={averaging.name} does not correct"
        yield f"topology={schedule.directed.name} {wrong}; it needs averaging=push_sum"
    elif schedule.directed is None and corrects and world_size > 1:
        right = "a directed topology, such as directed-exp, or averaging=every_step"
        yield f"averaging={averaging.name} is for directed rounds, and topology={topology.name} has none; use {right}"
    elif schedule.directed is not None and topology.wire_dtype is WireDtype.bf16 and not schedule.has_arrows_alone:
        what = f"averaging={averaging.name} needs rounds of arrows alone, which topology={topology.name} has not"
        yield f"topology.wire_dtype=bf16 with {what}; use topology.wire_dtype=fp32"


def _reasons_against_decent_dp(
    config: RunConfig, topology: DecentralizedConfig, schedule: Schedule, world_size: int
) -> Iterator[str]:
    """What the published engine cannot do; ``topology.engine=imgnet`` can do all of it."""
    if world_size < 2:
        yield "needs 2 or more workers"
    else:
        yield from _rounds_without_decent_dp(topology, schedule)
    way = way_of(config.averaging)
    if not (way.is_of_decent_dp or way.is_directed):  # of directed rounds the line before speaks
        yield f"averages in every step (averaging={config.averaging.name})"
    if topology.wire_dtype is not WireDtype.fp32:
        yield f"sends fp32 only (topology.wire_dtype={topology.wire_dtype.value})"
    if topology.schedule:
        yield "has one topology for the whole run (topology.schedule)"
    if isinstance(config.cluster, SimulatedConfig):
        yield "knows processes only (cluster=simulated)"
    if config.precision is Precision.fp16:
        yield "has no loss scale that all workers agree on (precision=fp16)"
    if config.max_grad_norm is not None:
        yield f"clips each bucket, not the whole model (max_grad_norm={config.max_grad_norm})"


def _rounds_without_decent_dp(topology: DecentralizedConfig, schedule: Schedule) -> Iterator[str]:
    """It knows disjoint groups in which every worker has a peer, in every round."""
    rounds = schedule.phases[0].topology.rounds
    groups = [group for round_ in rounds if isinstance(round_, GroupRound) for group in round_.groups]
    if any(not isinstance(round_, GroupRound) for round_ in rounds):
        yield f"averages in disjoint groups, which topology={topology.name} is not"
    elif any(len(group.ranks) == 1 for group in groups):
        yield f"lets no worker rest in a round, as topology={topology.name} does"
