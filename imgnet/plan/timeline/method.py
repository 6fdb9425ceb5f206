"""What a way to train exchanges in each step: which buckets, with whom, how many bytes, and who waits for it when.

A way to average is a :class:`Method`; the replay (:mod:`imgnet.plan.timeline.replay`) knows nothing else of it. So
local steps are exchanges in each H-th step that are due before the next forward pass, fragments in flight are exchanges
that are due some steps later, and a compressed gradient is a smaller message with more arithmetic.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import final

from imgnet.parallel.averaging.rhythm import Rhythm
from imgnet.parallel.topology import Round, Schedule
from imgnet.plan.timeline.network import Network
from imgnet.plan.timeline.traffic import Traffic, summed_by_all, traffic_of


class After(Enum):
    """What a message waits for, in its own step."""

    gradient = "gradient"
    """The bucket's gradients."""
    update = "update"
    """The bucket's update."""


class Before(Enum):
    """What waits for a message, in the step in which it is due."""

    forward = "forward"
    """The whole step."""
    updates = "updates"
    """All updates of the step."""
    update = "update"
    """The update of its own bucket."""


@dataclass(frozen=True)
class Exchange:
    """The messages of one bucket in one step."""

    bucket: int
    traffic: Traffic
    num_bytes: float
    """Of one copy, as it is on the wire."""
    after: After
    due_step: int
    """This step, or a later one."""
    before: Before
    mixing_s: float = 0.0
    """What the arithmetic costs that takes the result in."""


class Method(ABC):
    """A way to train with many workers, as far as time goes.

    Attributes:
        updates_follow: no update before the backward pass is over; else each bucket's follows its gradients.
    """

    updates_follow: bool

    @abstractmethod
    def exchanges(self, step: int) -> Sequence[Exchange]:
        """What begins in step 0, 1, 2, ...; of each bucket in the order of their gradients."""


@final
class AllReduceMethod(Method):
    """``DistributedDataParallel``: each bucket of gradients is summed when it is ready, and all before the update.

    Args:
        bucket_bytes: of the gradients on the wire, in the order in which they are ready.
        network: the links.
    """

    updates_follow = True

    def __init__(self, bucket_bytes: Sequence[float], network: Network) -> None:
        self._traffic = summed_by_all(network)
        self._bucket_bytes = bucket_bytes

    def exchanges(self, step: int) -> Sequence[Exchange]:
        """See :meth:`Method.exchanges`."""
        return [
            Exchange(bucket, self._traffic, num_bytes, After.gradient, step, Before.updates)
            for bucket, num_bytes in enumerate(self._bucket_bytes)
        ]


@final
class GossipMethod(Method):
    """Parameters averaged: sent after a bucket's update, in every step or in some, and needed when the rhythm says so.

    Args:
        bucket_bytes: of the parameters on the wire.
        mixing_s: of the arithmetic for each bucket.
        schedule: who averages with whom in which round, and all workers where the rhythm asks for that.
        network: the links.
        rhythm: without one, each in every step, and needed at the bucket's next update.
        groups_exchange_directly: as in bf16.
        updates_follow: clipping and a loss scale need the whole gradient first.
    """

    def __init__(
        self,
        bucket_bytes: Sequence[float],
        mixing_s: Sequence[float],
        schedule: Schedule,
        network: Network,
        rhythm: Rhythm | None = None,
        *,
        groups_exchange_directly: bool = False,
        updates_follow: bool = False,
    ) -> None:
        self._buckets = list(enumerate(zip(bucket_bytes, mixing_s, strict=True)))
        self._schedule = schedule
        self._rhythm = rhythm or Rhythm()
        self.updates_follow = updates_follow

        @cache
        def traffic(round_: Round) -> Traffic:
            return traffic_of(round_, network, groups_exchange_directly=groups_exchange_directly)

        self._traffic = traffic

    def exchanges(self, step: int) -> Sequence[Exchange]:
        """See :meth:`Method.exchanges`."""
        fragments = self._rhythm.fragments
        average = fragments.starting(step + 1)
        if average is None:
            return []
        traffic, due = self._traffic(self._round(fragments.round(average))), fragments.due(average)
        before = Before.forward if self._rhythm.waits else Before.update
        return [
            Exchange(bucket, traffic, num_bytes, After.update, due, before, mixing_s)
            for bucket, (num_bytes, mixing_s) in self._buckets[average % fragments.number :: fragments.number]
        ]

    def _round(self, number: int) -> Round:
        return self._schedule.exact_round() if self._rhythm.is_exact(number) else self._schedule.round_at(number)
