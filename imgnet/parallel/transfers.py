"""One worker's part in a round of averaging, on one block of memory: what it sends, and what is made of what comes.

Messages are fp32, or bf16 for half the bytes. In bf16 a worker's own values stay fp32, and what it takes from the
others is a difference of rounded values, so that all that one worker gains another one loses: **the mean of all
workers is kept** up to the rounding of fp32, and rounding errors never add up over the steps. The result of a round
differs from the exact one by at most ``2^-7`` (neighbours) or ``2^-6`` (groups of three or more) times the largest
value among the workers that average, times the share ``1 - W[i, i]`` that they take of one another (groups:
``n / (n - 1)`` times that). Workers therefore come no closer to one another than bf16 can tell.
"""

from abc import ABC, abstractmethod
from itertools import pairwise
from typing import final

import torch
from torch import Tensor

from imgnet.parallel.topology import Arrows, Group, Neighbours, Part
from imgnet.parallel.wire import Arrival, Message, Wire


class Lane:
    """A block, and what its transfers share: their way to the other workers, buffers, room to compute in.

    The transfers of a block take turns; those of several blocks do not.

    Args:
        block: this worker's values, 1-D, fp32.
        wire: to the other workers.
        dtype: numbers in the messages.
        tag: this number and the next are of no other lane of the wire.
        scratch: fp32, at least as large as the block; used within :meth:`Transfer.finish` only, one for all lanes.
    """

    def __init__(self, block: Tensor, wire: Wire, dtype: torch.dtype, tag: int, scratch: Tensor) -> None:
        self.block = block
        self.wire = wire
        self.dtype = dtype
        self.tag = tag
        self.scratch = scratch
        self._buffers: dict[tuple[str, int, torch.dtype], Tensor] = {}

    @property
    def rounds_values(self) -> bool:
        """Whether messages are narrower than the block."""
        return self.dtype != self.block.dtype

    def buffer(self, name: str, size: int, dtype: torch.dtype) -> Tensor:
        """A tensor ``[size]``, the same one for the same name; made when first asked for."""
        key = (name, size, dtype)
        if key not in self._buffers:
            self._buffers[key] = torch.empty(size, dtype=dtype, device=self.block.device)
        return self._buffers[key]


class Transfer(ABC):
    """The life of a round: ``start``, computation that leaves the block as it is, ``wait``, ``finish``."""

    @abstractmethod
    def start(self) -> None:
        """Send the block as it is now. Returns at once."""

    @abstractmethod
    def wait(self) -> None:
        """Wait until the block was sent and all that is needed has come. A second call does nothing."""

    @abstractmethod
    def finish(self) -> None:
        """Replace the block by this worker's row of the mixing matrix."""


def as_neighbours(part: Part, rank: int) -> Neighbours | Group | None:
    """A pair written as two neighbours, which exchange their blocks directly; every other part as it is.

    A pair's all-reduce would need a process group of its own, and a random topology has thousands of pairs.
    """
    assert not isinstance(part, Arrows), "directed rounds are refused before the start: they need push-sum"
    if not isinstance(part, Group) or len(part.ranks) > 2:
        return part
    peer = next(other for other in part.ranks if other != rank)
    return Neighbours(((peer, 1.0 - part.weight),))


@final
class PeerExchange(Transfer):
    """Blocks exchanged with each neighbour: ``x <- x + sum(weight * (x_peer - x))``, in bf16 of rounded values.

    Args:
        lane: of the block.
        neighbours: the peers, which have an exchange with this worker.
    """

    def __init__(self, lane: Lane, neighbours: Neighbours) -> None:
        self._block = lane.block
        self._neighbours = neighbours
        self._scratch = lane.scratch[: lane.block.numel()]
        self._rounds_values = lane.rounds_values
        peers = [peer for peer, _ in neighbours.peers]
        size = self._block.numel()
        self._sent = lane.buffer("own", size, lane.dtype) if self._rounds_values else self._block
        self.received = [lane.buffer(f"received {place}", size, lane.dtype) for place in range(len(peers))]
        """What each peer sent, once ``wait`` has returned and until ``finish``."""
        messages = [Message(peer, self._sent, values) for peer, values in zip(peers, self.received, strict=True)]
        self._start = lane.wire.exchange(messages, lane.tag)
        self._arrival: Arrival | None = None

    def start(self) -> None:
        """See :meth:`Transfer.start`."""
        if self._rounds_values:
            self._sent.copy_(self._block)
        self._arrival = self._start()

    def wait(self) -> None:
        """See :meth:`Transfer.wait`."""
        if self._arrival is not None:
            self._arrival.wait()

    def finish(self) -> None:
        """See :meth:`Transfer.finish`."""
        if not self._rounds_values:
            self._block.mul_(self._neighbours.self_weight)
        for (_, weight), received in zip(self._neighbours.peers, self.received, strict=True):
            self._block.add_(self._as_fp32(received), alpha=weight)
        if self._rounds_values:
            self._block.sub_(self._as_fp32(self._sent), alpha=1.0 - self._neighbours.self_weight)

    def _as_fp32(self, values: Tensor) -> Tensor:
        return self._scratch.copy_(values) if self._rounds_values else values


@final
class GroupAllReduce(Transfer):
    """A group averaged by one all-reduce of fp32, which every backend does well.

    Args:
        lane: of the block, with fp32 on the wire.
        group: of three or more.
    """

    def __init__(self, lane: Lane, group: Group) -> None:
        self._block = lane.block
        self._share = (1.0 - group.weight) / (len(group.ranks) - 1)
        self._own = 0.0 if group.is_uniform else group.weight - self._share  # the sum holds the own values once
        self._sum = lane.buffer("received 0", lane.block.numel(), lane.block.dtype)
        self._start = lane.wire.all_reduce(self._sum, group.ranks)
        self._arrival: Arrival | None = None

    def start(self) -> None:
        """See :meth:`Transfer.start`."""
        torch.mul(self._block, self._share, out=self._sum)
        self._arrival = self._start()

    def wait(self) -> None:
        """See :meth:`Transfer.wait`."""
        if self._arrival is not None:
            self._arrival.wait()

    def finish(self) -> None:
        """See :meth:`Transfer.finish`."""
        if self._own == 0.0:
            self._block.copy_(self._sum)
        else:
            self._block.mul_(self._own).add_(self._sum)


@final
class ShardedMean(Transfer):
    """A group averaged in two exchanges of rounded values: as many values as an all-reduce sends, and no bias.

    Member ``k`` is in charge of the ``k``-th part of the block. All send it their rounded values Q(x) of that part; it
    adds them up in fp32 and sends the mean m back, rounded. It rounds for one member after the other and carries each
    error over to the next, so that the errors of all cancel; what is left at the end it takes itself. Then
    ``x <- x + share * n * (m - Q(x))``, where ``share * n`` is 1 for the plain mean.

    (An all-reduce in bf16 rounds every partial sum, and would move the mean of all workers by that in each step.)

    Args:
        lane: of the block; with fp32 on the wire the mean is exact.
        group: of two or more.
        rank: this worker.
    """

    def __init__(self, lane: Lane, group: Group, rank: int) -> None:
        members = len(group.ranks)
        self._block = lane.block
        self._gain = (1.0 - group.weight) / (members - 1) * members
        self._scratch = lane.scratch[: lane.block.numel()]
        self._place = group.ranks.index(rank)
        self._own = lane.buffer("own", self._block.numel(), lane.dtype)
        self._means = lane.buffer("received 0", self._block.numel(), lane.dtype)
        parts = _parts(self._block.numel(), members)
        self._part = parts[self._place]
        size = self._part.stop - self._part.start
        self._rows = lane.buffer("rows", members * size, lane.dtype).view(members, size)
        self._mean = lane.buffer("mean", size, self._block.dtype)
        self._carry = lane.buffer("carry", size, self._block.dtype)
        self._values = lane.buffer("values", size, self._block.dtype)
        others = [(place, peer) for place, peer in enumerate(group.ranks) if place != self._place]
        gathered = [Message(peer, self._own[parts[place]], self._rows[place]) for place, peer in others]
        scattered = [Message(peer, self._rows[place], self._means[parts[place]]) for place, peer in others]
        self._gather = lane.wire.exchange(gathered, lane.tag)
        self._scatter = lane.wire.exchange(scattered, lane.tag + 1)
        self._means_sent: Arrival | None = None
        self._means_came: Arrival | None = None

    def start(self) -> None:
        """See :meth:`Transfer.start`."""
        self._own.copy_(self._block)
        self._means_sent = self._gather().then(self._return_means)

    def _return_means(self) -> None:
        self._rows[self._place].copy_(self._own[self._part])
        self._mean.zero_()
        for row in self._rows:
            self._mean.add_(self._values.copy_(row))
        self._mean.div_(len(self._rows))
        self._carry.zero_()
        for place, row in enumerate(self._rows):
            if place != self._place:
                self._carry.add_(self._mean)
                row.copy_(self._carry)
                self._carry.sub_(self._values.copy_(row))
        self._means_came = self._scatter()

    def wait(self) -> None:
        """See :meth:`Transfer.wait`."""
        if self._means_sent is not None:
            self._means_sent.wait()
            assert self._means_came is not None
            self._means_came.wait()

    def finish(self) -> None:
        """See :meth:`Transfer.finish`."""
        self._scratch.copy_(self._means)
        torch.add(self._mean, self._carry, out=self._scratch[self._part])
        self._block.add_(self._scratch, alpha=self._gain)
        self._block.sub_(self._scratch.copy_(self._own), alpha=self._gain)


def _parts(size: int, number: int) -> list[slice]:
    bounds = [size * place // number for place in range(number + 1)]
    return [slice(start, stop) for start, stop in pairwise(bounds)]
