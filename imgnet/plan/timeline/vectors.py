"""The replay for many workers: all do an action of the script together, as vectors of times.

Each worker has its own clock, so that "together" says nothing of time. What is left out: where the messages of two
rounds are on a link at once, the earlier ones go first and lose nothing to the later ones.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import final

import numpy as np
from numpy.typing import NDArray

from imgnet.plan.timeline.script import Compute, Script, Send, Spend, Wait
from imgnet.plan.timeline.traffic import Flow, Traffic

Times = NDArray[np.float64]
Ranks = NDArray[np.intp]
NEGLIGIBLE_S = 1e-12
"""An idle time that rounding makes."""
RESTED = -np.inf
"""When the messages of a worker are through that has none."""


def replay_together(script: Script, factors: Times) -> tuple[Times, Times, bool]:
    """See :func:`imgnet.plan.timeline.replay.replay`.

    Returns:
        The ends of steps, the waits, and whether two rounds were on a link at once: then these are bounds from below.
    """
    world_size = factors.shape[1]
    links = _Links(world_size)
    clock = np.zeros(world_size)
    ends, waits = [clock], []
    for step, slowness in enumerate(factors):
        links.next_round()
        waited = np.zeros(world_size)
        for action in script.step(step):
            match action:
                case Compute(seconds):
                    clock = clock + seconds * slowness
                case Spend(seconds):
                    clock = clock + seconds
                case Send():
                    links.send(action, clock)
                case Wait(sends):
                    clock = _wait(sends, links, clock, waited)
        ends.append(clock)
        waits.append(waited)
    return np.array(ends), np.array(waits), links.were_contended


def _wait(sends: Sequence[Send], links: "_Links", clock: Times, waited: Times) -> Times:
    for send in sends:
        through = links.through.pop(send)
        later = np.maximum(through, clock)
        waited += later - clock
        if send.exchange.mixing_s:
            later += np.where(through > RESTED, send.exchange.mixing_s, 0.0)
        clock = later
    return clock


class _Links:
    """Every worker's way to the others of its node, and its share of the way to other nodes."""

    def __init__(self, world_size: int) -> None:
        self.through: dict[Send, Times] = {}
        """When the messages of each worker are through."""
        self._world_size = world_size
        self._lanes = {False: _Lane(world_size), True: _Lane(world_size)}
        self._ways: dict[int, tuple[Traffic, list[tuple[bool, _Way]]]] = {}

    @property
    def were_contended(self) -> bool:
        """Whether messages of two rounds met on a lane."""
        return any(lane.was_contended for lane in self._lanes.values())

    def next_round(self) -> None:
        """What was sent so far is of an earlier round than what comes."""
        for lane in self._lanes.values():
            lane.next_round()

    def send(self, send: Send, start: Times) -> None:
        """Put an exchange on the links, for which each worker is ready at ``start``."""
        through = np.full(self._world_size, RESTED)
        for between_nodes, way in self._ways_of(send.exchange.traffic):
            done = way.carry(start, send.exchange.num_bytes, self._lanes[between_nodes])
            through[way.ranks] = np.maximum(through[way.ranks], done)
        self.through[send] = through

    def _ways_of(self, traffic: Traffic) -> "list[tuple[bool, _Way]]":
        if id(traffic) not in self._ways:
            self._ways[id(traffic)] = traffic, _ways(traffic)
        return self._ways[id(traffic)][1]


class _Way(ABC):
    """Flows of one kind, all over the same kind of link."""

    def __init__(self, flows: Sequence[Flow]) -> None:
        self._flows = flows
        self.ranks: Ranks = np.unique([rank for flow in flows for rank in flow.ranks])
        self._known: dict[float, tuple[Times, Times]] = {}

    @abstractmethod
    def carry(self, start: Times, num_bytes: float, lane: "_Lane") -> Times:
        """When the messages of each of ``ranks`` are through. A flow begins when its last worker is ready."""

    def _latency_and_work(self, num_bytes: float) -> tuple[Times, Times]:
        """Of each flow."""
        if num_bytes not in self._known:
            times = np.array([flow.seconds(num_bytes) for flow in self._flows])
            self._known[num_bytes] = self._for_each_end(times[:, 1]), self._for_each_end(times[:, 0])
        return self._known[num_bytes]

    @abstractmethod
    def _for_each_end(self, of_flow: Times) -> Times:
        """A value of each flow for each of the flow's ends."""


def _ways(traffic: Traffic) -> list[tuple[bool, _Way]]:
    """With whether they are between nodes."""
    kinds: dict[tuple[bool, type[_Way]], list[Flow]] = {}
    for flow in traffic.flows:
        is_only = all(len(traffic.of_rank[rank]) == 1 for rank in flow.ranks)
        kind = _Disjoint if is_only and len(flow.ranks) > 2 else _Pairs if is_only else _Overlapping
        kinds.setdefault((flow.between_nodes, kind), []).append(flow)
    return [(between_nodes, kind(flows)) for (between_nodes, kind), flows in kinds.items()]


@final
class _Pairs(_Way):
    """Each worker has one peer. Ends in the order of ``ranks``."""

    def __init__(self, flows: Sequence[Flow]) -> None:
        super().__init__(flows)
        pairs = np.array([flow.ranks for flow in flows])
        self._flow = np.argsort(pairs.ravel(), kind="stable") // 2
        peers = dict(pairs.tolist()) | {other: one for one, other in pairs.tolist()}
        self._peers = np.array([peers[rank] for rank in self.ranks.tolist()])
        self._place_of_peer = np.searchsorted(self.ranks, self._peers)

    def carry(self, start: Times, num_bytes: float, lane: "_Lane") -> Times:
        """See :meth:`_Way.carry`."""
        latency, work = self._latency_and_work(num_bytes)
        end = lane.take(self.ranks, np.maximum(start[self.ranks], start[self._peers]), work)
        return np.maximum(end, end[self._place_of_peer]) + latency

    def _for_each_end(self, of_flow: Times) -> Times:
        return of_flow[self._flow]


@final
class _Disjoint(_Way):
    """Groups, of which each worker is in one. Ends in the order of the groups."""

    def __init__(self, flows: Sequence[Flow]) -> None:
        super().__init__(flows)
        self.ranks = np.array([rank for flow in flows for rank in flow.ranks])
        self._sizes = np.array([len(flow.ranks) for flow in flows])
        self._firsts = np.concatenate([[0], np.cumsum(self._sizes)[:-1]])

    def carry(self, start: Times, num_bytes: float, lane: "_Lane") -> Times:
        """See :meth:`_Way.carry`."""
        latency, work = self._latency_and_work(num_bytes)
        end = lane.take(self.ranks, self._last(start[self.ranks]), work)
        return self._last(end) + latency

    def _last(self, time: Times) -> Times:
        return np.repeat(np.maximum.reduceat(time, self._firsts), self._sizes)

    def _for_each_end(self, of_flow: Times) -> Times:
        return np.repeat(of_flow, self._sizes)


@final
class _Overlapping(_Way):
    """Workers in several flows. Ends in the order of ``ranks``, those of a worker side by side.

    A worker has sent all when its lane had time for all from when the first flow could begin, and for one from when
    the last could. (For two flows this is exact.)
    """

    def __init__(self, flows: Sequence[Flow]) -> None:
        super().__init__(flows)
        ends = sorted((rank, place) for place, flow in enumerate(flows) for rank in flow.ranks)
        owners, self._flow = (np.array(column) for column in zip(*ends, strict=True))
        _, self._first_of_rank, self._rank = np.unique(owners, return_index=True, return_inverse=True)
        self._owners = owners
        self._num_flows = len(flows)

    def carry(self, start: Times, num_bytes: float, lane: "_Lane") -> Times:
        """See :meth:`_Way.carry`."""
        latency, work = self._latency_and_work(num_bytes)
        ready = self._last_of_flow(start[self._owners])
        total, largest = np.add.reduceat(work, self._first_of_rank), np.maximum.reduceat(work, self._first_of_rank)
        first = np.minimum.reduceat(ready, self._first_of_rank)
        last = np.maximum.reduceat(ready, self._first_of_rank)
        end = lane.take(self.ranks, np.maximum(first, last + largest - total), total)
        return np.maximum.reduceat(self._last_of_flow(end[self._rank]) + latency, self._first_of_rank)

    def _last_of_flow(self, of_end: Times) -> Times:
        last = np.zeros(self._num_flows)
        np.maximum.at(last, self._flow, of_end)
        return last[self._flow]

    def _for_each_end(self, of_flow: Times) -> Times:
        return of_flow[self._flow]


class _Lane:
    """Who uses a link until when: the messages of a round one after the other, those of the round before first."""

    def __init__(self, world_size: int) -> None:
        self._end = np.zeros(world_size)
        self._begins: list[Times] = []
        self._ends: list[Times] = []
        self._earlier = _Busy(self._begins, self._ends, self._end)
        self.was_contended = False

    def next_round(self) -> None:
        """What comes gives way to what was sent so far."""
        if self._begins:
            floor = self._earlier.last_end
            self._earlier = _Busy(self._begins, self._ends, np.maximum(self._end, floor))
            self._begins, self._ends, self._end = [], [], floor

    def take(self, ranks: Ranks, ready: Times, work: Times) -> Times:
        """Use the lanes of ``ranks`` for ``work`` seconds from ``ready`` on; returns when that is over."""
        begin = np.maximum(ready, self._end[ranks])
        end = begin + work
        disturbed = begin < self._earlier.last_end[ranks]
        if disturbed.any():
            self.was_contended = True
            chosen = np.flatnonzero(disturbed)
            end[chosen] = self._earlier.end_of(ranks[chosen], begin[chosen], work[chosen])
        self._note(ranks, begin, end)
        return end

    def _note(self, ranks: Ranks, begin: Times, end: Times) -> None:
        begins, ends = self._end.copy(), self._end.copy()
        begins[ranks], ends[ranks] = begin, end
        self._begins.append(begins)
        self._ends.append(ends)
        self._end = ends


class _Busy:
    """The busy intervals of a round, in order, and what they leave to later messages."""

    def __init__(self, begins: Sequence[Times], ends: Sequence[Times], last_end: Times) -> None:
        self.last_end = last_end
        self._begins = begins
        self._ends = ends
        self._tables: tuple[Times, Times, Times] | None = None

    def end_of(self, ranks: Ranks, begin: Times, work: Times) -> Times:
        """When work is done that begins before the last of these intervals is over."""
        idle, busy, last_begin = self._idle_and_busy()
        end = self.last_end[ranks] + work
        has_gaps = np.flatnonzero(begin < last_begin[ranks])
        if has_gaps.size:
            chosen = ranks[has_gaps]
            end[has_gaps] = _between(idle[:, chosen], busy[:, chosen], begin[has_gaps], work[has_gaps])
        return end

    def _idle_and_busy(self) -> tuple[Times, Times, Times]:
        """Idle time up to each interval, ``[k, n]``; busy time before each and after all; begin of the last run."""
        if self._tables is None:
            begins, ends = np.array(self._begins), np.array(self._ends)
            busy = np.vstack([np.zeros(begins.shape[1]), np.cumsum(ends - begins, axis=0)])
            idle = begins - busy[:-1]
            last_run = (idle < idle[-1] - NEGLIGIBLE_S).sum(axis=0)
            self._tables = idle, busy, begins[last_run, np.arange(begins.shape[1])]
        return self._tables


def _between(idle: Times, busy: Times, begin: Times, work: Times) -> Times:
    """When work is done in the gaps between intervals and after them."""
    each = np.arange(begin.size)
    passed = (idle + busy[:-1] <= begin).sum(axis=0)
    inside = np.where(passed > 0, idle[passed - 1, each], 0.0)
    idle_at_end = np.maximum(inside, begin - busy[passed, each]) + work
    return idle_at_end + busy[(idle < idle_at_end).sum(axis=0), each]
