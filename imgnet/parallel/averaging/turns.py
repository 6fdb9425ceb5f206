"""Where a worker is in the turns of its fragments."""

from typing import TYPE_CHECKING

from imgnet.parallel.averaging.rhythm import Fragments
from imgnet.parallel.topology import Round

if TYPE_CHECKING:
    from imgnet.parallel.mixing import Mixer


class Turns:
    """The average that is under way, one at a time; all workers have the same one.

    Args:
        mixer: as many blocks as there are fragments, or more, and the schedule.
        fragments: what is averaged when.
    """

    def __init__(self, mixer: "Mixer", fragments: Fragments) -> None:
        self._num_blocks, self._schedule, self._fragments = len(mixer.blocks), mixer.schedule, fragments
        assert fragments.number <= self._num_blocks
        self.under_way: int | None = None
        """Its number, if there is one."""
        self._starting: int | None = None

    def begin(self, step: int) -> range:
        """Step 0, 1, 2, ... begins. Returns the blocks whose average is taken in before it."""
        self._starting = self._fragments.starting(step + 1)
        if self.under_way is None or step < self._fragments.due(self.under_way):
            return range(0)
        due = self.blocks()
        self.under_way = None
        return due

    def blocks(self) -> range:
        """Those whose average is under way."""
        return range(0) if self.under_way is None else self._fragments.blocks(self.under_way, self._num_blocks)

    def round_of(self, index: int) -> Round | None:
        """The round that starts for a block when it has been updated in this step, if one does."""
        if self._starting is None or index not in self._fragments.blocks(self._starting, self._num_blocks):
            return None
        self.under_way = self._starting
        return self.round()

    def round(self) -> Round:
        """Of the average that is under way; rounds are counted for each fragment by itself."""
        assert self.under_way is not None
        last_step = self._fragments.due(self.under_way) - self._fragments.delay - 1
        return self._schedule.phase_at(last_step).topology.round_at(self._fragments.round(self.under_way))
