"""Which settings decide what a run gives, and which what its training computes: all but those that are named here.

So a new key counts by itself. One whose default does what was done before it came leaves earlier runs what they are:
where a configuration lacks a key, it stands for the default.
"""

from collections.abc import Collection, Mapping
from dataclasses import is_dataclass
from functools import cache
from typing import Any

from omegaconf import MISSING, OmegaConf

from imgnet.config.composed import plain
from imgnet.config.groups import group_schemas
from imgnet.config.ranges import declared
from imgnet.config.schemas import RunConfig

NOT_IN_THE_RESULT = (
    # How a run is kept, shown, sent and repeated.
    "checkpoint",
    "fail_fast",
    "hang_timeout_min",
    "log_every_steps",
    "on_sweep_end",
    "profile",
    "skip_completed",
    "tracking",
    # How its images come to the workers, and when the run gives up on that.
    "data.max_bad_images",
    "data.num_workers",
    "data.stage_timeout_min",
    "data.stage_to",
    # How it is queued.
    "cluster.account",
    "cluster.additional_parameters",
    "cluster.array_parallelism",
    "cluster.comment",
    "cluster.dependency",
    "cluster.dry_run",
    "cluster.exclude",
    "cluster.mail_type",
    "cluster.mail_user",
    "cluster.max_num_timeout",
    "cluster.mem_gb",
    "cluster.mem_per_cpu",
    "cluster.mem_per_gpu",
    "cluster.name",
    "cluster.network",
    "cluster.nodelist",
    "cluster.partition",
    "cluster.qos",
    "cluster.runs_per_job",
    "cluster.signal_delay_s",
    "cluster.tasks_per_node",
    "cluster.timeout_min",
    "cluster.wait",
)
"""Keys, and groups of them, in which runs may differ that give the same result."""

MAY_CHANGE_ON_THE_WAY = (
    *NOT_IN_THE_RESULT,
    # What it is called, and what is done with it. (Weights to start from bring the preprocessing of their images.)
    "mode",
    "name",
    "resume",
    # When it ends, and when somebody looks at it: workers are after an evaluation where they were before.
    "evaluate_every_epochs",
    "max_steps",
    # On what it runs. How many workers there are, and on a node where the topology asks, is compared by itself.
    "cluster.accelerator",
    "cluster.constraint",
    "cluster.cpu_workers_per_node",
    "cluster.cpus_per_task",
    "cluster.env",
    "cluster.gpu_type",
    "cluster.gpus_per_node",
    "cluster.images_per_s",
    "cluster.like",
    "cluster.nodes",
    "cluster.num_workers",
    "cluster.setup",
    "cluster.simulated_nodes",
    "cluster.srun_args",
    "cluster.workers_per_node",
)
"""Those in which a run may differ from the one whose checkpoint it goes on from, and make the same steps."""

GONE = {"topology.every": 1}
"""Keys that earlier runs have, each with the value that says nothing else than its absence."""


def is_among(named: Collection[str], key: str) -> bool:
    """Whether a key is named, or a group that it belongs to."""
    return any(key == name or key.startswith(f"{name}.") for name in named)


def of_the_result(config: RunConfig) -> dict[str, Any]:
    """The settings that decide what a run gives, by their keys; values as JSON holds them."""
    settings = _without(NOT_IN_THE_RESULT, config)
    if config.resume in ("auto", "none"):
        del settings["resume"]  # where a run takes up its own checkpoint it gives what it would have given
    return settings


def of_the_training(config: RunConfig) -> dict[str, Any]:
    """The settings that decide what the steps of training compute, but for who the workers are."""
    return _without(MAY_CHANGE_ON_THE_WAY, config)


def every_setting(config: RunConfig) -> dict[str, Any]:
    """All settings, by their keys; values as JSON holds them."""
    return _without((), config)


def differing(there: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Keys whose values differ, each with both. What one lacks, because its schema has no such key, is the default."""
    known = GONE | defaults()
    pairs = {key: (there.get(key, known.get(key)), here.get(key, known.get(key))) for key in {**there, **here}}
    return {key: (one, other) for key, (one, other) in pairs.items() if one != other}


@cache
def schemas() -> dict[str, list[Any]]:
    """Every schema by the group that it is for; those of keys without a group stand under the empty name."""
    found: dict[str, list[Any]] = {"": [RunConfig]}
    of_groups = group_schemas()
    for name, kind in declared(RunConfig).items():
        if is_dataclass(kind.plain):
            found[name] = [*of_groups[name].values()] if name in of_groups else [kind.plain]
    return found


@cache
def defaults() -> dict[str, Any]:
    """What each key is where nobody sets it; without those that must be set."""
    found: dict[str, Any] = {}
    for group, of_group in schemas().items():
        for schema in of_group:
            values: Any = OmegaConf.to_container(OmegaConf.structured(schema), enum_to_str=True)
            found |= {f"{group}.{key}" if group else key: value for key, value in values.items() if value != MISSING}
    return found


def _without(exceptions: tuple[str, ...], config: RunConfig) -> dict[str, Any]:
    values = plain(config)
    flat = {key: value for key, value in values.items() if key not in schemas()}
    flat |= {f"{group}.{key}": value for group in schemas() if group for key, value in values[group].items()}
    return {key: value for key, value in flat.items() if not is_among(exceptions, key)}
