"""Where a worker is between two averages, for ways to average after some local steps."""

from typing import TYPE_CHECKING

from imgnet.parallel.averaging.intervals import Intervals
from imgnet.parallel.topology import Round

if TYPE_CHECKING:
    from imgnet.parallel.mixing import Mixer


class Beat:
    """Where a worker is between two averages. Averages are numbered, and the topology's rounds follow that number."""

    def __init__(self, mixer: "Mixer", intervals: Intervals) -> None:
        self._schedule = mixer.schedule
        self._intervals = intervals
        self.left = 0
        """Steps of the interval that are still to be made after this one."""
        self.number = 0
        """Averages before the one that this interval ends with."""
        self._step = -1

    def begin(self, step: int, lr: float) -> None:
        """Step 0, 1, 2, ... begins."""
        if self.left == 0:
            self.number += self._step >= 0
            self.left = self._intervals.length(step, lr)
        self.left -= 1
        self._step = step

    def due(self) -> Round | None:
        """The round that this step ends with, if it ends an interval."""
        if self.left or self._step < 0:
            return None
        if self._intervals.is_exact(self._step, self.number):
            return self._schedule.exact_round()
        return self._schedule.phase_at(self._step).topology.round_at(self.number)

    def state(self) -> dict[str, int]:
        """Numbers."""
        return {"left": self.left, "number": self.number}

    def restore(self, state: dict[str, int], num_steps: int) -> None:
        """Be where ``num_steps`` steps led to."""
        self.left, self.number, self._step = state["left"], state["number"], num_steps - 1
