"""Carry out the rounds of a topology on blocks of memory: start an averaging, go on computing, take its result."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import Tensor

from imgnet.config import WireDtype
from imgnet.parallel.topology import Arrows, Group, Part, Round, Schedule
from imgnet.parallel.transfers import (
    ArrowExchange,
    GroupAllReduce,
    Lane,
    PeerExchange,
    Scratch,
    ShardedMean,
    Transfer,
    as_neighbours,
    exact_arrows,
)
from imgnet.parallel.wire import Wire
from imgnet.profile.activity import Activity
from imgnet.profile.spans import span


class WaitClock:
    """Seconds that computation stood still for communication, added up without a synchronisation of its own.

    On a CPU a wait blocks the host, whose clock tells. On a GPU it blocks a stream: events are recorded around it and
    read when somebody asks.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count how long what is done inside holds up the computation."""
        if self._on_gpu:
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            before.record()
            yield
            after.record()
            self._events.append((before, after))
        else:
            start = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - start

    def take(self) -> float:
        """Seconds since the last call. Waits for the GPU, so call it in a step that logs."""
        for before, after in self._events:
            after.synchronize()
            self._seconds += before.elapsed_time(after) / 1e3
        seconds, self._seconds = self._seconds, 0.0
        self._events.clear()
        return seconds


class Averaging:
    """The averaging of one block, round after round. At most one is under way.

    It holds nothing that the block and the round do not say: after a restart, ``start`` of the last round with the
    block as it was brings the averaging back that was under way.
    """

    def __init__(self, rank: int, transfers: Mapping[Part, Transfer], clock: WaitClock) -> None:
        self._rank = rank
        self._transfers = transfers
        self._clock = clock
        self._under_way: Transfer | None = None
        self.sent_bytes = 0.0
        """Of all rounds that were started here."""

    def start(self, round_: Round) -> None:
        """Begin a round of the schedule, the same on all workers. The block must not change until the end.

        Nothing is sent where this worker rests in that round.
        """
        assert self._under_way is None
        part = round_.part(self._rank)
        if part is not None:
            self._under_way = self._transfers[part]
            self._under_way.start()
            self.sent_bytes += self._under_way.num_bytes

    def settle(self) -> None:
        """Wait until no message is under way. What came is kept for ``finish``, and the block may change until then.

        It must be as it was when ``finish`` is called.
        """
        if self._under_way is not None:
            self._under_way.wait()

    def finish(self) -> None:
        """Wait for the round that was started, if one was, and replace the block by this worker's row of its matrix."""
        if self._under_way is None:
            return
        with self._clock.waiting(), span(Activity.exposed):
            self._under_way.wait()
        self._under_way.finish()
        self._under_way = None


def sums_over(schedule: Schedule, wire_dtype: WireDtype) -> tuple[tuple[int, ...], ...]:
    """The groups that :class:`Mixer` reduces as a whole, which a wire may have to prepare: all but pairs, in fp32."""
    if wire_dtype is not WireDtype.fp32:
        return ()
    return tuple(ranks for ranks in schedule.communicators() if len(ranks) > 2)


class Mixer:
    """This worker's part in the rounds of a run.

    Args:
        schedule: who averages with whom at which step.
        blocks: what is averaged, each with messages of its own; 1-D, fp32, in the same order on all workers.
        rank: this worker.
        wire_dtype: numbers in the messages.
        wire: to the other workers, for the groups of :func:`sums_over`.
    """

    def __init__(
        self, schedule: Schedule, blocks: Sequence[Tensor], rank: int, wire_dtype: WireDtype, wire: Wire
    ) -> None:
        self.clock = WaitClock(blocks[0].device)
        self.schedule = schedule
        self.blocks = blocks
        self._rank = rank
        self._rounds = wire_dtype is WireDtype.bf16
        self._wire = wire

    @cached_property
    def averagings(self) -> list[Averaging]:
        """One for each block."""
        return self.averagings_of(self.blocks)

    def averagings_of(self, blocks: Sequence[Tensor]) -> list[Averaging]:
        """One for each of some blocks; no other ones may be used beside them."""
        largest, device = max(block.numel() for block in blocks), blocks[0].device
        scratch, scratch_behind = Scratch(largest, device), Scratch(largest, device)
        return [
            self._averaging(Lane(block, self._wire, self._dtype(block), 2 * index, scratch, scratch_behind))
            for index, block in enumerate(blocks)
        ]

    def _dtype(self, block: Tensor) -> torch.dtype:
        """Of its messages; what is float64 must not be rounded."""
        return torch.bfloat16 if self._rounds and block.dtype == torch.float32 else block.dtype

    def _averaging(self, lane: Lane) -> Averaging:
        plans = [topology.plan(self._rank) for topology in self.schedule.topologies]
        parts: dict[Part, None] = dict.fromkeys(part for plan in plans for part in plan if part is not None)
        transfers = {part: self._transfer(part, lane) for part in parts}
        return Averaging(self._rank, transfers, self.clock)

    def _transfer(self, part: Part, lane: Lane) -> Transfer:
        part = as_neighbours(part, self._rank)
        assert part is not None
        if isinstance(part, Arrows):
            return ArrowExchange(lane, exact_arrows(part) if self._rounds else part)
        if not isinstance(part, Group):
            return PeerExchange(lane, part)
        return ShardedMean(lane, part, self._rank) if lane.rounds_values else GroupAllReduce(lane, part)
