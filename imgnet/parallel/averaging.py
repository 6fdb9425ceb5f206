"""The average of all workers' models, put in the place of a worker's own for as long as an evaluation takes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Module

from imgnet.parallel.collectives import sum_over_workers


@contextmanager
def standing_in(blocks: Sequence[Tensor]) -> Iterator[float]:
    """Replace ``blocks`` by their mean over all workers; at the end they are bit for bit as before. Collective.

    Args:
        blocks: float tensors, of the same shapes on all workers.

    Yields:
        ``sqrt(mean_i |x_i - mean(x)|^2)`` over all blocks together.
    """
    own = [block.clone() for block in blocks]
    try:
        for block in blocks:
            dist.all_reduce(block.div_(dist.get_world_size()))
        yield _distance(own, blocks)
    finally:
        if own:
            torch._foreach_copy_(list(blocks), own)


def _distance(own: Sequence[Tensor], mean: Sequence[Tensor]) -> float:
    if not own or dist.get_world_size() == 1:
        return 0.0
    squares = sum(float((mine - average).double().square().sum()) for mine, average in zip(own, mean, strict=True))
    (total,) = sum_over_workers([squares], own[0].device)
    return (total / dist.get_world_size()) ** 0.5


def float_buffers(module: Module) -> list[Tensor]:
    """The buffers that an average has meaning for: batch norm's running statistics, not its counters."""
    return [buffer for buffer in module.buffers() if buffer.is_floating_point()]
