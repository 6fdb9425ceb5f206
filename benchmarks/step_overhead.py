"""What our loops cost over bare ones of the same model, batch and data.

    python benchmarks/step_overhead.py [--steps 60] [--rounds 5]

AllReduce on two gloo workers beside ``DistributedDataParallel``, and the decentralized loop on one worker beside plain
training. The bare loop is what a tutorial would write: forward, loss, backward, optimizer step. Both run in the same
processes, in turns, so that a machine whose speed drifts treats them alike; the figure is the median over the rounds of
the ratio of their times.
"""

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.spread import spread
from imgnet.config import (
    AllReduceConfig,
    DataConfig,
    DataKind,
    DecentralizedConfig,
    LocalConfig,
    ModelConfig,
    Precision,
    RunConfig,
    SgdConfig,
)
from imgnet.data.loader import TrainLoader, build_eval_loader, build_train_loader
from imgnet.evaluate import AUTOCAST_DTYPES, autocast
from imgnet.models.build import build_model
from imgnet.optim.factory import build_optimizer
from imgnet.parallel.build import build_workers
from imgnet.parallel.requests import Requests
from imgnet.runtime import Runtime
from imgnet.tracking.tracker import Tracker
from imgnet.train import Loop, objective_of
from tests.distributed.harness import NOBODY_WATCHES, on_workers

CASES = (
    ("AllReduce over DDP, two workers", AllReduceConfig(name="allreduce"), 2, 1.01),
    ("decentralized over plain training, one worker", DecentralizedConfig(name="ring"), 1, 1.02),
)
"""What is compared, its topology, the number of workers, and the ratio that is wanted at most."""
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
    """The loop of a tutorial, with DDP where there are several workers."""

    def __init__(self, config: RunConfig, runtime: Runtime, loader: TrainLoader) -> None:
        self.loader = loader
        self.precision = config.precision
        self.smoothing = config.label_smoothing
        model = new_model(config, runtime.device)
        several = runtime.world_size > 1
        self.model = DistributedDataParallel(model, gradient_as_bucket_view=True) if several else model
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, fused=True)

    def run(self) -> None:
        """One epoch."""
        for batch in self.loader.batches(epoch=0):
            with autocast(batch.images.device, self.precision):
                logits = self.model(batch.images)
            loss = functional.cross_entropy(logits.float(), batch.targets, label_smoothing=self.smoothing)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()


def new_model(config: RunConfig, device: torch.device) -> nn.Module:
    """The same start for both."""
    torch.manual_seed(0)
    return build_model(
        config.model, config.data.num_classes, device=device, channels_last=True, compiled=config.compile
    )


class Ours:
    """The loop of a run, without its launch."""

    def __init__(self, config: RunConfig, runtime: Runtime, folder: Path) -> None:
        self.config, self.runtime, self.folder = config, runtime, folder
        batch, dtype = config.global_batch_size, AUTOCAST_DTYPES.get(config.precision, torch.float32)
        common = {"channels_last": True, "worker": runtime, "dtype": dtype}
        self.loader = build_train_loader(config.data, seed=1, global_batch_size=batch, **common)
        self.evaluating = build_eval_loader(config.data, local_batch_size=batch, **common)
        make_optimizer = partial(build_optimizer, config=config.optimizer)
        self.model = new_model(config, runtime.device)
        per_epoch = self.loader.steps_per_epoch
        made = build_workers(config, self.model, objective_of(config), make_optimizer, runtime, per_epoch)
        self.strategy, self.members = made

    def epoch(self) -> Callable[[Tracker], object]:
        """An epoch that is ready to run with a tracker."""
        members, loaders = self.members, (self.loader, self.evaluating)
        loop = Loop(self.config, self.runtime, self.folder, self.strategy, members, *loaders, NOBODY_WATCHES)
        requests = Requests(threading.Event(), None, self.runtime.rank)
        return lambda tracker: loop.train_epoch(tracker, requests)

    def tracker(self) -> Tracker:
        """Of a new epoch."""
        return Tracker(self.config, self.runtime, self.folder, self.loader.steps_per_epoch)


def measure(runtime: Runtime, config: RunConfig, rounds: int, folder: Path) -> list[tuple[float, float]]:
    """Seconds of both loops in each round, ``(ours, bare)``, on this worker."""
    ours = Ours(config, runtime, folder)
    bare = Bare(config, runtime, ours.loader)
    times = []
    for _ in range(rounds + 1):
        epoch = ours.epoch()
        with ours.tracker() as tracker:
            times.append((timed(partial(epoch, tracker), runtime), timed(bare.run, runtime)))
    return times[1:]  # the first round warms up


def timed(function: Callable[[], object], runtime: Runtime) -> float:
    """Seconds of a call that all workers begin together, to the end of what it left to the device."""
    dist.barrier()
    start = time.perf_counter()
    function()
    if runtime.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Print one line for each round and the median ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps of each loop in a round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    for what, topology, workers, limit in CASES:
        config = replace(configuration(options.steps), topology=topology)
        with tempfile.TemporaryDirectory() as folder:
            times = on_workers(measure, workers, Path(folder), config, options.rounds, Path(folder), timeout_s=1800)[0]
        for ours, bare in times:
            steps = options.steps / 1e3
            print(f"ours {ours / steps:7.2f} ms/step   bare {bare / steps:7.2f} ms/step   ratio {ours / bare:.3f}")
        print(f"{what}: ratio {spread([ours / bare for ours, bare in times], '.3f')}; limit {limit}")


if __name__ == "__main__":
    main()
