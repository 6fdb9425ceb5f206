"""Seconds per step, per epoch and hours of a run on a described cluster, and what they go into."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from imgnet.config import (
    AllReduceConfig,
    Compression,
    ConfigError,
    DataConfig,
    DecentralizedConfig,
    Precision,
    RunConfig,
    WireDtype,
)
from imgnet.data.checks import known_num_train
from imgnet.data.sampling.order import steps_per_epoch
from imgnet.layout import Layout, layout_of
from imgnet.parallel.schedule import node_size
from imgnet.parallel.shape import shape_problems
from imgnet.plan.cluster import network_of
from imgnet.plan.computation import Computation
from imgnet.plan.timeline import buckets
from imgnet.plan.timeline.method import AllReduceMethod, GossipMethod, Method
from imgnet.plan.timeline.network import Network
from imgnet.plan.timeline.phases import Phase, phases_of
from imgnet.plan.timeline.replay import FEWEST_STEPS, replay
from imgnet.plan.timeline.script import Work
from imgnet.plan.timeline.stragglers import Stragglers

NUM_STEPS = 200
BYTES = {WireDtype.fp32: 4, WireDtype.bf16: 2}
NUM_TRAIN_OF_IMAGENET = 1_281_167


@dataclass(frozen=True)
class Setting:
    """All that a prediction of one run follows from."""

    config: RunConfig
    layout: Layout
    network: Network
    computation: Computation
    """Of a worker of this cluster."""
    stragglers: Stragglers


@dataclass(frozen=True)
class Prediction:
    """What a run would take. All times in seconds unless the name says otherwise; nothing of it was measured.

    ``step_s`` is the sum of ``computation_s`` and the three that follow it, each of which is what a step is longer for
    that reason.
    """

    topology: str
    averaging: str
    cluster: str
    num_workers: int
    images_per_worker: int
    """In a step."""
    step_s: float
    computation_s: float
    """Passes, updates and the arithmetic of averaging."""
    latency_s: float
    """Waiting for messages that have no size."""
    bandwidth_s: float
    """Waiting for their size, beside that."""
    stragglers_s: float
    """Waiting for workers that are slower than the others; negative where the draws are faster than the mean."""
    message_s: float
    """That a worker's messages take on idle links."""
    num_steps_of_epoch: int
    num_epochs: int
    is_bound: bool
    """The true time is this or longer: see :func:`imgnet.plan.timeline.replay.replay`."""

    @property
    def epoch_s(self) -> float:
        """Training of an epoch, without evaluation, checkpoints and waiting for data."""
        return self.step_s * self.num_steps_of_epoch

    @property
    def run_h(self) -> float:
        """Training of the whole run, in hours."""
        return self.epoch_s * self.num_epochs / 3600

    @property
    def images_per_s(self) -> float:
        """Of all workers together."""
        return self.num_workers * self.images_per_worker / self.step_s

    @property
    def hidden(self) -> float | None:
        """The share of ``message_s`` that costs no time; None where nothing is sent."""
        if self.message_s == 0:
            return None
        return float(np.clip(1 - (self.latency_s + self.bandwidth_s) / self.message_s, 0, 1))

    @property
    def limited_by(self) -> str:
        """What most of a step goes into."""
        parts = {
            "computation": self.computation_s,
            "latency": self.latency_s,
            "bandwidth": self.bandwidth_s,
            "stragglers": self.stragglers_s,
        }
        return max(parts, key=lambda name: parts[name])


def setting_of(
    config: RunConfig, computation: Computation, stragglers: Stragglers, layout: Layout | None = None
) -> Setting:
    """Check what a prediction needs of a run, and put it together.

    Args:
        config: the run.
        computation: of a worker of relative speed 1.
        stragglers: how passes vary.
        layout: where its workers were; None: where the cluster would put them.

    Raises:
        ConfigError: one line for each problem.
    """
    layout = layout or layout_of(config.cluster, None)
    problems = shape_problems(config, layout.world_size, layout.workers_per_node)
    try:
        network = network_of(config.cluster, layout)
    except ConfigError as error:
        raise ConfigError(problems + error.problems) from None
    if problems:
        raise ConfigError(problems)
    return Setting(config, layout, network, computation.at_speed(config.cluster.network.relative_speed), stragglers)


def predict(setting: Setting, num_train: int | None = None, num_steps: int = NUM_STEPS) -> Prediction:
    """Replay a run's steps.

    Args:
        setting: the run.
        num_train: training images; None: as many as the data is known to have.
        num_steps: that are replayed, at most.

    Raises:
        ConfigError: nobody knows how many training images there are.
    """
    config, world_size = setting.config, setting.layout.world_size
    images = num_train or num_train_of(config.data)
    phases = [(share, _parts(setting, phase, num_steps)) for share, phase in _phases(setting, images)]
    seconds = {key: sum(share * parts.seconds[key] for share, parts in phases) for key in phases[0][1].seconds}
    return Prediction(
        topology=config.topology.name,
        averaging=config.averaging.name,
        cluster=config.cluster.name,
        num_workers=world_size,
        images_per_worker=config.global_batch_size // world_size,
        **seconds,
        num_steps_of_epoch=steps_per_epoch(images, config.global_batch_size),
        num_epochs=config.epochs,
        is_bound=any(parts.is_bound for _, parts in phases),
    )


def step_times(setting: Setting, num_steps: int = NUM_STEPS) -> list[tuple[float, float]]:
    """Of each part of a run with its own topology or rhythm of averages: its share of the epochs, seconds of a step.

    Raises:
        ConfigError: it is a run that is not predicted.
    """
    return [(share, _parts(setting, phase, num_steps).seconds["step_s"]) for share, phase in _phases(setting)]


def num_train_of(data: DataConfig) -> int:
    """How many training images there will be.

    Raises:
        ConfigError: only counting a folder tells.
    """
    known = known_num_train(data)
    if known is None and data.name == "imagenet":
        return NUM_TRAIN_OF_IMAGENET
    if known is None:
        raise ConfigError([f"data={data.name}: how many training images there are is not known; write --num-train N"])
    return known


@dataclass(frozen=True)
class _Parts:
    """What a step of one topology goes into, by the names that a prediction has for it."""

    seconds: dict[str, float]
    is_bound: bool


def _phases(setting: Setting, num_train: int | None = None) -> list[tuple[float, Phase | None]]:
    """The parts of a run, each with its share of the epochs; None averages gradients."""
    config, layout = setting.config, setting.layout
    topology = config.topology
    if isinstance(topology, AllReduceConfig) and topology.compression is not Compression.none:
        raise ConfigError([f"topology.compression={topology.compression.value}: predictions know none only"])
    if not isinstance(topology, DecentralizedConfig):
        return [(1.0, None)]

    def of_an_epoch() -> int:
        return steps_per_epoch(num_train or num_train_of(config.data), config.global_batch_size)

    per_node = node_size(config.cluster, layout.workers_per_node)
    return [*phases_of(config, layout.world_size, per_node, of_an_epoch)]


def _parts(setting: Setting, phase: Phase | None, num_steps: int) -> _Parts:
    """Replay with nothing in the way of the computation, then add one hindrance after the other."""
    network, world_size = setting.network, setting.layout.world_size
    period = 1 if phase is None else phase.period(num_steps)
    num_steps = max(num_steps, 2 * period)
    fewest = FEWEST_STEPS if phase is None else max(FEWEST_STEPS, 2 * phase.rhythm.num_steps)
    even = np.ones((max(2 * period, min(num_steps, max(FEWEST_STEPS, 3 * period))), world_size))
    uneven = setting.stragglers.draw(num_steps, world_size) if setting.stragglers.are_any else even

    def step_s(links: Network, factors: NDArray[np.float64]) -> tuple[float, bool]:
        method, work = method_and_work(setting, phase, links)
        timeline = replay(method, work, factors, kinds_take_turns=links.kinds_take_turns, fewest_steps=fewest)
        return timeline.settled_step_s(period), timeline.is_bound

    pure, _ = step_s(network.without_cost(), even)
    without_size, _ = step_s(network.without_bandwidth(), even)
    undisturbed, is_bound = step_s(network, even)
    whole, is_bound = step_s(network, uneven) if setting.stragglers.are_any else (undisturbed, is_bound)
    seconds = {
        "step_s": whole,
        "computation_s": pure,
        "latency_s": without_size - pure,
        "bandwidth_s": undisturbed - without_size,
        "stragglers_s": whole - undisturbed,
        "message_s": _message_s(method_and_work(setting, phase, network)[0], period),
    }
    return _Parts(seconds, is_bound)


def method_and_work(setting: Setting, phase: Phase | None, network: Network) -> tuple[Method, Work]:
    """What a run exchanges, and what a worker computes.

    Args:
        setting: the run.
        phase: who averages parameters with whom, and when; None: gradients are averaged over all.
        network: that the messages go over.
    """
    config, computation = setting.config, setting.computation
    images = config.global_batch_size / setting.layout.world_size
    passes = config.num_accumulation_steps
    if phase is None:
        assert isinstance(config.topology, AllReduceConfig)
        split = buckets.by_gradient(computation.gradients, config.topology.bucket_mb)
        work = computation.work(split, images, passes, updated_at_once=True)
        return AllReduceMethod([4.0 * bucket.num_values for bucket in split], network), work
    assert isinstance(config.topology, DecentralizedConfig)
    wire = config.topology.wire_dtype
    split = buckets.by_registration(
        computation.gradients, config.topology.bucket_mb, at_least=phase.rhythm.fragments.number
    )
    work = computation.work(split, images, passes, updated_at_once=False)
    method = GossipMethod(
        [float(BYTES[wire] * bucket.num_values) for bucket in split],
        computation.mixing_of(split, wire.value),
        phase.schedule,
        network,
        phase.rhythm,
        groups_exchange_directly=wire is WireDtype.bf16,
        updates_follow=config.max_grad_norm is not None or config.precision is Precision.fp16,
    )
    return method, work


def _message_s(method: Method, period: int) -> float:
    """What a worker's messages of a step take on idle links, the mean over workers and rounds."""
    seconds = 0.0
    for step in range(period):
        for exchange in method.exchanges(step):
            flows = exchange.traffic.flows
            of_all = sum(flow.cost.seconds(exchange.num_bytes) * len(flow.ranks) for flow in flows)
            seconds += of_all / exchange.traffic.world_size
    return seconds / period
