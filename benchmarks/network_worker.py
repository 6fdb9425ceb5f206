"""One host's worker of ``benchmarks.network``: runs every case, and prints a line for each on rank 0."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchvision.models import resnet50

from benchmarks.network import HOSTS, Case, Result, address, overrides_of
from imgnet.config import AllReduceConfig, Compression, DecentralizedConfig, RunConfig, SgdConfig
from imgnet.optim.factory import build_optimizer
from imgnet.parallel.averaging.registry import way_of
from imgnet.parallel.averaging.rhythm import Rhythm
from imgnet.parallel.build import build_strategy
from imgnet.parallel.collectives import sum_over_workers
from imgnet.parallel.engines.decentralized import Decentralized
from imgnet.parallel.engines.strategy import Strategy
from imgnet.parallel.topology import all_reduce_bytes, build_topology, bytes_per_step
from imgnet.plan.compose import composed_runs
from imgnet.plan.computation import Computation
from imgnet.plan.measure import measure_passes, measure_updates
from imgnet.plan.measure_network import as_values, measure_network
from imgnet.plan.timeline.buckets import Gradient
from imgnet.results.pictures.traffic import powersgd_values
from imgnet.runtime import Runtime

PORT = 29_500
WORKERS_PER_NODE = 2
WARM_UP_STEPS = 2
MANY = 1_000_000
"""Steps of an epoch, more than anybody makes here."""
NUM_MEASURED_PASSES = 4
NUM_MEASURED_UPDATES = 10
SHARE_OF_FORWARD = 1 / 3
NUM_PARAMETERS = 25_557_032
WIDTHS = {"fp32": 4, "bf16": 2}
SGD = SgdConfig(name="sgd", lr=1e-3, weight_decay=3e-5, momentum=0.9)


class Pace:
    """How long a layer computes: seconds of a whole pass, split evenly.

    A pause that a busy machine ends late shortens the next ones, as an accelerator goes on while its host is late.
    """

    def __init__(self, num_layers: int) -> None:
        self.num_layers = num_layers
        self.compute_s = 0.0
        self._late_s = 0.0

    def forward(self) -> None:
        """Pause for one layer's forward pass."""
        self._pause(self.compute_s * SHARE_OF_FORWARD / self.num_layers)

    def backward(self) -> None:
        """Pause for one layer's backward pass."""
        self._pause(self.compute_s * (1 - SHARE_OF_FORWARD) / self.num_layers)

    def _pause(self, seconds: float) -> None:
        start = time.perf_counter()
        if seconds > self._late_s:
            time.sleep(seconds - self._late_s)
        self._late_s = max(0.0, self._late_s + time.perf_counter() - start - seconds)


class _PacedLayer(torch.autograd.Function):
    """A layer that takes its time, hands its input on, and has small gradients."""

    @staticmethod
    def forward(ctx: Any, pace: Pace, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.pace = pace
        ctx.save_for_backward(*parameters)
        pace.forward()
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        ctx.pace.backward()
        return None, grads[0], *(torch.zeros_like(parameter) for parameter in ctx.saved_tensors)


def shapes_of_resnet50() -> list[list[tuple[int, ...]]]:
    """Of the parameters, layer by layer."""
    with torch.device("meta"):
        shapes = [[tuple(p.shape) for p in layer.parameters(recurse=False)] for layer in resnet50().modules()]
    return [layer for layer in shapes if layer]


class PacedResNet50(nn.Module):
    """The parameters of ResNet-50, layer by layer; a stated time instead of a computation."""

    def __init__(self) -> None:
        super().__init__()
        layers = [[nn.Parameter(0.05 * torch.randn(shape)) for shape in layer] for layer in shapes_of_resnet50()]
        self.layers: Any = nn.ModuleList(nn.ParameterList(layer) for layer in layers)
        self.pace = Pace(len(layers))

    def forward(self, images: Tensor) -> Tensor:
        """A scalar."""
        x = images.mean()
        for layer in self.layers:
            x = _PacedLayer.apply(self.pace, x, *layer)
        return x


def objective(module: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """The loss, which nobody looks at."""
    return module(images) + 0 * targets.sum()


def bucket_mb_of(method: str, task: dict[str, Any]) -> int:
    """Size of a message: as the task says, or as in a run where it says nothing."""
    defaults = AllReduceConfig if method == "allreduce" else DecentralizedConfig
    return task["bucket_mb"] or defaults.bucket_mb


def configuration(case: Case, bucket_mb: int | None, max_grad_norm: float | None = None) -> RunConfig:
    """Of a run of this case."""
    sizes = [] if bucket_mb is None else [f"topology.bucket_mb={bucket_mb}"]
    clipping = [] if max_grad_norm is None else [f"max_grad_norm={max_grad_norm}"]
    (config,) = composed_runs([*overrides_of(case), *sizes, *clipping])
    return config


def make_strategy(config: RunConfig, module: nn.Module, runtime: Runtime) -> Strategy:
    """What the case is about, on new parameters."""
    return build_strategy(config, module, objective, lambda named: build_optimizer(named, SGD), runtime, MANY)


def rhythm_of(config: RunConfig) -> Rhythm:
    """When averages come."""
    find = way_of(config.averaging).rhythms
    assert find is not None
    *_, (_, rhythm) = find(config.averaging, config, lambda: MANY)
    return rhythm


def limit_s(case: Case, rate_mbit: int, compute_s: float) -> float:
    """max(compute, bytes / bandwidth) of a step; the busiest worker of each round counts. Headers are left out."""
    config = configuration(case, None)
    wire_s = _bytes_of_step(config, case.wire) * 8 / (rate_mbit * 1e6)
    return max(compute_s, wire_s)


def _bytes_of_step(config: RunConfig, wire: str) -> float:
    if isinstance(config.topology, AllReduceConfig):
        values = NUM_PARAMETERS
        if config.topology.compression is Compression.powersgd:
            rank, rate = config.topology.powersgd_rank, config.topology.powersgd_min_compression_rate
            values = sum(powersgd_values(shape, rank, rate) for layer in shapes_of_resnet50() for shape in layer)
        return all_reduce_bytes(values * WIDTHS[wire], HOSTS)
    topology = build_topology(config.topology.name, HOSTS, WORKERS_PER_NODE)
    longest = []
    for round_ in topology.rounds:
        sent = bytes_per_step([round_], HOSTS, WORKERS_PER_NODE, NUM_PARAMETERS, WIDTHS[wire])
        longest.append((sent.within_node + sent.between_nodes).max())
    return sum(longest) / len(longest) / rhythm_of(config).fragments.every


def slow_ranks() -> Iterator[int]:
    """Who is slow in step 0, 1, 2, ...; the same on all workers, and in a prediction."""
    random = Random(1)  # noqa: S311
    while True:
        yield random.randrange(HOSTS)


def measure(case: Case, runtime: Runtime, task: dict[str, Any]) -> Result:
    """Steps of one case, whole intervals between averages. Collective."""
    torch.manual_seed(0)
    module = PacedResNet50()
    config = configuration(case, task["bucket_mb"])
    strategy = make_strategy(config, module, runtime)
    interval = rhythm_of(config).num_steps
    num_steps = task["steps"] if interval >= MANY else -(-task["steps"] // interval) * interval
    draw = slow_ranks()
    images, targets = torch.zeros(1, 3, 8, 8), torch.zeros(1)

    def step(number: int) -> None:
        slow = case.straggler and next(draw) == runtime.rank
        module.pace.compute_s = task["compute_s"] * (2 if slow else 1)
        strategy.step(images, targets, SGD.lr, number)

    for number in range(WARM_UP_STEPS):
        step(number)
    strategy.communication_wait_s()  # no barrier: it would let messages arrive that nobody is charged for
    sent_before, times = _bytes_sent(), [time.perf_counter()]
    for number in range(num_steps):
        step(WARM_UP_STEPS + number)
        times.append(time.perf_counter())
    sent_mb = (_bytes_sent() - sent_before) / 1e6 / num_steps
    step_s, wait_s = (times[-1] - times[0]) / num_steps, strategy.communication_wait_s() / num_steps
    if isinstance(strategy, Decentralized):
        for averaging in strategy._method.averagings:  # nothing may be under way when the next case begins
            averaging.settle()
    measured = [step_s, wait_s, sent_mb, *step_s_of_thirds(times, interval)]
    step_s, wait_s, sent_mb, *thirds = [total / HOSTS for total in sum_over_workers(measured, runtime.device)]
    rate = task["rate_mbit"]
    limit = limit_s(case, rate, task["compute_s"])
    return Result(case, rate, step_s, min(thirds), max(thirds), wait_s, sent_mb, limit)


def step_s_of_thirds(times: Sequence[float], interval: int) -> list[float]:
    """Seconds per step of each third of the steps, in whole intervals between averages; of fewer parts, if need be.

    Args:
        times: when the first step began, and when each ended.
        interval: steps.
    """
    interval = min(interval, len(times) - 1)  # longer than the measurement where nobody averages
    num_intervals = (len(times) - 1) // interval
    num_parts = min(3, num_intervals)
    cuts = [interval * (num_intervals * part // num_parts) for part in range(num_parts + 1)]
    return [(times[stop] - times[start]) / (stop - start) for start, stop in pairwise(cuts)]


def measure_parts(runtime: Runtime, task: dict[str, Any]) -> dict[str, Any]:
    """What a prediction starts from: a link between two hosts, and a step of all workers without messages. Collective.

    Returns:
        ``link``: latency and bandwidth; ``points`` of the curve; ``computation``, times as means over the workers.
    """
    measured = measure_network(replace(runtime, local_rank=0, local_world_size=1))
    assert measured.between is not None
    module = PacedResNet50()
    module.pace.compute_s = task["compute_s"]
    images, targets = torch.zeros(1, 3, 8, 8), torch.zeros(1)
    passes = measure_passes(module, lambda: objective(module, images, targets), NUM_MEASURED_PASSES, runtime.device)
    make = lambda named: build_optimizer(named, SGD)  # noqa: E731
    updates = measure_updates(module, make, bucket_mb_of("ring", task), NUM_MEASURED_UPDATES, runtime.device)
    times = [median(passes.seconds), updates.update_s, updates.bucket_s, *updates.mixing_s.values()]
    pass_s, update_s, bucket_s, *mixing_s = (total / HOSTS for total in sum_over_workers(times, runtime.device))
    sizes = [parameter.numel() for parameter in module.parameters()]
    computation = Computation(
        about="paced",
        gradients=tuple(map(Gradient, sizes, passes.ready)),
        fixed_s=pass_s,
        image_s=0.0,
        update_s=update_s,
        bucket_s=bucket_s,
        mixing_s=dict(zip(updates.mixing_s, mixing_s, strict=True)),
    )
    points = as_values(measured)["points"]
    return {"link": asdict(measured.between), "points": points, "computation": asdict(computation)}


def _bytes_sent() -> int:
    return int(Path("/sys/class/net/eth/statistics/tx_bytes").read_text(encoding="ascii"))


@contextmanager
def joined(rank: int) -> Iterator[Runtime]:
    """The process group of the four hosts."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://{address(0)}:{PORT}", rank=rank, world_size=HOSTS)
    yield Runtime(rank, HOSTS, rank % WORKERS_PER_NODE, WORKERS_PER_NODE, torch.device("cpu"), 1)
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    """Run the cases that the second argument lists, as the rank that the first one names."""
    rank, task = int(sys.argv[1]), json.loads(sys.argv[2])
    with joined(rank) as runtime:
        if task.get("measures_parts"):
            parts = measure_parts(runtime, task)
            if runtime.is_main:
                print(json.dumps(parts), flush=True)
        for written in task["cases"]:
            result = measure(Case(**written), runtime, task)
            if runtime.is_main:
                print(json.dumps(asdict(result)), flush=True)


if __name__ == "__main__":
    main()
