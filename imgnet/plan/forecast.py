"""Predictions of runs that are about to start, from what is known without asking.

Of runs that a dry run shows, and of simulated workers what their steps would take on the cluster of ``cluster.like``.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from imgnet.config import ConfigError, RunConfig, SimulatedConfig, SlurmConfig
from imgnet.layout import Layout, layout_of
from imgnet.parallel.schedule import sees_nodes
from imgnet.plan.compose import described_cluster
from imgnet.plan.computation import Computation
from imgnet.plan.predict import Prediction, Setting, predict, setting_of, step_times
from imgnet.plan.source import computation_of
from imgnet.plan.timeline.stragglers import Stragglers


@dataclass(frozen=True)
class Forecast:
    """Of each run that could be predicted its prediction; runs that differ in their seed alone are one."""

    predictions: list[Prediction]
    about: str
    """Where the computation comes from."""
    problems: list[str]
    """Why others could not."""
    warnings: list[str]
    """Of runs that one job of Slurm is too short for."""


def forecast(configs: Sequence[RunConfig]) -> Forecast:
    """Predict runs with the measurement in its usual place, or else what was published."""
    predictions, about, problems, warnings = [], [], [], []
    for config in _without_repeats(configs):
        try:
            setting = undisturbed(config, computation_of(config, None, None))
            predictions.append(predict(setting))
            about.append(setting.computation.about)
            warnings += _too_long(config, predictions[-1])
        except ConfigError as error:
            problems += error.problems
    return Forecast(predictions, "; ".join(dict.fromkeys(about)), list(dict.fromkeys(problems)), warnings)


def _too_long(config: RunConfig, prediction: Prediction) -> Iterator[str]:
    """Whether training fits into a job, and if not into those that may follow it."""
    cluster = config.cluster
    if not isinstance(cluster, SlurmConfig) or 60 * prediction.run_h <= cluster.timeout_min:
        return
    of_each = cluster.timeout_min - (cluster.signal_delay_s / 60 if cluster.max_num_timeout else 0)
    further = math.ceil(60 * prediction.run_h / of_each) - 1
    verdict = "allows that" if further <= cluster.max_num_timeout else "is too few"
    yield (
        f"topology={prediction.topology} cluster={prediction.cluster}: predicted to train for {prediction.run_h:.1f} "
        f"h; cluster.timeout_min={cluster.timeout_min} ends a job before that, and it goes on in {further} more: "
        f"cluster.max_num_timeout={cluster.max_num_timeout} {verdict}"
    )


def undisturbed(config: RunConfig, computation: Computation) -> Setting:
    """A run whose workers are alike, and vary as the measured one did.

    Raises:
        ConfigError: one line for each problem.
    """
    return setting_of(config, computation, Stragglers(computation.step_spread))


def _without_repeats(configs: Sequence[RunConfig]) -> list[RunConfig]:
    found: list[RunConfig] = []
    for config in configs:
        alike = replace(config, seed=0)
        if alike not in found:
            found.append(alike)
    return found


def problems_of_likeness(config: RunConfig, simulated: SimulatedConfig) -> Iterator[str]:
    """Why a run cannot be predicted, one line each with the key.

    Args:
        config: the run.
        simulated: its cluster, which names another.
    """
    try:
        step_times(_setting(config, simulated))
    except ConfigError as error:
        yield from (f"cluster.like={simulated.like}: {problem}" for problem in error.problems)


def predicted_like(config: RunConfig, simulated: SimulatedConfig) -> dict[str, Any]:
    """What :class:`imgnet.tracking.predicted.PredictedClock` reads.

    Raises:
        ConfigError: see :func:`problems_of_likeness`.
    """
    setting = _setting(config, simulated)
    return {"cluster": simulated.like, "computation": setting.computation.about, "step_times": step_times(setting)}


def _setting(config: RunConfig, simulated: SimulatedConfig) -> Setting:
    cluster = described_cluster(str(simulated.like))
    if lines := [*_other_shape(config, simulated, layout_of(cluster, None))]:
        raise ConfigError(lines)
    computation = computation_of(config, None, simulated.images_per_s)
    return undisturbed(replace(config, cluster=cluster), computation)


def _other_shape(config: RunConfig, simulated: SimulatedConfig, layout: Layout) -> Iterator[str]:
    """As many workers as the cluster has, and its nodes where they are named, or the topology sees them."""
    number, per_node = layout.world_size, layout.workers_per_node
    shown = simulated.workers_per_node or simulated.num_workers
    named = simulated.workers_per_node is not None or sees_nodes(config.topology)
    if number != simulated.num_workers:
        yield f"it has {number} workers, not {simulated.num_workers}; write cluster.num_workers={number}"
    elif per_node != shown and named:
        yield f"it has nodes of {per_node} workers, not {shown}; write cluster.workers_per_node={per_node}"
