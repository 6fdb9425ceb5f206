"""One worker's part in a round of averaging, on one block of memory: what it sends, and what is made of what comes.

**The mean of all workers is kept.** A worker first adds up what it takes from the others, ``w (x_j - x_i)``, and adds
the sum to its own values once. What one gains another one loses, whatever the weights; what is left is the rounding of
that one addition, which is as often up as down. (``w_i x_i + w_j x_j`` would not do: weights in fp32 may sum to
``1 + 3e-8``, and in every round anew.) A group's all-reduce rounds its sum in the same way, but for all members alike.

Messages are fp32, or bf16 for half the bytes. In bf16 a worker's own values stay fp32, and what it takes is a
difference of rounded values, ``w (Q(x_j) - Q(x_i))``. The result of a round differs from the exact one by at most
``2^-7`` (neighbours) or ``2^-6`` (groups of three or more) times the largest value among the workers that average,
times the share ``1 - W[i, i]`` that they take of one another (groups: ``n / (n - 1)`` times that), and by ``2^-15``
times it for each of these workers, where weights are no multiples of 2^-16. Workers therefore come no closer to one
another than bf16 can tell. (Arrows are as neighbours, the share being the mean of what a worker takes and gives.)

``tests/test_rounding.py`` holds every topology to how far the mean may move in thousands of rounds.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import pairwise
from typing import final

import torch
from torch import Tensor

from imgnet.parallel.topology import Arrows, Group, Neighbours, Part, all_reduce_bytes
from imgnet.parallel.wire import Arrival, Message, Wire

TILE = 2**20
"""Values that are computed with at a time, so that a large layer needs no more room in fp32 than a small one."""


class Scratch:
    """A few rows of fp32, a tile long, whose contents last no longer than one use. Made when first used.

    Args:
        size: of the largest block.
        device: where the blocks are.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self._size = min(size, TILE)
        self._device = device

    @cached_property
    def _rows(self) -> Tensor:
        return torch.empty(3, self._size, device=self._device)

    def row(self, number: int, size: int) -> Tensor:
        """Row 0, 1 or 2, ``[size]``."""
        return self._rows[number, :size]


class Lane:
    """A block, and what its transfers share: their way to the other workers, buffers, room to compute in.

    The transfers of a block take turns; those of several blocks do not.

    Args:
        block: this worker's values, 1-D, fp32.
        wire: to the other workers.
        dtype: numbers in the messages.
        tag: this number and the next are of no other lane of the wire.
        scratch: for :meth:`Transfer.finish`; one for all lanes.
        scratch_behind: for what is done behind the computation; one for all lanes.
    """

    def __init__(
        self, block: Tensor, wire: Wire, dtype: torch.dtype, tag: int, scratch: Scratch, scratch_behind: Scratch
    ) -> None:
        self.block = block
        self.wire = wire
        self.dtype = dtype
        self.tag = tag
        self.scratch = scratch
        self.scratch_behind = scratch_behind
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

    @property
    def sent(self) -> Tensor:
        """What goes out of the block as a whole: itself, or a buffer for its rounded values."""
        return self.buffer("own", self.block.numel(), self.dtype) if self.rounds_values else self.block

    def received(self, number: int) -> list[Tensor]:
        """Room for so many blocks of others."""
        return [self.buffer(f"received {place}", self.block.numel(), self.dtype) for place in range(number)]

    def as_fp32(self, values: Tensor, row: int) -> Tensor:
        """Values of a message to compute with, no more than a tile: themselves, or in a row of ``scratch``."""
        return self.scratch.row(row, values.numel()).copy_(values) if self.rounds_values else values


class Transfer(ABC):
    """The life of a round: ``start``, computation that leaves the block as it is, ``wait``, ``finish``."""

    num_bytes: float
    """What this worker sends in a round."""

    @abstractmethod
    def start(self) -> None:
        """Send the block as it is now. Returns at once."""

    @abstractmethod
    def wait(self) -> None:
        """Wait until the block was sent and all that is needed has come. A second call does nothing."""

    @abstractmethod
    def finish(self) -> None:
        """Replace the block by this worker's row of the mixing matrix."""


def as_neighbours(part: Part, rank: int) -> Part:
    """A pair written as two neighbours, which exchange their blocks directly; every other part as it is.

    A pair's all-reduce would need a process group of its own, and a random topology has thousands of pairs.
    """
    if not isinstance(part, Group) or len(part.ranks) > 2:
        return part
    peer = next(other for other in part.ranks if other != rank)
    return Neighbours(((peer, 1.0 - part.weight),))


class _BlockExchange(Transfer):
    """The whole block for the blocks of others.

    Args:
        lane: of the block.
        messages: which hold ``lane.sent``.
    """

    def __init__(self, lane: Lane, messages: Sequence[Message]) -> None:
        self._block, self._sent = lane.block, lane.sent
        self._as_fp32 = lane.as_fp32
        self._rounds_values = lane.rounds_values
        self.num_bytes = _sent(messages)
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


@final
class PeerExchange(_BlockExchange):
    """Blocks exchanged with each neighbour: ``x <- x + sum(weight * (x_peer - x))``, in bf16 of rounded values.

    Args:
        lane: of the block.
        neighbours: the peers, which have an exchange with this worker.
    """

    def __init__(self, lane: Lane, neighbours: Neighbours) -> None:
        peers, weights = zip(*neighbours.peers, strict=True)
        self._weights = [_exact(weight) for weight in weights] if lane.rounds_values else [*weights]
        self.received = lane.received(len(peers))
        """What each peer sent, once ``wait`` has returned and until ``finish``."""
        messages = [Message(peer, lane.sent, values) for peer, values in zip(peers, self.received, strict=True)]
        super().__init__(lane, messages)
        self._tiles = _tiles(self._block, self._sent, *self.received)

    def finish(self) -> None:
        """See :meth:`Transfer.finish`."""
        for block, sent, *received in self._tiles:
            if len(received) > 1:
                block.add_(self._sum_of_shares(sent, received))
            elif self._rounds_values:
                block.add_(self._difference(sent, received[0]), alpha=self._weights[0])
            else:
                block.lerp_(received[0], self._weights[0])  # the same in one pass over memory

    def _sum_of_shares(self, sent: Tensor, received: Sequence[Tensor]) -> Tensor:
        own = self._as_fp32(sent, 0)
        taken = self._as_fp32(received[0], 1).sub_(own).mul_(self._weights[0])
        for values, weight in zip(received[1:], self._weights[1:], strict=True):
            taken.add_(self._as_fp32(values, 2).sub_(own), alpha=weight)
        return taken

    def _difference(self, sent: Tensor, received: Tensor) -> Tensor:
        return self._as_fp32(received, 1).sub_(self._as_fp32(sent, 0))


@final
class ArrowExchange(_BlockExchange):
    """A directed round: ``x <- x + sum(a x_sender) - sum(b x)``, over the senders and over the receivers.

    What a worker gives is taken off once for each receiver, with the weight and the values that this one adds: in fp32
    the weights of all together may round to something else, and the sum over all workers would drift.

    Args:
        lane: of the block.
        arrows: each other worker in them has an exchange with this one; for bf16 see :func:`exact_arrows`.
    """

    def __init__(self, lane: Lane, arrows: Arrows) -> None:
        senders, self._num_even, self._given = _even_first(arrows)
        self._taken = [weight for _, weight in senders]
        buffers = lane.received(max(len(senders), 1))  # who gets nothing needs the room of one to add up what it gives
        self.received = dict(zip([sender for sender, _ in senders], buffers, strict=False))
        """What each sender sent, once ``wait`` has returned and until ``finish``."""
        super().__init__(lane, self._messages(lane.sent, {receiver for receiver, _ in arrows.receivers}))
        self._tiles = _tiles(self._block, self._sent, *buffers)

    def _messages(self, sent: Tensor, receivers: set[int]) -> list[Message]:
        """One for each worker, empty in the direction in which there is no arrow."""
        nothing = sent[:0]
        return [
            Message(peer, sent if peer in receivers else nothing, self.received.get(peer, nothing))
            for peer in sorted(receivers.union(self.received))
        ]

    def finish(self) -> None:
        """See :meth:`Transfer.finish`."""
        is_one_pair = self._num_even == len(self._taken) == 1 and not self._given
        for block, sent, *received in self._tiles:
            if is_one_pair and not self._rounds_values:
                block.lerp_(received[0], self._taken[0])  # the same in one pass over memory
            else:
                block.add_(self._difference(sent, received))

    def _difference(self, sent: Tensor, received: Sequence[Tensor]) -> Tensor:
        """What comes less what goes, where weights are equal by small numbers, which round by little."""
        own, taken = self._as_fp32(sent, 0), self._as_fp32(received[0], 1)
        if self._num_even:
            taken.sub_(own)
        if self._taken:
            taken.mul_(self._taken[0])
        else:
            taken.zero_()
        for place, weight in enumerate(self._taken[1:], start=1):
            values = self._as_fp32(received[place], 2)
            taken.add_((values.sub_(own) if place < self._num_even else values).mul_(weight))
        for weight in self._given:
            taken.sub_(own * weight)  # the product that its receiver adds, rounded as there
        return taken


def _even_first(arrows: Arrows) -> tuple[list[tuple[int, float]], int, list[float]]:
    """Senders, those first from which a worker takes as it gives to some receiver: then ``w x_sender - w x`` is near 0.

    Returns:
        (rank, weight) of the senders, how many of them have a receiver of their own, and the other receivers' weights.
    """
    given = [weight for _, weight in arrows.receivers]
    even, others = [], []
    for sender in arrows.senders:
        if sender[1] in given:
            given.remove(sender[1])
            even.append(sender)
        else:
            others.append(sender)
    return even + others, len(even), given


def exact_arrows(arrows: Arrows) -> Arrows:
    """Weights for messages in bf16, in all that is divided by one another: see :func:`_exact`."""
    receivers = tuple((rank, _exact(weight)) for rank, weight in arrows.receivers)
    return Arrows(receivers, tuple((rank, _exact(weight)) for rank, weight in arrows.senders))


@final
class GroupAllReduce(Transfer):
    """A group averaged by one all-reduce of fp32, which every backend does well.

    The plain mean is the sum divided by n, the same bits on all members; other weights take
    ``x <- x + share * (sum - n x)``. It is the sum that is reduced, not what the weights make of the values, since
    ``1 / n`` in fp32 is off by up to 3e-8.

    Args:
        lane: of the block, with fp32 on the wire.
        group: of three or more.
    """

    def __init__(self, lane: Lane, group: Group) -> None:
        self._block = lane.block
        self._size = len(group.ranks)
        self._is_uniform = group.is_uniform
        self._share = (1.0 - group.weight) / (self._size - 1)
        # A tensor: by a plain number CUDA multiplies with its reciprocal, which rounds twice.
        self._divisor = torch.tensor(float(self._size), device=lane.block.device)
        self._sum = lane.buffer("received 0", lane.block.numel(), lane.block.dtype)
        self.num_bytes = all_reduce_bytes(self._sum.nbytes, self._size)
        self._start = lane.wire.all_reduce(self._sum, group.ranks)
        self._arrival: Arrival | None = None

    def start(self) -> None:
        """See :meth:`Transfer.start`."""
        self._sum.copy_(self._block)
        self._arrival = self._start()

    def wait(self) -> None:
        """See :meth:`Transfer.wait`."""
        if self._arrival is not None:
            self._arrival.wait()

    def finish(self) -> None:
        """See :meth:`Transfer.finish`."""
        if self._is_uniform:
            torch.div(self._sum, self._divisor, out=self._block)
        else:
            self._block.add_(self._sum.sub_(self._block, alpha=self._size), alpha=self._share)


@final
class ShardedMean(Transfer):
    """A group averaged in two exchanges of rounded values: as many values as an all-reduce sends, and no bias.

    Member ``k`` is in charge of the ``k``-th part of the block. All send it their rounded values Q(x) of that part. It
    adds up how they differ from its own, and sends the mean m back, rounded: for one member after the other, carrying
    each error over to the next, so that the errors of all cancel. What is left at the end it takes itself. Then
    ``x <- x + share * n * (m - Q(x))``, where ``share * n`` is 1 for the plain mean.

    (An all-reduce in bf16 rounds every partial sum, and would move the mean of all workers by that in each step.)

    Args:
        lane: of the block; with fp32 on the wire the mean is exact.
        group: of two or more.
        rank: this worker.
    """

    def __init__(self, lane: Lane, group: Group, rank: int) -> None:
        members, place = len(group.ranks), group.ranks.index(rank)
        self._block = lane.block
        self._gain = 1.0 if group.is_uniform else _exact((1.0 - group.weight) / (members - 1) * members)
        self._scratch, self._scratch_behind = lane.scratch, lane.scratch_behind
        parts = _parts(self._block.numel(), members)
        part = parts[place]
        size = part.stop - part.start
        # First what this worker sends, then, in the parts of the others, what they send back.
        self._own = lane.buffer("own", self._block.numel(), lane.dtype)
        rows = list(lane.buffer("rows", (members - 1) * size, lane.dtype).view(members - 1, size))
        self._part = self._block[part]
        self._rest = lane.buffer("rest", size, self._block.dtype)
        """What this worker takes in the part that it is in charge of, less what it has there."""
        self._tiles_of_part = _tiles(self._own[part], self._rest, *rows)
        outside = (slice(0, part.start), slice(part.stop, None))
        self._tiles = [tile for where in outside for tile in _tiles(self._block[where], self._own[where])]
        others = [other for other in range(members) if other != place]
        by_member = [(group.ranks[other], parts[other], row) for other, row in zip(others, rows, strict=True)]
        gathered = [Message(peer, self._own[theirs], row) for peer, theirs, row in by_member]
        scattered = [Message(peer, row, self._own[theirs]) for peer, theirs, row in by_member]
        self.num_bytes = _sent([*gathered, *scattered])
        self._gather = lane.wire.exchange(gathered, lane.tag)
        self._scatter = lane.wire.exchange(scattered, lane.tag + 1)
        self._means_sent: Arrival | None = None
        self._means_came: Arrival | None = None

    def start(self) -> None:
        """See :meth:`Transfer.start`."""
        self._own.copy_(self._block)
        self._means_sent = self._gather().then(self._return_means)

    def _return_means(self) -> None:
        for own, rest, *rows in self._tiles_of_part:
            self._share_out(own, rest, rows)
        self._means_came = self._scatter()

    def _share_out(self, sent: Tensor, rest: Tensor, rows: Sequence[Tensor]) -> None:
        """Replace the others' rows by the mean, rounded, and ``rest`` by what that leaves of it for this worker."""
        own, mean, values = (self._scratch_behind.row(number, len(rest)) for number in range(3))
        own.copy_(sent)
        mean.zero_()
        for row in rows:
            mean.add_(values.copy_(row).sub_(own))
        mean.div_(len(rows) + 1)  # less the own value, like all that follows: small numbers, which round by little
        rest.copy_(mean)
        for row in rows:
            row.copy_(torch.add(own, rest, out=values))
            rest.sub_(values.copy_(row).sub_(own)).add_(mean)

    def wait(self) -> None:
        """See :meth:`Transfer.wait`."""
        if self._means_sent is not None:
            self._means_sent.wait()
            assert self._means_came is not None
            self._means_came.wait()

    def finish(self) -> None:
        """See :meth:`Transfer.finish`."""
        self._part.add_(self._rest, alpha=self._gain)
        for block, means in self._tiles:
            taken = self._scratch.row(0, len(block)).copy_(means)
            taken.sub_(self._scratch.row(1, len(block)).copy_(block.to(means.dtype)))  # as it was sent
            block.add_(taken, alpha=self._gain)


def _sent(messages: Iterable[Message]) -> int:
    return sum(message.sent.nbytes for message in messages)


def _exact(weight: float) -> float:
    """A weight whose product with a difference of bf16 values is exact in fp32: rounded down to a multiple of 2^-16.

    Values that round to the same bf16 in many rounds would otherwise meet the same rounding error in all of them, and
    the mean of all workers would drift. A weight below 2^-16 stays as it is.
    """
    return math.floor(weight * 2**16) / 2**16 or weight


def _parts(size: int, number: int) -> list[slice]:
    bounds = [size * place // number for place in range(number + 1)]
    return [slice(start, stop) for start, stop in pairwise(bounds)]


def _tiles(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Views of tensors of one size, side by side, a tile at a time."""
    return list(zip(*(tensor.split(TILE) for tensor in tensors), strict=True))
