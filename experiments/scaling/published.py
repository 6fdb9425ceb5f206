"""Prediction against published times of a Transformer: each cluster's smallest size calibrates, others are held out.

``python -m experiments.scaling.published`` prints all of it; it takes about a minute.

Published are milliseconds per iteration in strong scaling, 25,000 tokens in a batch whatever the number of GPUs
(arXiv 2410.11998), with the package ``decent-dp`` whose order of events is that of our engine. README.md beside this
file says what is assumed, what is fitted, and what came out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from imgnet.config import GroupAlgorithm
from imgnet.parallel.topology import Schedule, build_topology
from imgnet.plan.timeline.buckets import Gradient, by_gradient
from imgnet.plan.timeline.method import AllReduceMethod, GossipMethod, Method
from imgnet.plan.timeline.network import Link, Network
from imgnet.plan.timeline.replay import replay
from imgnet.plan.timeline.script import Work

METHODS = ("allreduce", "exp", "alternating-exp-ring")
TOKENS = 25_000
"""Of a batch, over all GPUs."""

D, FEED_FORWARD, LAYERS, VOCABULARY = 512, 2048, 6, 37_120
"""Transformer (base) as the authors configure it for WMT14 English-German; the embedding is the output layer, too."""
BUCKET_MB = 25

NUM_KERNELS = 1_757
"""Operations of a forward and a backward pass in half precision, as torch 2.15 dispatches them, without views."""
KERNEL_S = 10e-6
"""What each costs whatever its size. Usual figures are 5 to 25 microseconds for an operation of PyTorch."""
UPDATE_BYTES = 36
"""Memory traffic of a parameter's update: unscaling reads and writes a gradient (8), Adam seven values (28)."""
MIXING_BYTES = 36
"""And of its averaging in decent-dp: copied (8) and scaled (8) for the message, scaled (8) and added to (12)."""
MEMORY_EFFICIENCY = 0.8

NUM_STEPS = 48
TOKENS_OF_SPREAD = 3_125
"""For which the spread is stated; it falls with the square root of the tokens, as that of a sum of sentences."""


@dataclass(frozen=True)
class Cluster:
    """Nodes of one kind of GPU.

    Attributes:
        per_node: GPUs of a node.
        memory_bytes_per_s: of a GPU, by its data sheet.
        within, between: bytes per second as they are stated, or usual for such links.
        fits_within: the slower of both links, which is fitted, is the one within a node.
        published: milliseconds per iteration by number of GPUs, in the order of ``METHODS``.
        larger: further sizes to predict.
    """

    name: str
    per_node: int
    memory_bytes_per_s: float
    within: float
    between: float
    fits_within: bool
    published: dict[int, tuple[float, float, float]]
    larger: tuple[int, ...]

    @property
    def smallest(self) -> int:
        """GPUs of the size that calibrates."""
        return min(self.published)


CLUSTERS = (
    # T4 have no way to each other but through the host's memory.
    Cluster("T4", 8, 320e9, 6e9, 12.5e9, True, {16: (372.5, 314.8, 312.3), 32: (225.5, 178.8, 178.8)}, (64,)),
    Cluster("A100", 4, 1555e9, 200e9, 12.5e9, False, {8: (73.0, 63.4, 61.7), 16: (54.8, 46.8, 45.8)}, (32,)),
    Cluster("A40", 4, 696e9, 20e9, 3.125e9, False, {8: (166.1, 122.8, 122.0)}, (16, 32)),
)


@dataclass(frozen=True)
class Calibration:
    """What is fitted: for each cluster seconds for a token and bytes per second of its slower link, and one spread."""

    token_s: tuple[float, ...]
    bytes_per_s: tuple[float, ...]
    spread: float


def gradients() -> list[Gradient]:
    """The parameters in the order of registration, ready as the backward pass has done its work on their layers.

    The embedding is the output projection as well, so that its gradient is there last of all.
    """
    layers = list(_layers())
    work = np.array([VOCABULARY * D, *(size for size in reversed(layers))], dtype=np.float64)
    ready = 1 / 3 + 2 / 3 * np.cumsum(work)[1:] / work.sum()
    return [Gradient(VOCABULARY * D, 1.0), *map(Gradient, layers, ready[::-1].tolist())]


def _layers() -> Iterator[int]:
    attention = [3 * D * D, 3 * D, D * D, D]
    feed_forward = [D * FEED_FORWARD, FEED_FORWARD, FEED_FORWARD * D, D]
    norm = [D, D]
    for _ in range(LAYERS):
        yield from attention + feed_forward + 2 * norm
    yield from norm
    for _ in range(LAYERS):
        yield from 2 * attention + feed_forward + 3 * norm
    yield from norm


BUCKETS = by_gradient(gradients(), BUCKET_MB)
NUM_PARAMETERS = sum(bucket.num_values for bucket in BUCKETS)


def iteration_ms(
    cluster: Cluster,
    num_gpus: int,
    method: str,
    token_s: float,
    bytes_per_s: float,
    spread: float,
    kernel_s: float = KERNEL_S,
) -> float:
    """Milliseconds of an iteration."""
    pass_s = NUM_KERNELS * kernel_s + TOKENS / num_gpus * token_s
    factors = _factors(num_gpus, spread * (TOKENS_OF_SPREAD * num_gpus / TOKENS) ** 0.5)
    network = _network(cluster, num_gpus, bytes_per_s)
    byte_s = 1 / (MEMORY_EFFICIENCY * cluster.memory_bytes_per_s)
    work = _work(pass_s, byte_s)
    period = 1 if method == "allreduce" else len(build_topology(method, num_gpus, cluster.per_node).rounds)
    return 1e3 * replay(_method(method, network, byte_s), work, factors).settled_step_s(period)


def _work(pass_s: float, byte_s: float) -> Work:
    ready = np.array([bucket.ready for bucket in BUCKETS])
    values = np.array([bucket.num_values for bucket in BUCKETS])
    return Work(ready * pass_s, pass_s, UPDATE_BYTES * byte_s * values)


def _method(name: str, network: Network, byte_s: float) -> Method:
    sizes = [4.0 * bucket.num_values for bucket in BUCKETS]
    if name == "allreduce":
        return AllReduceMethod(sizes, network)
    mixing = [MIXING_BYTES * byte_s * bucket.num_values for bucket in BUCKETS]
    topology = build_topology(name, network.world_size, network.workers_per_node)
    return GossipMethod(sizes, mixing, Schedule.constant(topology), network)


def _network(cluster: Cluster, num_gpus: int, bytes_per_s: float) -> Network:
    within = Link(10e-6, bytes_per_s if cluster.fits_within else cluster.within)
    between = Link(20e-6, cluster.between if cluster.fits_within else bytes_per_s)
    nodes = num_gpus // cluster.per_node
    return Network(nodes, cluster.per_node, within, between, all_reduce=GroupAlgorithm.ring)


def _factors(num_gpus: int, spread: float) -> NDArray[np.float64]:
    return np.maximum(1 + spread * np.random.default_rng(0).standard_normal((NUM_STEPS, num_gpus)), 0.2)


def calibrate(kernel_s: float = KERNEL_S) -> Calibration:
    """Fit the smallest size of each cluster, three numbers each, in relative errors."""

    def residuals(values: NDArray[np.float64]) -> list[float]:
        found = _calibration(values)
        fitted = list(zip(CLUSTERS, found.token_s, found.bytes_per_s, strict=True))
        missed = [
            np.log(iteration_ms(one, one.smallest, method, token_s, rate, found.spread, kernel_s) / published)
            for one, token_s, rate in fitted
            for method, published in zip(METHODS, one.published[one.smallest], strict=True)
        ]
        return missed + [BANDWIDTH_DOUBT * np.log(rate / _stated(one)) for one, _, rate in fitted]

    first = [np.log(cluster.published[cluster.smallest][2] * cluster.smallest / TOKENS / 1e3) for cluster in CLUSTERS]
    start = [*first, *(np.log(_stated(cluster)) for cluster in CLUSTERS), np.log(0.03)]
    return _calibration(least_squares(residuals, start, diff_step=0.02).x)


BANDWIDTH_DOUBT = 0.05
"""A bandwidth that is off by a factor of e from what is stated counts as much as a prediction that is off by 5 %."""


def _stated(cluster: Cluster) -> float:
    return cluster.within if cluster.fits_within else cluster.between


def _calibration(values: NDArray[np.float64]) -> Calibration:
    found = np.exp(values).tolist()
    number = len(CLUSTERS)
    return Calibration(tuple(found[:number]), tuple(found[number : 2 * number]), found[-1])


def predictions(found: Calibration, kernel_s: float = KERNEL_S) -> dict[tuple[str, int], list[float]]:
    """Milliseconds for every size of every cluster, in the order of ``METHODS``."""
    return {
        (cluster.name, num_gpus): [
            iteration_ms(cluster, num_gpus, method, token_s, bytes_per_s, found.spread, kernel_s) for method in METHODS
        ]
        for cluster, token_s, bytes_per_s in zip(CLUSTERS, found.token_s, found.bytes_per_s, strict=True)
        for num_gpus in (*cluster.published, *cluster.larger)
    }


def main() -> None:
    """Calibrate, and print every size beside what is published."""
    found = calibrate()
    for cluster, token_s, bytes_per_s in zip(CLUSTERS, found.token_s, found.bytes_per_s, strict=True):
        print(f"{cluster.name}: {1e6 * token_s:.2f} us for a token, {bytes_per_s * 8e-9:.1f} Gbit/s fitted")
    print(f"spread of a pass over {TOKENS_OF_SPREAD} tokens: {100 * found.spread:.1f} % fitted\n")
    print(f"| GPUs | {' | '.join(METHODS)} | |\n| --- | {'--- | ' * (len(METHODS) + 1)}")
    for (name, num_gpus), values in predictions(found).items():
        cluster = next(one for one in CLUSTERS if one.name == name)
        print(f"| {num_gpus} {name} | {' | '.join(_cells(cluster, num_gpus, values))} |")


def _cells(cluster: Cluster, num_gpus: int, values: Sequence[float]) -> list[str]:
    published = cluster.published.get(num_gpus)
    if published is None:
        return [*(f"{value:.1f}" for value in values), "predicted"]
    compared = zip(values, published, strict=True)
    role = "calibrates" if num_gpus == cluster.smallest else "held out"
    return [*(f"{value:.1f} ({known}: {100 * (value / known - 1):+.1f} %)" for value, known in compared), role]


if __name__ == "__main__":
    main()
