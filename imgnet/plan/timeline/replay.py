"""The engine's order of events, replayed: forward pass, gradients bucket by bucket, messages, waits, updates."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from imgnet.plan.timeline.events import replay_events
from imgnet.plan.timeline.method import Method
from imgnet.plan.timeline.script import Script, Work
from imgnet.plan.timeline.vectors import replay_together

MOST_EVENTS = 25_000
"""Updates of a bucket by a worker that are replayed one by one; some 50 microseconds each."""
FEWEST_STEPS = 12
"""Of which a mean says something."""


@dataclass(frozen=True)
class Timeline:
    """When each worker ended each step.

    Attributes:
        end_s: ``[steps + 1, workers]``; the first row is the beginning.
        wait_s: how long it stood still in each step, ``[steps, workers]``.
        is_bound: the true times are these or later, see :func:`replay`.
    """

    end_s: NDArray[np.float64]
    wait_s: NDArray[np.float64]
    is_bound: bool = False

    def step_s(self, first: int = 0, last: int | None = None) -> float:
        """Seconds per step, mean over the workers and the steps from ``first`` to before ``last``."""
        last = len(self.wait_s) if last is None else last
        return float((self.end_s[last] - self.end_s[first]).mean()) / (last - first)

    def settled_step_s(self, period: int) -> float:
        """The same without the beginning, over whole periods of a topology where there are such."""
        num_steps = len(self.wait_s)
        first = min(period, num_steps // 4)
        whole = (num_steps - first) // period * period
        return self.step_s(first, first + whole if whole else num_steps)


def replay(
    method: Method,
    work: Work,
    factors: NDArray[np.float64],
    *,
    kinds_take_turns: bool = False,
    fewest_steps: int = FEWEST_STEPS,
) -> Timeline:
    """Carry out as many steps as ``factors`` has rows, fewer where each event has to be looked at.

    All workers are replayed at once. That is exact unless messages of two rounds are on a link at the same time, which
    happens where the links and not the computation set the pace. Then the run is replayed event by event, for as many
    steps as are affordable; with too many workers for that, the earlier messages are taken to go first, which is a
    bound from below.

    Args:
        method: what is exchanged.
        work: of a worker of factor 1.
        factors: by how much longer each worker computes its forward and backward pass in each step,
            ``[steps, workers]``.
        kinds_take_turns: see :class:`imgnet.plan.timeline.network.Network`.
        fewest_steps: of which a mean says something; fewer are not replayed event by event.
    """
    end_s, wait_s, was_contended = replay_together(Script(method, work), factors)
    affordable = MOST_EVENTS // (factors.shape[1] * len(work.update_s))
    if was_contended and affordable >= fewest_steps:
        return replay_each(method, work, factors[:affordable], kinds_take_turns=kinds_take_turns)
    return Timeline(end_s, wait_s, is_bound=was_contended)


def replay_each(
    method: Method, work: Work, factors: NDArray[np.float64], *, kinds_take_turns: bool = False
) -> Timeline:
    """The same event by event, whatever it costs."""
    return Timeline(*replay_events(Script(method, work), factors, kinds_take_turns=kinds_take_turns))
