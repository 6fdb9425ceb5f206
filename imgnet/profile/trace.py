"""What a trace of torch's profiler says of one worker, and the trace as Perfetto draws it best.

On a CPU the host's spans are the computation. On a GPU the host runs ahead, and what counts is when the kernels of a
span ran, which the profiler notes too (``gpu_user_annotation``).
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imgnet.profile.activity import Activity
from imgnet.profile.intervals import Intervals, difference, intersection, length, union

Event = dict[str, Any]
STEP = "ProfilerStep#"
OF_OPTIMIZER = ("Optimizer.step#", "Optimizer.zero_grad#")
"""Torch's own spans: decent-dp makes its updates itself."""
NOT_COMPUTING = ("autograd::engine::", "torch::autograd::AccumulateGrad", "c10d::")
"""Operations around others, hooks that wait for messages among these."""
US_PER_MS = 1e3


@dataclass(frozen=True)
class Times:
    """Milliseconds of a step, each the mean over the recorded ones. The parts add up to ``step_ms``."""

    num_steps: int
    step_ms: float
    """Of training, without evaluations and checkpoints."""
    data_ms: float
    forward_ms: float
    backward_ms: float
    update_ms: float
    exposed_ms: float
    """Communication that computation waited for."""
    other_ms: float
    """The loop's own, and gaps."""
    communication_ms: float
    """In which messages were under way."""
    hidden_ms: float
    """Of which the worker computed in so many."""

    @property
    def own_ms(self) -> float:
        """What the worker would take if it waited for nobody."""
        return self.step_ms - self.exposed_ms

    @property
    def overlap(self) -> float | None:
        """``|communication and computation| / |communication|``, in [0, 1]; None where nothing was sent."""
        return self.hidden_ms / self.communication_ms if self.communication_ms else None


@dataclass(frozen=True)
class Worker(Times):
    """A worker's part of a profile, as it is written."""

    rank: int
    node: str
    first_step: int
    """Steps of the run before the first recorded one."""
    memory_peak_mb: float
    """Of its process; of its GPU where it has one. 2^20 bytes."""


def times_of(events: Iterable[Event]) -> Times:
    """The parts of the recorded steps.

    Raises:
        ValueError: there is no step among the events.
    """
    complete = [event for event in events if event.get("ph") == "X"]
    kernels = [event for event in complete if event["cat"] == "kernel"]
    spans = _Spans([event for event in complete if event["cat"] == ("gpu_" if kernels else "") + "user_annotation"])
    steps, num_steps = spans.steps()
    if kernels:
        messages = union(_interval(event) for event in kernels if "nccl" in event["name"].lower())
        computing = union(_interval(event) for event in kernels if "nccl" not in event["name"].lower())
        exposed = difference(messages, computing)
        on_host = _Spans([event for event in complete if event["cat"] == "user_annotation"])
    else:
        messages = spans.starting_with("gloo:")
        exposed = spans.of(Activity.exposed) or _waits_inside(spans.of(Activity.backward), messages, complete)
        on_host = spans
    in_order = {
        Activity.exposed: exposed,
        Activity.update: union([*spans.of(Activity.update), *spans.starting_with(*OF_OPTIMIZER)]),
        Activity.forward: spans.of(Activity.forward),
        Activity.backward: spans.of(Activity.backward),
        Activity.data: on_host.of(Activity.data),
    }
    return _times(steps, num_steps, in_order, intersection(messages, steps))


def _waits_inside(backward: Intervals, messages: Intervals, events: Sequence[Event]) -> Intervals:
    """Where messages are under way and the backward pass computes nothing: ``DistributedDataParallel`` waits there."""
    operations = (event for event in events if event["cat"] == "cpu_op" and not event["name"].startswith(NOT_COMPUTING))
    return difference(intersection(backward, messages), union(_interval(event) for event in operations))


def _times(steps: Intervals, num_steps: int, in_order: Mapping[Activity, Intervals], messages: Intervals) -> Times:
    """Each moment belongs to the first part that claims it."""
    left, taken = steps, {}
    for part, claimed in in_order.items():
        taken[part] = intersection(left, claimed)
        left = difference(left, claimed)
    computed = union([*taken[Activity.forward], *taken[Activity.backward], *taken[Activity.update]])
    return Times(
        num_steps,
        step_ms=_mean_ms(steps, num_steps),
        **{f"{part.name}_ms": _mean_ms(moments, num_steps) for part, moments in taken.items()},
        other_ms=_mean_ms(left, num_steps),
        communication_ms=_mean_ms(messages, num_steps),
        hidden_ms=_mean_ms(intersection(messages, computed), num_steps),
    )


def _mean_ms(moments: Intervals, num_steps: int) -> float:
    return length(moments) / US_PER_MS / num_steps


class _Spans:
    """Spans of one kind, by their names."""

    def __init__(self, events: Sequence[Event]) -> None:
        self._events = events

    def of(self, part: Activity) -> Intervals:
        return union(_interval(event) for event in self._events if event["name"] == part.value)

    def starting_with(self, *words: str) -> Intervals:
        return union(_interval(event) for event in self._events if event["name"].startswith(words))

    def steps(self) -> tuple[Intervals, int]:
        """The time of the steps, each until the next begins, without what is between them; and their number."""
        begun: dict[str, float] = {}
        end = -math.inf
        for event in self._events:
            if event["name"].startswith(STEP):
                start, its_end = _interval(event)
                begun[event["name"]] = min(start, begun.get(event["name"], math.inf))
                end = max(end, its_end)
        if not begun:
            raise ValueError("no step was recorded")
        return difference([(min(begun.values()), end)], self.of(Activity.between)), len(begun)


def _interval(event: Event) -> tuple[float, float]:
    return event["ts"], event["ts"] + event["dur"]


def with_lanes(trace: Mapping[str, Any], rank: int) -> dict[str, Any]:
    """The trace with its messages in lanes of their own: they overlap what the worker computes, and one another.

    Args:
        trace: as torch writes it.
        rank: the worker's, which names it.
    """
    events = trace["traceEvents"]
    lanes = dict(_lanes([event for event in events if event.get("name", "").startswith("gloo:")]))
    placed = [event | {"tid": lanes[id(event)]} if id(event) in lanes else event for event in events]
    pids = {
        event["pid"] for event in events if event.get("name") == "process_name" and event["args"]["name"] == "python"
    }
    titles = [_title("process_name", pid, 0, f"rank {rank}") for pid in pids]
    titles += [_title("thread_name", pid, lane, "messages") for pid in pids for lane in set(lanes.values())]
    return {**trace, "traceEvents": [*placed, *titles]}


def _lanes(messages: Sequence[Event]) -> Iterator[tuple[int, int]]:
    """The first lane that is free, from 1, by the event's identity."""
    ends: list[float] = []
    for event in sorted(messages, key=lambda event: event["ts"]):
        start, end = _interval(event)
        lane = next((number for number, free_from in enumerate(ends) if free_from <= start), len(ends))
        ends[lane : lane + 1] = [end]
        yield id(event), lane + 1


def _title(kind: str, pid: int, tid: int, name: str) -> Event:
    return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"name": name}}
