"""Everything that can be said against a run before a process is started, in one list and in the user's words."""

from pathlib import Path

from imgnet import published
from imgnet.checkpoint.manifest import DamagedError, checkpoints_at, differences, read_manifest
from imgnet.config import (
    AccumAdamConfig,
    AdamConfig,
    AllReduceConfig,
    ConfigError,
    DecentralizedConfig,
    Engine,
    Mode,
    OptimizerConfig,
    Precision,
    RunConfig,
    SgdConfig,
    SlurmConfig,
    WireDtype,
)
from imgnet.data import checks as data_checks
from imgnet.launch import batch, compression
from imgnet.launch.layout import Layout, layout_of
from imgnet.parallel.schedule import build_schedule, node_size
from imgnet.parallel.topology import GroupRound, NeighbourRound, Schedule
from imgnet.runtime import Placement

SECRET_WORDS = ("KEY", "TOKEN", "SECRET", "PASSWORD")
GPUS_WITHOUT_BF16 = ("T4", "V100", "P100", "RTX2080")


def check(config: RunConfig, placement: Placement | None = None) -> Layout:
    """Accept a run, or refuse it with every problem at once.

    Args:
        config: the run.
        placement: where torchrun or srun put this process; None where the run starts its own workers.

    Raises:
        ConfigError: one line for each problem.
    """
    problems: list[str] = []
    layout = None
    try:
        layout = layout_of(config.cluster, placement)
    except ConfigError as error:
        problems += error.problems
    problems += _lengths(config) + _cluster(config)
    if layout is not None and layout.world_size > 0:
        problems += shape_problems(config, layout)
    problems += (
        _model(config)
        + _checkpoint(config)
        + data_checks.problems(config.data)
        + published.problems(config)
        + _optimizer(config.optimizer, config.epochs)
    )
    if problems:
        raise ConfigError(problems)
    assert layout is not None
    return layout


def shape_problems(config: RunConfig, layout: Layout) -> list[str]:
    """What is wrong with how a run is spread over its workers, one line each: its batches and its topology."""
    return _batches(config, layout) + _topology(config, layout)


def _at_least(minimum: float, **values: float | None) -> list[str]:
    return [
        f"{key.replace('__', '.')}={value}; at least {minimum} is needed"
        for key, value in values.items()
        if value is not None and value < minimum
    ]


def _lengths(config: RunConfig) -> list[str]:
    problems = _at_least(
        1,
        epochs=config.epochs,
        max_steps=config.max_steps,
        global_batch_size=config.global_batch_size,
        num_accumulation_steps=config.num_accumulation_steps,
        evaluate_every_epochs=config.evaluate_every_epochs,
        log_every_steps=config.log_every_steps,
    ) + _at_least(0, seed=config.seed)
    for key in ("label_smoothing", "evaluate_label_smoothing"):
        if not 0 <= getattr(config, key) < 1:
            problems.append(f"{key}={getattr(config, key)} is outside [0, 1)")
    if config.max_grad_norm is not None and config.max_grad_norm <= 0:
        problems.append(f"max_grad_norm={config.max_grad_norm} must be positive; null for no clipping")
    if not config.name or any(letter in config.name for letter in "/\\\0") or config.name.startswith("."):
        problems.append(f"name={config.name!r} names a folder; use letters, digits, '.', '_' and '-'")
    return problems


def _model(config: RunConfig) -> list[str]:
    weights, pretrained = config.model.weights, config.model.pretrained
    if weights is None:
        nothing = config.mode is Mode.evaluate and not pretrained
        return ["mode=evaluate needs model.weights=<file> or model.pretrained=true"] if nothing else []
    if pretrained:
        return [f"model.pretrained=true contradicts model.weights={weights}; choose one"]
    if not Path(weights).is_file():
        return [f"model.weights={weights}: there is no such file"]
    if Path(weights).suffix != ".safetensors":
        return [f"model.weights={weights}: an exported model ends in .safetensors"]
    return []


def _checkpoint(config: RunConfig) -> list[str]:
    wanted = config.checkpoint
    problems = _at_least(1, checkpoint__every_epochs=wanted.every_epochs, checkpoint__keep_last=wanted.keep_last)
    if wanted.every_min is not None and wanted.every_min <= 0:
        problems.append(f"checkpoint.every_min={wanted.every_min} must be positive; null for never")
    if config.resume not in ("auto", "none"):
        problems += _resume(config)
    return problems


def _resume(config: RunConfig) -> list[str]:
    if not Path(config.resume).is_dir():
        return [f"resume={config.resume}: neither auto, none, nor the folder of a checkpoint or a run"]
    found = checkpoints_at(Path(config.resume))
    if not found:
        return [f"resume={config.resume}: there is no whole checkpoint in that folder"]
    try:
        different = differences(read_manifest(found[0]), config)
    except DamagedError as damage:
        return [f"resume={damage}"]
    if different and not config.checkpoint.allow_differences:
        return [
            f"resume={config.resume} is of another run: {'; '.join(different)}. checkpoint.allow_differences=true "
            "starts from its averaged model all the same"
        ]
    return []


def _optimizer(optimizer: OptimizerConfig, epochs: int) -> list[str]:
    problems = _at_least(
        0,
        optimizer__weight_decay=optimizer.weight_decay,
        optimizer__warmup_epochs=optimizer.warmup_epochs,
        optimizer__min_lr=optimizer.min_lr,
    )
    if optimizer.lr <= 0:
        problems.append(f"optimizer.lr={optimizer.lr} must be positive")
    elif optimizer.min_lr > optimizer.lr:
        problems.append(f"optimizer.min_lr={optimizer.min_lr} is above optimizer.lr={optimizer.lr}")
    if optimizer.warmup_epochs >= epochs >= 1:
        problems.append(f"optimizer.warmup_epochs={optimizer.warmup_epochs} leaves nothing of epochs={epochs}")
    if not 0 < optimizer.warmup_factor <= 1:
        problems.append(f"optimizer.warmup_factor={optimizer.warmup_factor} is outside (0, 1]")
    if isinstance(optimizer, SgdConfig):
        problems += _sgd(optimizer)
    if isinstance(optimizer, AdamConfig):
        problems += _adam(optimizer)
    return problems


def _sgd(optimizer: SgdConfig) -> list[str]:
    if not 0 <= optimizer.momentum < 1:
        return [f"optimizer.momentum={optimizer.momentum} is outside [0, 1)"]
    if optimizer.nesterov and optimizer.momentum == 0:
        return ["optimizer.nesterov=true needs optimizer.momentum above 0"]
    if optimizer.quasi_global and optimizer.momentum == 0:
        return ["optimizer.quasi_global=true needs optimizer.momentum above 0; without it it is plain sgd"]
    return []


def _adam(optimizer: AdamConfig) -> list[str]:
    problems = []
    if len(optimizer.betas) != 2 or not all(0 <= beta < 1 for beta in optimizer.betas):
        problems.append(f"optimizer.betas={optimizer.betas} must be two numbers in [0, 1)")
    if optimizer.eps <= 0:
        problems.append(f"optimizer.eps={optimizer.eps} must be positive")
    if isinstance(optimizer, AccumAdamConfig):
        problems += _at_least(1, optimizer__accum_iter=optimizer.accum_iter)
    return problems


def _cluster(config: RunConfig) -> list[str]:
    cluster = config.cluster
    if not isinstance(cluster, SlurmConfig):
        return []
    problems = _at_least(
        1,
        cluster__nodes=cluster.nodes,
        cluster__gpus_per_node=cluster.gpus_per_node,
        cluster__cpus_per_gpu=cluster.cpus_per_gpu,
        cluster__timeout_min=cluster.timeout_min,
        cluster__mem_gb=cluster.mem_gb,
        cluster__max_parallel=cluster.max_parallel,
        cluster__notice_min=cluster.notice_min,
    ) + _at_least(0, cluster__max_requeues=cluster.max_requeues)
    if cluster.max_requeues and cluster.notice_min >= cluster.timeout_min > 0:
        problems.append(
            f"cluster.notice_min={cluster.notice_min} leaves nothing of cluster.timeout_min={cluster.timeout_min}; "
            "cluster.max_requeues=0 gives no notice"
        )
    problems += batch.problems(cluster)
    problems += [
        f"cluster.env.{name}: a secret would be written to the run directory; export it in your shell instead"
        for name in cluster.env
        if any(word in name.upper() for word in SECRET_WORDS)
    ]
    problems += [
        f"{key}=bf16: {cluster.gpu_type} has no bf16 arithmetic; use {key}=fp16"
        for key in ("precision", "evaluate_precision")
        if getattr(config, key) is Precision.bf16 and cluster.gpu_type in GPUS_WITHOUT_BF16
    ]
    return problems


def _batches(config: RunConfig, layout: Layout) -> list[str]:
    batch, workers, accumulation = config.global_batch_size, layout.world_size, config.num_accumulation_steps
    if min(batch, accumulation) < 1 or config.mode is Mode.evaluate:
        return []
    if batch < workers:
        return [
            f"global_batch_size={batch} has fewer images than there are workers, {workers} (cluster="
            f"{config.cluster.name}); write global_batch_size={workers} or a multiple of it"
        ]
    if batch % workers:
        return [f"global_batch_size={batch} is not divisible by {workers} workers (cluster={config.cluster.name})"]
    if (batch // workers) % accumulation:
        return [
            f"num_accumulation_steps={accumulation} does not divide the {batch // workers} images that each of "
            f"{workers} workers has in a step (global_batch_size={batch})"
        ]
    num_train = data_checks.known_num_train(config.data)
    if num_train is not None and batch > num_train:
        return [f"global_batch_size={batch} is more than the {num_train} training images of data={config.data.name}"]
    return []


def _topology(config: RunConfig, layout: Layout) -> list[str]:
    topology = config.topology
    if isinstance(topology, AllReduceConfig):
        problems = _at_least(1, topology__bucket_mb=topology.bucket_mb) + _of_decentralized_runs_only(config)
        return problems + compression.problems(config, topology, layout.world_size)
    assert isinstance(topology, DecentralizedConfig)
    problems = _at_least(1, topology__bucket_mb=topology.bucket_mb) + _switches(topology, config.epochs)
    try:
        per_node = node_size(config.cluster, layout.workers_per_node)
        schedule = build_schedule(topology, layout.world_size, per_node, steps_per_epoch=1)
    except ValueError as error:
        return [*problems, f"{error} (cluster={config.cluster.name})"]
    if schedule.directed is not None:
        name = schedule.directed.name
        return [*problems, f"topology={name} is directed, which no engine does yet; it needs averaging=push_sum"]
    if topology.engine is Engine.decent_dp:
        problems += _decent_dp(config, layout, schedule)
    return problems


def _of_decentralized_runs_only(config: RunConfig) -> list[str]:
    if isinstance(config.optimizer, SgdConfig) and config.optimizer.quasi_global:
        return [
            "optimizer.quasi_global=true is momentum for workers that differ, and with topology=allreduce none do; "
            "choose another topology"
        ]
    return []


def _switches(topology: DecentralizedConfig, epochs: int) -> list[str]:
    problems = [
        "topology.schedule names allreduce, which averages gradients; use complete, which averages parameters exactly"
        for switch in topology.schedule
        if switch.topology == "allreduce"
    ]
    problems += [
        f"topology.schedule has after_epochs={switch.after_epochs}, which epochs={epochs} never reaches"
        for switch in topology.schedule
        if switch.after_epochs >= epochs >= 1
    ]
    names = {switch.topology for switch in topology.schedule}
    if names and topology.schedule[0].after_epochs == 0 and topology.name not in names:
        problems.append(
            f"topology.schedule replaces topology={topology.name} from the first step to the last; name it there too, "
            f"such as {{after_epochs: 5, topology: {topology.name}}}"
        )
    return problems


def _decent_dp(config: RunConfig, layout: Layout, schedule: Schedule) -> list[str]:
    """What the published engine cannot do; ``topology.engine=imgnet`` can do all of it."""
    topology = config.topology
    assert isinstance(topology, DecentralizedConfig)
    reasons = []
    if layout.world_size < 2:
        reasons.append("needs 2 or more workers")
    else:
        reasons += _rounds_without_decent_dp(topology, schedule)
    if topology.wire_dtype is not WireDtype.fp32:
        reasons.append(f"sends fp32 only (topology.wire_dtype={topology.wire_dtype.value})")
    if topology.schedule:
        reasons.append("has one topology for the whole run (topology.schedule)")
    if config.precision is Precision.fp16:
        reasons.append("has no loss scale that all workers agree on (precision=fp16)")
    if config.max_grad_norm is not None:
        reasons.append(f"clips each bucket, not the whole model (max_grad_norm={config.max_grad_norm})")
    return [f"topology.engine=decent_dp {reason}; use topology.engine=imgnet" for reason in reasons]


def _rounds_without_decent_dp(topology: DecentralizedConfig, schedule: Schedule) -> list[str]:
    """It knows disjoint groups in which every worker has a peer, in every round."""
    rounds = schedule.phases[0].topology.rounds
    if any(isinstance(round_, NeighbourRound) for round_ in rounds):
        return [f"averages in disjoint groups, which topology={topology.name} is not"]
    groups = [group for round_ in rounds if isinstance(round_, GroupRound) for group in round_.groups]
    if any(len(group.ranks) == 1 for group in groups):
        what = f"topology.every={topology.every}" if topology.every > 1 else f"topology={topology.name}"
        return [f"lets no worker rest in a round, as {what} does"]
    return []
