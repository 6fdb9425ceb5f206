"""The average of all workers' models, put in the place of a worker's own for as long as an evaluation takes.

And how far the workers are apart: from their average, and from those that they average with.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Module

from imgnet.parallel.collectives import sum_over_workers
from imgnet.parallel.topology import Arrows, Group, Neighbours, Round
from imgnet.parallel.topology.rounds import uniform
from imgnet.parallel.transfers import ArrowExchange, Lane, PeerExchange, Scratch, ShardedMean, as_neighbours
from imgnet.parallel.wire import Wire


@contextmanager
def standing_in(blocks: Sequence[Tensor], weight: Tensor | None = None) -> Iterator[float]:
    """Replace ``blocks`` by their mean over all workers; at the end they are bit for bit as before. Collective.

    Args:
        blocks: float tensors, of the same shapes on all workers.
        weight: of push-sum, w of this worker.

    Yields:
        ``sqrt(mean_i |x_i / w_i - mean(x)|^2)`` over all blocks together; without a weight w is 1.
    """
    own = [block.clone() for block in blocks]
    try:
        for block in blocks:
            dist.all_reduce(block.div_(dist.get_world_size()))
        yield _distance(divided(own, weight), blocks)
    finally:
        if own:
            torch._foreach_copy_(list(blocks), own)  # pyright: ignore[reportPrivateImportUsage]


def divided(blocks: Sequence[Tensor], weight: Tensor | None) -> Sequence[Tensor]:
    """Where a worker takes its gradients: its blocks, or what push-sum divides out of them."""
    return blocks if weight is None else [block / weight for block in blocks]


def _distance(own: Sequence[Tensor], mean: Sequence[Tensor]) -> float:
    if not own or dist.get_world_size() == 1:
        return 0.0
    squares = sum(float((mine - average).double().square().sum()) for mine, average in zip(own, mean, strict=True))
    (total,) = sum_over_workers([squares], own[0].device)
    return (total / dist.get_world_size()) ** 0.5


def neighbour_distance(blocks: Sequence[Tensor], rounds: Sequence[Round], rank: int, wire: Wire) -> float:
    """How far workers are from those that they average with: ``sqrt(mean |x_i - x_j|^2)``. Collective.

    The mean goes over all pairs of workers that average with each other in one of the rounds, once for each round. It
    costs about one averaging for each round, block by block, in fp32.

    Args:
        blocks: this worker's values, 1-D, fp32.
        rounds: not one of them idle.
        rank: this worker.
        wire: to the other workers; nothing else may be under way on it.

    Returns:
        0 where there are no rounds.
    """
    if not rounds:
        return 0.0
    largest, device = max(block.numel() for block in blocks), blocks[0].device
    scratch, scratch_behind = Scratch(largest, device), Scratch(largest, device)

    def lane_of(block: Tensor) -> Lane:
        return Lane(block, wire, block.dtype, 0, scratch, scratch_behind)

    parts = [part for part in (as_neighbours(round_.part(rank), rank) for round_ in rounds) if part is not None]
    squares = sum(_squares(block, part, rank, lane_of) for part in parts for block in blocks)
    pairs = sum(map(_num_pairs, parts))
    total, count = sum_over_workers([squares, pairs], blocks[0].device)
    return (total / count) ** 0.5


def _num_pairs(part: Group | Neighbours | Arrows) -> int:
    """Pairs that this worker is one of, each of which the other one has too; an arrow, here its receiver's, is two."""
    if isinstance(part, Arrows):
        return 2 * len(part.senders)
    return len(part.ranks) - 1 if isinstance(part, Group) else len(part.peers)


def _squares(block: Tensor, part: Group | Neighbours | Arrows, rank: int, lane_of: Callable[[Tensor], Lane]) -> float:
    """``sum |x_i - x_j|^2`` over those pairs; of a group it comes out as the sum over its pairs."""
    if isinstance(part, Arrows):
        arrows = ArrowExchange(lane_of(block), part)
        arrows.start()
        arrows.wait()
        return 2 * _squares_to(block, arrows.received.values())
    if isinstance(part, Neighbours):
        exchange = PeerExchange(lane_of(block), part)
        exchange.start()
        exchange.wait()
        return _squares_to(block, exchange.received)
    mean, members = block.clone(), len(part.ranks)
    sharded = ShardedMean(lane_of(mean), uniform(part.ranks), rank)
    sharded.start()
    sharded.wait()
    sharded.finish()
    # The sum over all ordered pairs of a group is 2 n times that over its members of |x_i - mean|^2.
    return 2 * members * float((block - mean).double().square().sum())


def _squares_to(block: Tensor, others: Iterable[Tensor]) -> float:
    return sum(float((block - other).double().square().sum()) for other in others)


def float_buffers(module: Module) -> list[Tensor]:
    """The buffers that an average has meaning for: batch norm's running statistics, not its counters."""
    return [buffer for buffer in module.buffers() if buffer.is_floating_point()]
