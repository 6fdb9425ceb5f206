"""The replay for few workers: one event after the other, with flows that share links as they do.

A flow moves at the rate that its busiest end leaves it: where two rounds are on a lane at once, each has half. Flows
between the same workers go one after the other. Where kinds take turns, a worker begins what it sends in the order in
which it is ready: a collective not before the pairs' messages are through that came before it, nor these before that.
"""

import heapq
from collections import deque
from collections.abc import Iterator
from itertools import count

import numpy as np
from numpy.typing import NDArray

from imgnet.plan.timeline.script import Action, Compute, Script, Send, Spend, Wait
from imgnet.plan.timeline.traffic import Flow

Times = NDArray[np.float64]
Lane = tuple[int, bool]
"""A worker's way within its node (False) or to other nodes (True)."""
END_OF_STEP = None
NEGLIGIBLE_S = 1e-12
"""Work that is left by rounding."""


def replay_events(script: Script, factors: Times, *, kinds_take_turns: bool) -> tuple[Times, Times]:
    """See :func:`imgnet.plan.timeline.replay.replay`. Returns the ends of steps and the waits."""
    return _World(script, factors, kinds_take_turns=kinds_take_turns).run()


class _Transfer:
    """One flow of one exchange. ``left`` is in seconds on lanes of its own."""

    def __init__(self, send: Send, flow: Flow) -> None:
        self.send = send
        self.flow = flow
        self.left, self.latency = flow.seconds(send.exchange.num_bytes)
        self.num_missing = len(flow.ranks)
        """Workers that are not ready yet."""
        self.lanes: list[Lane] = [(rank, flow.between_nodes) for rank in flow.ranks]
        self.rate = 0.0
        self.since = 0.0
        self.version = 0


class _Worker:
    """Where a worker is in the script."""

    def __init__(self, rank: int, actions: Iterator[Action | None], slowness: float) -> None:
        self.rank = rank
        self.actions = actions
        self.step = 0
        self.slowness = slowness
        self.waiting_for: list[Send] = []
        self.waits_since = 0.0


class _Turns:
    """What a worker has begun and put off, as ``imgnet.parallel.wire.processes`` does."""

    def __init__(self) -> None:
        self._of_collectives = False
        self._begun: set[Send] = set()
        self._put_off: deque[tuple[Send, bool]] = deque()

    def begin(self, send: Send, is_collective: bool) -> list[Send]:
        """What begins now that this one is ready."""
        self._put_off.append((send, is_collective))
        return self._next()

    def through(self, send: Send) -> list[Send]:
        """What begins now that this one is through."""
        self._begun.discard(send)
        return self._next()

    def _next(self) -> list[Send]:
        beginning = []
        while self._put_off and (not self._begun or self._put_off[0][1] == self._of_collectives):
            send, self._of_collectives = self._put_off.popleft()
            self._begun.add(send)
            beginning.append(send)
        return beginning


class _World:
    """All workers and flows at a moment."""

    def __init__(self, script: Script, factors: Times, *, kinds_take_turns: bool) -> None:
        self._script = script
        self._factors = factors
        self._steps: list[list[Action]] = []
        num_steps, world_size = factors.shape
        self._ends = np.zeros((num_steps + 1, world_size))
        self._waits = np.zeros((num_steps, world_size))
        self._workers = [_Worker(rank, self._actions(), factors[0, rank]) for rank in range(world_size)]
        self._turns = [_Turns() for _ in range(world_size)] if kinds_take_turns else None
        self._posted: dict[Send, dict[int, _Transfer]] = {}
        self._open: dict[Send, list[int]] = {}
        """Flows that are not through, for each worker."""
        self._queues: dict[tuple[int, ...], deque[_Transfer]] = {}
        self._active: dict[Lane, list[_Transfer]] = {}
        self._events: list[tuple[float, int, object, int]] = []
        self._number = count()
        self._now = 0.0

    def run(self) -> tuple[Times, Times]:
        for worker in self._workers:
            self._go_on(worker)
        while self._events:
            self._now, _, what, version = heapq.heappop(self._events)
            if isinstance(what, _Worker):
                self._go_on(what)
            elif isinstance(what, tuple):
                self._through(*what)
            elif isinstance(what, _Transfer) and what.version == version:
                self._finish(what)
        return self._ends, self._waits

    def _actions(self) -> Iterator[Action | None]:
        """Of one worker."""
        for step in range(len(self._factors)):
            if step == len(self._steps):
                self._steps.append(self._script.step(step))
            yield from self._steps[step]
            yield END_OF_STEP

    def _at(self, time: float, what: object, version: int = 0) -> None:
        heapq.heappush(self._events, (time, next(self._number), what, version))

    def _go_on(self, worker: _Worker) -> None:
        """Carry out the worker's actions up to the next that takes time."""
        for action in worker.actions:
            match action:
                case Compute(seconds):
                    return self._at(self._now + seconds * worker.slowness, worker)
                case Spend(seconds):
                    return self._at(self._now + seconds, worker)
                case Send():
                    self._post(action, worker.rank)
                case Wait(sends):
                    worker.waiting_for, worker.waits_since = list(sends), self._now
                    return self._try_to_go_on(worker)
                case None:
                    self._end_step(worker)
        return None

    def _end_step(self, worker: _Worker) -> None:
        worker.step += 1
        self._ends[worker.step, worker.rank] = self._now
        if worker.step < len(self._factors):
            worker.slowness = self._factors[worker.step, worker.rank]

    def _try_to_go_on(self, worker: _Worker) -> None:
        if any(self._open[send][worker.rank] for send in worker.waiting_for):
            return
        self._waits[worker.step, worker.rank] += self._now - worker.waits_since
        takes_part = [send for send in worker.waiting_for if worker.rank in send.exchange.traffic.of_rank]
        worker.waiting_for = []
        self._at(self._now + sum(send.exchange.mixing_s for send in takes_part), worker)

    def _post(self, send: Send, rank: int) -> None:
        """A worker is ready for its part of an exchange."""
        traffic = send.exchange.traffic
        if send not in self._open:
            self._open[send] = [len(traffic.of_rank.get(rank, ())) for rank in range(traffic.world_size)]
            self._posted[send] = {}
        places = traffic.of_rank.get(rank, ())
        if places:
            is_collective = traffic.flows[places[0]].is_collective
            self._begin_all(self._turns[rank].begin(send, is_collective) if self._turns else [send], rank)

    def _begin_all(self, sends: list[Send], rank: int) -> None:
        for send in sends:
            self._join(send, rank)

    def _join(self, send: Send, rank: int) -> None:
        """A worker takes part in its flows of an exchange from now on."""
        traffic = send.exchange.traffic
        for place in traffic.of_rank[rank]:
            transfer = self._posted[send].get(place)
            if transfer is None:
                transfer = self._posted[send][place] = _Transfer(send, traffic.flows[place])
            transfer.num_missing -= 1
            if transfer.num_missing == 0:
                self._enqueue(transfer)

    def _enqueue(self, transfer: _Transfer) -> None:
        queue = self._queues.setdefault(transfer.flow.ranks, deque())
        queue.append(transfer)
        if len(queue) == 1:
            self._begin(transfer)

    def _begin(self, transfer: _Transfer) -> None:
        transfer.since = self._now
        for lane in transfer.lanes:
            self._active.setdefault(lane, []).append(transfer)
        self._set_rates(transfer)

    def _finish(self, transfer: _Transfer) -> None:
        for lane in transfer.lanes:
            self._active[lane].remove(transfer)
        self._at(self._now + transfer.latency, (transfer.send, transfer.flow.ranks))
        queue = self._queues[transfer.flow.ranks]
        queue.popleft()
        if queue:
            self._begin(queue[0])
        else:
            self._set_rates(transfer)

    def _through(self, send: Send, ranks: tuple[int, ...]) -> None:
        for rank in ranks:
            self._open[send][rank] -= 1
            if self._turns and not self._open[send][rank]:
                self._begin_all(self._turns[rank].through(send), rank)
            if send in self._workers[rank].waiting_for:
                self._try_to_go_on(self._workers[rank])

    def _set_rates(self, changed: _Transfer) -> None:
        """Give every flow that shares a lane with ``changed`` its new rate."""
        concerned = {id(other): other for lane in changed.lanes for other in self._active[lane]}
        for transfer in concerned.values():
            rate = min(1.0 / len(self._active[lane]) for lane in transfer.lanes)
            if rate != transfer.rate or transfer.version == 0:
                self._set_rate(transfer, rate)

    def _set_rate(self, transfer: _Transfer, rate: float) -> None:
        transfer.left = max(0.0, transfer.left - transfer.rate * (self._now - transfer.since))
        transfer.rate, transfer.since = rate, self._now
        transfer.version += 1
        if transfer.left <= NEGLIGIBLE_S:
            self._at(self._now, transfer, transfer.version)
        else:
            self._at(self._now + transfer.left / rate, transfer, transfer.version)
