"""One decision on all workers: somebody asked to save or to stop, and all do it after the same step.

A signal reaches one worker, or all at different steps; a clock strikes at different steps. So the workers tell each
other about once a second what they were asked for. The exchange runs behind the steps: it is started after one step
and read after a later one, which is the same on all workers. Nobody waits for the device, nor for another worker
unless that one is a whole period behind.
"""

import threading
import time
from dataclasses import dataclass
from typing import cast

import torch
import torch.distributed as dist

from imgnet.profile.spans import unseen

PERIOD_S = 1.0


@dataclass(frozen=True)
class Decision:
    """What all workers do after this step."""

    save: bool = False
    stop: bool = False


NOTHING = Decision()


class Requests:
    """Collects what this worker is asked for, and decides with all others. Making one is collective.

    Args:
        stop: set by a signal's thread when the run is to be saved and ended.
        save_every_min: minutes of rank 0's clock between two checkpoints; None: never by the clock.
        rank: this worker.
    """

    def __init__(self, stop: threading.Event, save_every_min: float | None, rank: int) -> None:
        self._stop = stop
        self._save_every_s = None if save_every_min is None else 60 * save_every_min
        self._group = cast("dist.ProcessGroup", dist.new_group(backend="gloo"))
        self._is_first = rank == 0
        self._last_save = time.monotonic()
        self._started: tuple[float, int] | None = None
        """When the last exchange was started, and after which step; a run that resumes begins with any step."""
        self._message = torch.zeros(3)
        self._work: dist.Work | None = None
        self._due = 1

    def after_step(self, step: int) -> Decision:
        """What to do after this step; mostly nothing, at the cost of comparing two numbers. Call it after every step.

        Args:
            step: optimizer steps made, the same on all workers.
        """
        if step < self._due:
            return NOTHING
        decision, period = self._read()
        self._due = step + period
        self._start(step)
        if decision.save:
            self._last_save = time.monotonic()
        return decision

    def _start(self, step: int) -> None:
        now = time.monotonic()
        steps_per_s = self._steps_per_s(now, step)
        self._started = now, step
        wants_save = self._is_first and self._save_every_s is not None and now - self._last_save >= self._save_every_s
        self._message[0], self._message[1] = float(wants_save), float(self._stop.is_set())
        self._message[2] = max(1.0, steps_per_s * PERIOD_S)
        with unseen():
            self._work = dist.all_reduce(self._message, op=dist.ReduceOp.MAX, group=self._group, async_op=True)

    def _steps_per_s(self, now: float, step: int) -> float:
        """Since the last exchange; 0 where there was none."""
        if self._started is None:
            return 0.0
        then, step_then = self._started
        return (step - step_then) / max(now - then, 1e-9)

    def _read(self) -> tuple[Decision, int]:
        """What the last exchange brought, and in how many steps the next one is read."""
        if self._work is None:
            return NOTHING, 1
        self._work.wait()
        self._work = None
        save, stop, steps = self._message.tolist()
        return Decision(bool(save), bool(stop)), int(steps)

    def saved(self) -> None:
        """A checkpoint was made for another reason; the clock starts anew."""
        self._last_save = time.monotonic()
