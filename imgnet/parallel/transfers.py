"""One worker's part in a round of averaging, on one block of memory: what goes over the wire, and what is made of it.

Messages are fp32, or bf16 for half the bytes. In bf16 a worker's own values stay fp32, and what it takes from the
others is a difference of rounded values, so that all that one worker gains another one loses: **the mean of all
workers is kept** up to the rounding of fp32, and rounding errors never add up over the steps. The result of a round
differs from the exact one by at most ``2^-7`` (neighbours) or ``2^-6`` (groups of three or more) times the largest
value among the workers that average, times the share ``1 - W[i, i]`` that they take of one another (groups:
``n / (n - 1)`` times that). Workers therefore come no closer to one another than bf16 can tell.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import final

import torch
import torch.distributed as dist
from torch import Tensor

from imgnet.parallel.topology import Arrows, Group, Neighbours, Part

Wait = Callable[[], object]


class Memory:
    """Buffers of one block, shared by its transfers, which take turns. Each is made once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: dict[tuple[str, int, torch.dtype], Tensor] = {}

    def get(self, name: str, size: int, dtype: torch.dtype) -> Tensor:
        """The buffer of that name, ``[size]``."""
        key = (name, size, dtype)
        if key not in self._buffers:
            self._buffers[key] = torch.empty(size, dtype=dtype, device=self._device)
        return self._buffers[key]


class Background:
    """Does what must follow a message's arrival while the worker goes on computing.

    A thread on CPU, where a wait holds up the one who waits; a second stream on a GPU, where nothing on the host waits.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._thread = None if self._stream else ThreadPoolExecutor(max_workers=1, thread_name_prefix="averaging")

    def submit(self, task: Callable[[], None]) -> Wait:
        """Begin ``task``, after all that was submitted before. Returns what waits for its end, and raises its error."""
        if self._thread is not None:
            return self._thread.submit(task).result
        assert self._stream is not None
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            task()
            return self._stream.record_event().wait


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
    """Blocks exchanged with each neighbour: ``x <- self_weight * x + sum(weight * x_peer)``.

    In bf16, with Q for rounding: ``x <- x + sum(weight * (Q(x_peer) - Q(x)))``.

    Args:
        block: this worker's values, 1-D, fp32.
        neighbours: the peers, which have an exchange with this worker.
        wire: dtype of the messages.
        memory: of this block.
        scratch: fp32, at least as large as the block; used within ``finish`` only, and for bf16 only.
        tag: the same on all workers, and of no other transfer that is under way.
    """

    def __init__(
        self, block: Tensor, neighbours: Neighbours, wire: torch.dtype, memory: Memory, scratch: Tensor, tag: int
    ) -> None:
        self._block = block
        self._neighbours = neighbours
        self._scratch = scratch[: block.numel()]
        self._rounds_values = wire != block.dtype
        self._sent = memory.get("own", block.numel(), wire) if self._rounds_values else block
        self.received = [memory.get(f"received {place}", block.numel(), wire) for place in range(len(neighbours.peers))]
        """What each peer sent, once ``wait`` has returned."""
        peers = [peer for peer, _ in neighbours.peers]
        self._messages = _messages(peers, [self._sent] * len(peers), self.received, tag)
        self._works: list[dist.Work] = []

    def start(self) -> None:
        """See :meth:`Transfer.start`."""
        if self._rounds_values:
            self._sent.copy_(self._block)
        self._works = dist.batch_isend_irecv(self._messages)

    def wait(self) -> None:
        """See :meth:`Transfer.wait`."""
        for work in self._works:
            work.wait()
        self._works = []

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
        block: this worker's values, 1-D, fp32.
        group: of three or more.
        process_group: its communicator.
        memory: of this block.
    """

    def __init__(self, block: Tensor, group: Group, process_group: dist.ProcessGroup, memory: Memory) -> None:
        self._block = block
        self._process_group = process_group
        self._sum = memory.get("received 0", block.numel(), block.dtype)
        self._share = (1.0 - group.weight) / (len(group.ranks) - 1)
        self._own = 0.0 if group.is_uniform else group.weight - self._share  # the sum holds the own values once
        self._work: dist.Work | None = None

    def start(self) -> None:
        """See :meth:`Transfer.start`."""
        torch.mul(self._block, self._share, out=self._sum)
        self._work = dist.all_reduce(self._sum, group=self._process_group, async_op=True)

    def wait(self) -> None:
        """See :meth:`Transfer.wait`."""
        if self._work is not None:
            self._work.wait()
        self._work = None

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
        block: this worker's values, 1-D, fp32.
        group: of two or more.
        rank: this worker.
        wire: dtype of the messages; with fp32 the mean is exact.
        memory: of this block.
        scratch: fp32, at least as large as the block; used within ``finish`` only.
        tag: this number and the next are of no other transfer that is under way.
        background: where the means are made.
    """

    def __init__(
        self,
        block: Tensor,
        group: Group,
        rank: int,
        wire: torch.dtype,
        memory: Memory,
        scratch: Tensor,
        tag: int,
        background: Background,
    ) -> None:
        members = len(group.ranks)
        self._block = block
        self._gain = (1.0 - group.weight) / (members - 1) * members
        self._background = background
        self._scratch = scratch[: block.numel()]
        self._place = group.ranks.index(rank)
        self._own = memory.get("own", block.numel(), wire)
        self._means = memory.get("received 0", block.numel(), wire)
        parts = _parts(block.numel(), members)
        self._part = parts[self._place]
        size = self._part.stop - self._part.start
        self._rows = memory.get("rows", members * size, wire).view(members, size)
        self._mean = memory.get("mean", size, block.dtype)
        self._carry = memory.get("carry", size, block.dtype)
        self._values = memory.get("values", size, block.dtype)
        others = [place for place in range(members) if place != self._place]
        peers = [group.ranks[place] for place in others]
        own, means = [[whole[parts[place]] for place in others] for whole in (self._own, self._means)]
        rows = [self._rows[place] for place in others]
        self._gather = _messages(peers, own, rows, tag)
        self._scatter = _messages(peers, rows, means, tag + 1)
        self._works: list[dist.Work] = []
        self._returned: Wait | None = None

    def start(self) -> None:
        """See :meth:`Transfer.start`."""
        self._own.copy_(self._block)
        works = _begin(self._gather)
        self._returned = self._background.submit(lambda: self._return_means(works))

    def _return_means(self, works: Sequence[dist.Work]) -> None:
        for work in works:
            work.wait()
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
        self._works = _begin(self._scatter)

    def wait(self) -> None:
        """See :meth:`Transfer.wait`."""
        if self._returned is None:
            return
        self._returned()
        self._returned = None
        for work in self._works:
            work.wait()

    def finish(self) -> None:
        """See :meth:`Transfer.finish`."""
        self._scratch.copy_(self._means)
        torch.add(self._mean, self._carry, out=self._scratch[self._part])
        self._block.add_(self._scratch, alpha=self._gain)
        self._block.sub_(self._scratch.copy_(self._own), alpha=self._gain)


def _parts(size: int, number: int) -> list[slice]:
    bounds = [size * place // number for place in range(number + 1)]
    return [slice(start, stop) for start, stop in pairwise(bounds)]


def _messages(peers: Sequence[int], sent: Sequence[Tensor], received: Sequence[Tensor], tag: int) -> list[dist.P2POp]:
    """What comes from each peer, then what goes to it; without the empty ones.

    The order matters with gloo: a receiver first tells its sender that it is ready, and on the same connection that
    word would come after whatever was sent before, megabytes later.
    """
    incoming = [dist.P2POp(dist.irecv, values, peer, tag=tag) for peer, values in zip(peers, received, strict=True)]
    outgoing = [dist.P2POp(dist.isend, values, peer, tag=tag) for peer, values in zip(peers, sent, strict=True)]
    return [message for message in incoming + outgoing if message.tensor.numel()]


def _begin(messages: list[dist.P2POp]) -> list[dist.Work]:
    return dist.batch_isend_irecv(messages) if messages else []
