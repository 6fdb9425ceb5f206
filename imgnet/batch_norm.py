"""Batch norm's running statistics of an averaged model, measured on images instead of averaged over the workers.

A worker's statistics trail its own parameters; those of the average lie where no worker has been.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.optim.swa_utils import update_bn

from imgnet.config import Precision
from imgnet.evaluate import autocast


@contextmanager
def recalibrated(
    module: nn.Module, images: Iterable[Tensor], device: torch.device, precision: Precision
) -> Iterator[None]:
    """Statistics over ``images`` in the place of the running ones; at the end all buffers are as before. Collective.

    The forward passes are those of training, dropout included; no random state of the worker moves.

    Args:
        module: the same parameters on all workers. Without batch norm nothing is done, and no image is asked for.
        images: float ``[n, 3, height, width]`` each, this worker's; as many batches of one size on all workers.
        device: of the module.
        precision: of the forward passes.
    """
    statistics = _statistics(module)
    own = [buffer.clone() for buffer in module.buffers()]
    if statistics:
        was_training = module.training
        on_gpu = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=on_gpu), autocast(device, precision):
            update_bn(images, module)  # the mean over the batches, each of the same weight
        module.train(was_training)
        for mean in statistics:
            dist.all_reduce(mean.div_(dist.get_world_size()))
    try:
        yield
    finally:
        for buffer, before in zip(module.buffers(), own, strict=True):
            buffer.copy_(before)


def _statistics(module: nn.Module) -> list[Tensor]:
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    found = [tensor for norm in norms for tensor in (norm.running_mean, norm.running_var)]
    return [tensor for tensor in found if tensor is not None]
