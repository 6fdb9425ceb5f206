"""Carry out the rounds of a topology on blocks of memory: start an averaging, go on computing, take its result."""

import time
from collections.abc import Callable
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor

from imgnet.parallel.topology import Group, GroupRound, Topology

Finish = Callable[[], None]


class WaitClock:
    """Seconds that computation stood still for communication, added up without a synchronisation of its own.

    On a CPU a wait blocks the host, whose clock tells. On a GPU it blocks a stream: events are recorded around it and
    read when somebody asks.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def wait(self, work: dist.Work) -> None:
        """Wait for a collective operation, and count how long that took."""
        if self._on_gpu:
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            before.record()
            work.wait()
            after.record()
            self._events.append((before, after))
        else:
            start = time.perf_counter()
            work.wait()
            self._seconds += time.perf_counter() - start

    def take(self) -> float:
        """Seconds since the last call. Waits for the GPU, so call it in a step that logs."""
        for before, after in self._events:
            after.synchronize()
            self._seconds += before.elapsed_time(after) / 1e3
        seconds, self._seconds = self._seconds, 0.0
        self._events.clear()
        return seconds


class Mixer:
    """This worker's part in the rounds of a topology. Making one is collective: it makes the process groups.

    Args:
        topology: its rounds are repeated for ever, round ``t`` being ``rounds[t % len(rounds)]``.
        rank: this worker.
        device: where the blocks are.
    """

    def __init__(self, topology: Topology, rank: int, device: torch.device) -> None:
        self.clock = WaitClock(device)
        self._groups: dict[tuple[int, ...], dist.ProcessGroup] = {}
        self._mine: list[Group] = []
        for one_round in topology.rounds:
            assert isinstance(one_round, GroupRound)
            self._mine.append(next(group for group in one_round.groups if rank in group.ranks))
            for group in one_round.groups:
                self._make_group(group.ranks, topology.world_size)

    def _make_group(self, ranks: tuple[int, ...], world_size: int) -> None:
        if len(ranks) == 1 or ranks in self._groups:
            return
        # Every rank makes every group, in one order, as torch demands; the whole world exists already.
        made = dist.group.WORLD if len(ranks) == world_size else dist.new_group(list(ranks))
        self._groups[ranks] = cast("dist.ProcessGroup", made)  # a placeholder where this worker is no member

    def start(self, block: Tensor, buffer: Tensor, round_number: int) -> Finish | None:
        """Begin to average ``block`` with this round's peers.

        Args:
            block: this worker's values, 1-D; may change while the averaging is under way.
            buffer: scratch of the same shape, which must be left alone until the end.
            round_number: counts averagings from 0, the same on all workers.

        Returns:
            What waits for the peers and replaces ``block`` by its row of the mixing matrix; None where this worker
            rests in this round.
        """
        group = self._mine[round_number % len(self._mine)]
        others = len(group.ranks) - 1
        if others == 0:
            return None
        share = (1 - group.weight) / others
        torch.mul(block, share, out=buffer)
        work = dist.all_reduce(buffer, group=self._groups[group.ranks], async_op=True)
        assert work is not None
        own = group.weight - share  # the sum in ``buffer`` holds this worker's own values once, with ``share``
        return lambda: self._finish(work, block, buffer, own)

    def _finish(self, work: dist.Work, block: Tensor, buffer: Tensor, own: float) -> None:
        self.clock.wait(work)
        if abs(own) < 1e-12:
            block.copy_(buffer)
        else:
            block.mul_(own).add_(buffer)
