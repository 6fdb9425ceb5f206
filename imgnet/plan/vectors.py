"""The replay for many workers: all do an action of the script together, as vectors of times.

Each worker has its own clock, so that "together" says nothing of time. What is left out: where the messages of two
rounds are on a link at once, the earlier ones go first and lose nothing to the later ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from imgnet.plan.script import Compute, Script, Send, Spend, Wait
from imgnet.plan.traffic import Flow, Traffic

Times = NDArray[np.float64]
Ranks = NDArray[np.intp]
RESTED = -np.inf
"""When the messages of a worker are through that has none."""


def replay_together(script: Script, factors: Times) -> tuple[Times, Times, bool]:
    """See :func:`imgnet.plan.replay.replay`.

    Returns:
        The ends of steps, the waits, and whether two rounds were on a link at once: then these are bounds from below.
    """
    world_size = factors.shape[1]
    links = _Links(world_size)
    clock, waited = np.zeros(world_size), np.zeros(world_size)
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
                    clock, waited = _wait(sends, links, clock, waited)
        ends.append(clock)
        waits.append(waited)
    return np.array(ends), np.array(waits), links.were_contended


def _wait(sends: Sequence[Send], links: "_Links", clock: Times, waited: Times) -> tuple[Times, Times]:
    for send in sends:
        through = links.through.pop(send)
        lost = np.maximum(through - clock, 0.0)
        clock = clock + lost + np.where(through > RESTED, send.exchange.mixing_s, 0.0)
        waited = waited + lost
    return clock, waited


class _Links:
    """Every worker's way to the others of its node, and its share of the way to other nodes."""

    def __init__(self, world_size: int) -> None:
        self.through: dict[Send, Times] = {}
        """When the messages of each worker are through."""
        self._world_size = world_size
        self._lanes = {False: _Lane(world_size), True: _Lane(world_size)}
        self._arrays: dict[int, tuple[Traffic, list[_Flows]]] = {}

    @property
    def were_contended(self) -> bool:
        """Whether messages of two rounds met on a lane."""
        return any(lane.was_contended for lane in self._lanes.values())

    def next_round(self) -> None:
        for lane in self._lanes.values():
            lane.next_round()

    def send(self, send: Send, start: Times) -> None:
        """Put an exchange on the links, whose workers are ready at ``start``."""
        through = np.full(self._world_size, RESTED)
        for flows in self._flows(send.exchange.traffic):
            done = flows.carry(start, send.exchange.num_bytes, self._lanes[flows.between_nodes])
            through[flows.ranks] = np.maximum(through[flows.ranks], done)
        self.through[send] = through

    def _flows(self, traffic: Traffic) -> list["_Flows"]:
        if id(traffic) not in self._arrays:
            self._arrays[id(traffic)] = traffic, _as_arrays(traffic)
        return self._arrays[id(traffic)][1]


def _as_arrays(traffic: Traffic) -> list["_Flows"]:
    """Flows over the network and within nodes, those of pairs and of groups."""
    kinds: dict[tuple[bool, bool], list[Flow]] = {}
    for flow in traffic.flows:
        kinds.setdefault((flow.between_nodes, len(flow.ranks) == 2), []).append(flow)
    return [_Flows(flows) for flows in kinds.values()]


class _Flows:
    """Flows of one kind as arrays: an entry for each end of each flow, those of a worker side by side."""

    def __init__(self, flows: Sequence[Flow]) -> None:
        self.between_nodes = flows[0].between_nodes
        self._costs = [flow.cost for flow in flows]
        members = np.array([rank for flow in flows for rank in flow.ranks])
        sizes = [len(flow.ranks) for flow in flows]
        self._firsts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        self._members = members
        by_owner = np.argsort(members, kind="stable")
        self.ranks, self._first_of_rank = np.unique(members[by_owner], return_index=True)
        self._flow = np.repeat(np.arange(len(flows)), sizes)[by_owner]
        self._is_single = len(self.ranks) == len(members)

    def carry(self, start: Times, num_bytes: float, lane: "_Lane") -> Times:
        """When the messages of each of ``ranks`` are through. A flow begins when its last worker is ready.

        A worker of several flows has sent all when its lane had time for all of them after the first could begin, and
        for one after the last could. (For one or two flows this is exact.)
        """
        latency, work = self._latency_and_work(num_bytes)
        ready = np.maximum.reduceat(start[self._members], self._firsts)[self._flow]
        end = self._on_lanes(ready, work[self._flow], lane)
        of_flow = np.zeros(len(self._costs))
        np.maximum.at(of_flow, self._flow, end[self._of_rank()])
        return self._largest((of_flow + latency)[self._flow])

    def _on_lanes(self, ready: Times, work: Times, lane: "_Lane") -> Times:
        if self._is_single:
            return lane.take(self.ranks, ready, work)
        largest = np.maximum.reduceat(work, self._first_of_rank)
        total = np.add.reduceat(work, self._first_of_rank)
        first = np.minimum.reduceat(ready, self._first_of_rank)
        begin = np.maximum(first, np.maximum.reduceat(ready, self._first_of_rank) + largest - total)
        return lane.take(self.ranks, begin, total)

    def _of_rank(self) -> Ranks:
        sizes = np.diff(np.append(self._first_of_rank, len(self._flow)))
        return np.repeat(np.arange(len(self.ranks)), sizes)

    def _largest(self, of_end: Times) -> Times:
        return of_end if self._is_single else np.maximum.reduceat(of_end, self._first_of_rank)

    def _latency_and_work(self, num_bytes: float) -> tuple[Times, Times]:
        ways = {cost: cost.way(num_bytes) for cost in set(self._costs)}
        latency = np.array([ways[cost].latency_s for cost in self._costs])
        return latency, np.array([num_bytes / ways[cost].bytes_per_s for cost in self._costs])


@dataclass
class _Earlier:
    """The busy intervals of a round, in order: idle time up to each, ``[k, n]``, and busy time before and after it."""

    idle: Times
    busy: Times

    @classmethod
    def of(cls, begins: Sequence[Times], ends: Sequence[Times]) -> "_Earlier":
        lengths = np.array(ends) - np.array(begins)
        busy = np.vstack([np.zeros(lengths.shape[1]), np.cumsum(lengths, axis=0)])
        return cls(np.array(begins) - busy[:-1], busy)

    def end_of(self, ranks: Ranks, begin: Times, work: Times) -> Times:
        """When work is done that uses what these intervals leave."""
        idle, busy, each = self.idle[:, ranks], self.busy[:, ranks], np.arange(ranks.size)
        passed = (idle + busy[:-1] <= begin).sum(axis=0)
        inside = np.where(passed > 0, idle[passed - 1, each], 0.0)
        idle_at_end = np.maximum(inside, begin - busy[passed, each]) + work
        return idle_at_end + busy[(idle < idle_at_end).sum(axis=0), each]


class _Lane:
    """Who uses a link until when: the messages of a round one after the other, those of the round before first."""

    def __init__(self, world_size: int) -> None:
        self._end = np.zeros(world_size)
        self._last_end = np.zeros(world_size)
        """Of the round before."""
        self._begins: list[Times] = []
        self._ends: list[Times] = []
        self._earlier: _Earlier | None = None
        self.was_contended = False

    def next_round(self) -> None:
        if self._begins:
            self._earlier = _Earlier.of(self._begins, self._ends)
            self._end, self._last_end = self._last_end, np.maximum(self._end, self._last_end)
            self._begins, self._ends = [], []

    def take(self, ranks: Ranks, ready: Times, work: Times) -> Times:
        """Use the lanes of ``ranks`` for ``work`` seconds from ``ready`` on; returns when that is over."""
        begin = np.maximum(ready, self._end[ranks])
        end = begin + work
        disturbed = np.flatnonzero(begin < self._last_end[ranks])
        if disturbed.size and self._earlier is not None:
            self.was_contended = True
            end[disturbed] = self._earlier.end_of(ranks[disturbed], begin[disturbed], work[disturbed])
        self._note(ranks, begin, end)
        return end

    def _note(self, ranks: Ranks, begin: Times, end: Times) -> None:
        begins, ends = self._end.copy(), self._end.copy()
        begins[ranks], ends[ranks] = begin, end
        self._begins.append(begins)
        self._ends.append(ends)
        self._end = ends
