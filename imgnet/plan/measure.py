"""Measure what one worker computes: passes, when each gradient is there, updates. On whatever device is here."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from imgnet.config import DecentralizedConfig, RunConfig
from imgnet.models.build import build_model
from imgnet.optim.factory import build_optimizer
from imgnet.parallel.engines.decentralized import Bucket
from imgnet.parallel.engines.strategy import OptimizerFactory
from imgnet.parallel.flat import split_into_buckets
from imgnet.plan.computation import Computation
from imgnet.plan.timeline.buckets import Gradient
from imgnet.train import objective_of

WARM_UP_STEPS = 3
Task = Callable[[], object]


class StopWatch:
    """Moments on a device's own clock: the host's on a CPU, events in the stream on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"

    def now(self) -> Any:
        """This moment, to be given to :meth:`seconds`. Waits for nothing."""
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: Any, end: Any) -> float:
        """Between two moments. Waits for the second."""
        if not self._on_gpu:
            return end - start
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def time(self, task: Task) -> float:
        """Seconds of a task."""
        start = self.now()
        task()
        return self.seconds(start, self.now())


@dataclass(frozen=True)
class Passes:
    """Forward and backward passes of one batch size.

    Attributes:
        seconds: of each pass.
        ready: for each parameter that is trained the share of a pass after which its gradient is there, the median.
    """

    seconds: list[float]
    ready: list[float]


def measure_passes(module: nn.Module, loss_of: Callable[[], Tensor], num_steps: int, device: torch.device) -> Passes:
    """Time passes, and note when each gradient arrives.

    Args:
        module: whose parameters have hooks for as long as this takes; their gradients are removed.
        loss_of: a forward pass.
        num_steps: passes that count, after some that do not.
        device: of the module.
    """
    watch, trained = StopWatch(device), [parameter for parameter in module.parameters() if parameter.requires_grad]
    seconds: list[float] = []
    shares: list[list[float]] = []
    with _noting_gradients(trained, watch) as arrivals:
        for step in range(WARM_UP_STEPS + num_steps):
            start = watch.now()
            loss_of().backward()
            took = watch.seconds(start, watch.now())
            if step >= WARM_UP_STEPS:
                seconds.append(took)
                shares.append([watch.seconds(start, arrivals[place]) / took for place in range(len(trained))])
            module.zero_grad()
    ready = np.median(np.array(shares), axis=0).clip(1e-9, 1.0)
    return Passes(seconds, ready.tolist())


@contextmanager
def _noting_gradients(parameters: Sequence[nn.Parameter], watch: StopWatch) -> Iterator[dict[int, Any]]:
    arrivals: dict[int, Any] = {}

    def note(place: int, _: Tensor) -> None:
        arrivals[place] = watch.now()

    handles = [
        parameter.register_post_accumulate_grad_hook(partial(note, place)) for place, parameter in enumerate(parameters)
    ]
    try:
        yield arrivals
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Updates:
    """See :class:`imgnet.plan.computation.Computation`."""

    update_s: float
    bucket_s: float
    mixing_s: dict[str, float]


def measure_updates(
    module: nn.Module, make_optimizer: OptimizerFactory, bucket_mb: int, num_steps: int, device: torch.device
) -> Updates:
    """Time updates of the whole model and in buckets, and the arithmetic of averaging.

    Args:
        module: its parameters are moved into blocks, and changed.
        make_optimizer: of the run.
        bucket_mb: size of a message.
        num_steps: repetitions, of which the median counts.
        device: of the module.
    """
    trained = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    watch = StopWatch(device)
    at_once = make_optimizer(trained)
    update_s = _median_s(lambda: _update([at_once]), lambda: _fill_gradients(module), num_steps, watch)
    buckets = [Bucket(part, make_optimizer) for part in split_into_buckets(trained, bucket_mb * 2**20)]
    optimizers = [bucket.optimizer for bucket in buckets]
    in_buckets_s = _median_s(lambda: _update(optimizers), lambda: _fill_gradients(module), num_steps, watch)
    blocks = [bucket.block for bucket in buckets]
    mixing_s = {
        wire: _median_s(partial(_mix, blocks, _messages(blocks, dtype)), lambda: None, num_steps, watch)
        for wire, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
    }
    return Updates(update_s, max(0.0, in_buckets_s - update_s) / len(buckets), mixing_s)


def _median_s(task: Task, prepare: Task, num_steps: int, watch: StopWatch) -> float:
    seconds = []
    for _ in range(WARM_UP_STEPS + num_steps):
        prepare()
        seconds.append(watch.time(task))
    return median(seconds[WARM_UP_STEPS:])


def _fill_gradients(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None


def _update(optimizers: Sequence[torch.optim.Optimizer]) -> None:
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


def _messages(blocks: Sequence[Tensor], dtype: torch.dtype) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For each block what is sent, what came, and room for fp32 values."""
    largest = max(block.numel() for block in blocks)
    scratch = torch.empty(largest, device=blocks[0].device)
    return [(block.to(dtype).clone(), block.to(dtype).clone(), scratch[: block.numel()]) for block in blocks]


@torch.no_grad()
def _mix(blocks: Sequence[Tensor], messages: Sequence[tuple[Tensor, Tensor, Tensor]]) -> None:
    """What a pair does with a message (:class:`imgnet.parallel.transfers.PeerExchange`), without sending it."""
    for block, (sent, received, scratch) in zip(blocks, messages, strict=True):
        if sent.dtype == block.dtype:
            block.mul_(0.5).add_(received, alpha=0.5)
        else:
            sent.copy_(block)
            block.add_(scratch.copy_(received), alpha=0.5).sub_(scratch.copy_(sent), alpha=0.5)


def measure_computation(
    config: RunConfig, device: torch.device, batch_size: int, num_steps: int
) -> tuple[Computation, dict[str, Any]]:
    """Measure a run's model on one worker.

    Passes are timed with ``batch_size`` images and with half of them, which tells what does not depend on their number.

    Returns:
        The computation, and the settings under which it was measured.
    """
    model = build_model(
        config.model,
        config.data.num_classes,
        device=device,
        channels_last=config.channels_last,
        compiled=config.compile,
    )
    passes = {size: _passes(config, model, size, num_steps, device) for size in (batch_size, max(1, batch_size // 2))}
    fixed_s, image_s = line_through({size: median(one.seconds) for size, one in passes.items()})
    topology = config.topology
    bucket_mb = topology.bucket_mb if isinstance(topology, DecentralizedConfig) else DecentralizedConfig.bucket_mb
    updates = measure_updates(model, partial(build_optimizer, config=config.optimizer), bucket_mb, num_steps, device)
    whole = passes[batch_size]
    trained = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    settings = _settings(config, device, batch_size, num_steps)
    computation = Computation(
        about=f"{config.model.name} at {config.data.train_px} pixels as measured on {settings['device']}",
        gradients=tuple(map(Gradient, trained, whole.ready)),
        fixed_s=fixed_s,
        image_s=image_s,
        step_spread=float(np.std(whole.seconds) / np.mean(whole.seconds)),
        **vars(updates),
    )
    return computation, settings


def _passes(config: RunConfig, model: nn.Module, size: int, num_steps: int, device: torch.device) -> Passes:
    px, layout = config.data.train_px, torch.channels_last if config.channels_last else torch.contiguous_format
    images = torch.randn(size, 3, px, px, device=device).contiguous(memory_format=layout)
    targets = torch.randint(config.data.num_classes, (size,), device=device)
    objective = objective_of(config)
    return measure_passes(model.train(), lambda: objective(model, images, targets), num_steps, device)


def line_through(seconds: dict[int, float]) -> tuple[float, float]:
    """``(fixed, for each image)`` from the time of a pass with one or two numbers of images; neither is negative."""
    (most, longest), *others = seconds.items()
    for fewer, shorter in others:
        image_s = (longest - shorter) / (most - fewer)
        if image_s > 0 and longest >= image_s * most:
            return longest - image_s * most, image_s
    return 0.0, longest / most


def _settings(config: RunConfig, device: torch.device, batch_size: int, num_steps: int) -> dict[str, Any]:
    return {
        "model.name": config.model.name,
        "data.train_px": config.data.train_px,
        "data.num_classes": config.data.num_classes,
        "precision": config.precision.value,
        "compile": config.compile,
        "optimizer": config.optimizer.name,
        "batch_size": batch_size,
        "num_steps": num_steps,
        "device": _name_of(device),
        "torch": torch.__version__,
    }


def _name_of(device: torch.device) -> str:
    return (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads of a CPU"
    )
