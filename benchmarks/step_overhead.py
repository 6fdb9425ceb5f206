"""What our AllReduce loop costs over a bare ``DistributedDataParallel`` loop of the same model, batch and data.

    python benchmarks/step_overhead.py [--steps 60] [--rounds 5]

Two gloo workers on this machine. The bare loop is what a tutorial would write: forward, loss, backward, optimizer step.
Both run in the same processes, in turns, so that a machine whose speed drifts treats them alike; the figure is the
median over the rounds of the ratio of their times.
"""

import argparse
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).parents[1]))

from imgnet.config import (
    AllReduceConfig,
    DataConfig,
    DataKind,
    LocalConfig,
    ModelConfig,
    Precision,
    RunConfig,
    SgdConfig,
)
from imgnet.data.loader import TrainLoader, build_eval_loader, build_train_loader
from imgnet.models.build import build_model
from imgnet.optim.factory import build_optimizer
from imgnet.parallel.build import build_workers
from imgnet.parallel.hang import HangWatch
from imgnet.parallel.requests import Requests
from imgnet.runtime import Runtime
from imgnet.tracking.tracker import Tracker
from imgnet.train import Loop, objective_of
from tests.distributed.harness import on_workers

WORLD_SIZE = 2
BATCH = 64
"""Global batch."""


def configuration(steps: int) -> RunConfig:
    """ResNet-18 on 64-pixel synthetic images: a step of some 100 ms on a core, where overhead would show."""
    data = DataConfig(
        name="synthetic", kind=DataKind.synthetic, num_classes=100, train_px=64, eval_px=64, eval_resize_px=64,
        mean=[0.5] * 3, std=[0.25] * 3, num_train=steps * BATCH, num_val=BATCH,
    )  # fmt: skip
    return RunConfig(
        name="overhead", epochs=1, global_batch_size=BATCH, precision=Precision.fp32, label_smoothing=0.1,
        log_every_steps=20, evaluate_every_epochs=10**6, model=ModelConfig(name="resnet18"), data=data,
        topology=AllReduceConfig(name="allreduce"), cluster=LocalConfig(name="local"),
        optimizer=SgdConfig(name="sgd", lr=0.01, weight_decay=1e-4, momentum=0.9, warmup_epochs=0.0),
    )  # fmt: skip


class Bare:
    """The loop of a tutorial."""

    def __init__(self, config: RunConfig, runtime: Runtime, loader: TrainLoader) -> None:
        self.loader = loader
        self.model = DistributedDataParallel(new_model(config), gradient_as_bucket_view=True)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, fused=True)

    def run(self) -> None:
        """One epoch."""
        for batch in self.loader.batches(epoch=0):
            loss = functional.cross_entropy(self.model(batch.images), batch.targets, label_smoothing=0.1)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()


def new_model(config: RunConfig) -> nn.Module:
    """The same start for both."""
    torch.manual_seed(0)
    return build_model(config.model, config.data.num_classes, device=torch.device("cpu"), channels_last=True)


def measure(runtime: Runtime, steps: int, rounds: int, folder: Path) -> list[tuple[float, float]]:
    """Seconds of both loops in each round, ``(ours, bare)``, on this worker."""
    config = configuration(steps)
    loader = build_train_loader(config.data, seed=1, global_batch_size=BATCH, channels_last=True, worker=runtime)
    evaluating = build_eval_loader(config.data, local_batch_size=BATCH, channels_last=True, worker=runtime)
    make_optimizer = partial(build_optimizer, config=config.optimizer)
    model = new_model(config)
    strategy, members = build_workers(config, model, objective_of(config), make_optimizer, runtime, steps)
    bare = Bare(config, runtime, loader)
    times = []
    for _ in range(rounds + 1):
        watch = HangWatch(None, lambda *_: None)
        loop = Loop(config, runtime, folder, strategy, members, loader, evaluating, watch)
        requests = Requests(threading.Event(), None, runtime.rank)
        with Tracker(config, runtime, folder, loader.steps_per_epoch) as tracker:
            times.append((timed(partial(loop.train_epoch, tracker, requests)), timed(bare.run)))
    return times[1:]  # the first round warms up


def timed(function: Callable[[], object]) -> float:
    """Seconds of a call that all workers begin together."""
    dist.barrier()
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    """Print one line for each round and the median ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps of each loop in a round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        times = on_workers(
            measure, WORLD_SIZE, Path(folder), options.steps, options.rounds, Path(folder), timeout_s=1800
        )[0]
    for ours, bare in times:
        print(
            f"ours {ours / options.steps * 1e3:7.2f} ms/step   bare {bare / options.steps * 1e3:7.2f} ms/step", end=""
        )
        print(f"   ratio {ours / bare:.3f}")
    print(f"median ratio {statistics.median(ours / bare for ours, bare in times):.3f} (limit 1.05)")


if __name__ == "__main__":
    main()
