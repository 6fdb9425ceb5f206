"""What every worker does in a step, one thing after the other: compute, send, wait. The same for all workers."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from imgnet.plan.timeline.method import After, Before, Exchange, Method


@dataclass(frozen=True)
class Work:
    """What a worker computes in a step, in seconds, where it never waits.

    Attributes:
        gradient_s: for each bucket when its gradients are ready, and those of all buckets before it, from the start of
            the forward pass on; ``[number of buckets]``.
        backward_s: when the backward pass is over.
        update_s: of each bucket.
    """

    gradient_s: NDArray[np.float64]
    backward_s: float
    update_s: NDArray[np.float64]

    @property
    def step_s(self) -> float:
        """All of a step."""
        return self.backward_s + float(self.update_s.sum())


@dataclass(frozen=True)
class Compute:
    """A part of the forward and backward pass; a slow worker takes longer."""

    seconds: float


@dataclass(frozen=True)
class Spend:
    """A part of the update, which takes as long on all workers."""

    seconds: float


@dataclass(frozen=True, eq=False)
class Send:
    """Begin an exchange; takes no time. Each of these is one exchange of one bucket in one step."""

    exchange: Exchange


@dataclass(frozen=True)
class Wait:
    """Go on when what was sent here, and what was to come, is through; then take it in. Who rested goes on at once."""

    sends: tuple[Send, ...]


Action: TypeAlias = Compute | Spend | Send | Wait


class Script:
    """The actions of a run, step by step.

    Args:
        method: what is exchanged.
        work: what is computed.
    """

    def __init__(self, method: Method, work: Work) -> None:
        self._method = method
        self._work = work
        self._due: dict[tuple[int, Before, int], list[Send]] = defaultdict(list)

    def step(self, step: int) -> list[Action]:
        """The actions of step 0, 1, 2, ...; ask for them in this order."""
        sends: dict[tuple[After, int], list[Send]] = defaultdict(list)
        for exchange in self._method.exchanges(step):
            send = Send(exchange)
            place = exchange.bucket if exchange.before is Before.update else 0
            self._due[exchange.due_step, exchange.before, place].append(send)
            sends[exchange.after, exchange.bucket].append(send)
        waits = list(self._wait(step, Before.forward))
        if not sends and not any(due == step for due, _, _ in self._due):
            return [*waits, Compute(self._work.backward_s), Spend(float(self._work.update_s.sum()))]
        return [*waits, *self._actions(step, sends)]

    def _actions(self, step: int, sends: dict[tuple[After, int], list[Send]]) -> Iterator[Action]:
        passed = 0.0
        buckets = range(len(self._work.update_s))
        for bucket in buckets:
            ready = float(self._work.gradient_s[bucket])
            yield Compute(ready - passed)
            passed = ready
            yield from sends[After.gradient, bucket]
            if not self._method.updates_follow:
                yield from self._update(step, bucket, sends[After.update, bucket])
        yield Compute(self._work.backward_s - passed)
        if self._method.updates_follow:
            yield from self._wait(step, Before.updates)
            for bucket in buckets:
                yield from self._update(step, bucket, sends[After.update, bucket])

    def _update(self, step: int, bucket: int, sends: Sequence[Send]) -> Iterator[Action]:
        yield from self._wait(step, Before.update, bucket)
        yield Spend(float(self._work.update_s[bucket]))
        yield from sends

    def _wait(self, step: int, before: Before, bucket: int = 0) -> Iterator[Action]:
        sends = self._due.pop((step, before, bucket), [])
        if sends:
            yield Wait(tuple(sends))
