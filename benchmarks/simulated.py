"""Images per second of workers that take turns in one process, beside plain training with the same local batch.

    python -m benchmarks.simulated [--model resnet18 --px 64] [--workers 8,32,128] [--processes 8] [--topology ring]

Plain training is what a tutorial would write: one model, forward, loss, backward, optimizer step. Both run in one
process, in turns, so that a machine whose speed drifts treats them alike; the figure is the median over the rounds of
their ratio. ``--processes`` measures as many gloo workers as well, on the same cores.
"""

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.spread import spread
from imgnet.config import DecentralizedConfig, ModelConfig, Precision, RunConfig, SgdConfig, SimulatedConfig
from imgnet.models.build import build_model
from imgnet.optim.factory import build_optimizer
from imgnet.parallel.build import build_workers
from imgnet.parallel.engines.strategy import Strategy
from imgnet.runtime import Runtime, available_cores
from imgnet.train import objective_of
from tests.distributed.harness import on_workers

CPU = torch.device("cpu")
CLASSES = 100
LR = 0.01


def configuration(model: str, topology: str, workers: int) -> RunConfig:
    """As much of a run as a strategy reads."""
    return RunConfig(
        precision=Precision.fp32, model=ModelConfig(name=model), topology=DecentralizedConfig(name=topology),
        optimizer=SgdConfig(name="sgd", lr=LR, weight_decay=1e-4, momentum=0.9),
        cluster=SimulatedConfig(name="simulated", num_workers=workers),
    )  # fmt: skip


def batch_of(size: int, px: int) -> tuple[Tensor, Tensor]:
    """Noise, and labels of it."""
    images = torch.randn(size, 3, px, px).to(memory_format=torch.channels_last)
    return images, torch.randint(CLASSES, (size,))


def strategy_of(config: RunConfig, runtime: Runtime) -> Strategy:
    """The workers' training, from the same start."""
    torch.manual_seed(0)
    model = build_model(config.model, CLASSES, device=CPU, channels_last=True)
    make_optimizer = partial(build_optimizer, config=config.optimizer)
    strategy, _ = build_workers(config, model, objective_of(config), make_optimizer, runtime, 1)
    return strategy


def plain_steps(config: RunConfig, images: Tensor, targets: Tensor, number: int) -> Callable[[], None]:
    """So many steps of one model on one local batch."""
    model = build_model(config.model, CLASSES, device=CPU, channels_last=True)
    optimizer = build_optimizer(model.named_parameters(), config=config.optimizer)

    def steps() -> None:
        for _ in range(number):
            functional.cross_entropy(model(images), targets).backward()
            optimizer.step()
            optimizer.zero_grad()

    return steps


def seconds(function: Callable[[], object]) -> float:
    """Wall time of a call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def simulated(runtime: Runtime, arguments: argparse.Namespace, workers: int) -> tuple[list[tuple[float, float]], float]:
    """Seconds of a step of all workers and of as many plain steps, in each round; and the process's peak in GiB."""
    torch.set_num_threads(available_cores())
    config = configuration(arguments.model, arguments.topology, workers)
    strategy = strategy_of(config, replace(runtime, num_simulated=workers, simulated_per_node=workers))
    images, targets = batch_of(workers * arguments.local_batch, arguments.px)
    plain = plain_steps(config, images[: arguments.local_batch], targets[: arguments.local_batch], workers)
    steps = [partial(strategy.step, images, targets, LR, number) for number in range(arguments.rounds + 2)]
    found = [(seconds(step), seconds(plain)) for step in steps]
    return found[2:], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # the first allocate


def processes(runtime: Runtime, arguments: argparse.Namespace) -> list[float]:
    """Seconds of a step of workers that are processes."""
    config = configuration(arguments.model, arguments.topology, runtime.world_size)
    strategy = strategy_of(config, runtime)
    images, targets = batch_of(arguments.local_batch, arguments.px)
    return [seconds(partial(strategy.step, images, targets, LR, step)) for step in range(arguments.rounds + 2)][2:]


def alone(function: Callable[..., object], workers: int, *more: object) -> list:
    """What workers return, who meet in a folder of their own."""
    with tempfile.TemporaryDirectory() as folder:
        return on_workers(function, workers, Path(folder), *more, timeout_s=3600)


def show(name: str, images: int, times: Sequence[float]) -> None:
    """One row."""
    print(f"{name:34s} {images / statistics.median(times):8.1f} images/s")


def main() -> None:
    """Print images per second and the ratio for each number of workers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--px", type=int, default=64)
    parser.add_argument("--local-batch", type=int, default=16)
    parser.add_argument("--topology", default="ring")
    parser.add_argument("--workers", default="8,32,128")
    parser.add_argument("--processes", type=int, default=0, help="As many gloo workers, too; 0: none.")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    what = f"{arguments.model} at {arguments.px} pixels, {arguments.local_batch} images for each worker"
    print(f"{what}, {arguments.topology}, {available_cores()} cores")
    for workers in map(int, arguments.workers.split(",")):
        ((found, peak),) = alone(simulated, 1, arguments, workers)
        images = workers * arguments.local_batch
        show(f"{workers} simulated workers", images, [ours for ours, _ in found])
        show("as many plain steps", images, [plain for _, plain in found])
        print(f"ratio {spread([plain / ours for ours, plain in found], '.3f')}")
        print(f"peak memory of both {peak:.2f} GiB")
    if arguments.processes:
        times = [max(step) for step in zip(*alone(processes, arguments.processes, arguments), strict=True)]
        show(f"{arguments.processes} gloo processes", arguments.processes * arguments.local_batch, times)


if __name__ == "__main__":
    main()
