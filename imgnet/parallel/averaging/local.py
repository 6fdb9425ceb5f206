"""Local steps: workers train by themselves for a while, then average before they go on."""

from typing import Any, final

from imgnet.parallel.averaging.beat import Beat
from imgnet.parallel.averaging.intervals import Intervals
from imgnet.parallel.averaging.method import Method
from imgnet.parallel.mixing import Mixer


@final
class Local(Method):
    """``x <- x - lr u`` H times, then ``x <- W x``, which the next forward pass waits for; with ``overlap`` its update.

    Without overlap H = 1 among all workers is AllReduce for every update that is linear in the gradient (SGD, momentum,
    Nesterov, decay); with it H = 1 is :class:`~imgnet.parallel.averaging.every_step.EveryStep`. Optimizer states stay
    each worker's own.
    """

    def __init__(self, mixer: Mixer, intervals: Intervals, *, overlap: bool = False) -> None:
        super().__init__(mixer)
        self._beat = Beat(mixer, intervals)
        self._overlap = overlap

    def before_step(self, step: int, lr: float) -> None:
        """See :meth:`Method.before_step`."""
        for averaging in () if self._overlap else self.averagings:
            averaging.finish()
        self._beat.begin(step, lr)

    def before_update(self, index: int) -> None:
        """See :meth:`Method.before_update`."""
        self.averagings[index].finish()

    def after_update(self, index: int) -> None:
        """See :meth:`Method.after_update`."""
        if (round_ := self._beat.due()) is not None:
            self.averagings[index].start(round_)

    def state(self) -> dict[str, Any]:
        """See :meth:`Method.state`."""
        return {"beat": self._beat.state()}

    def restore(self, state: dict[str, Any], num_steps: int) -> None:
        """See :meth:`Method.restore`."""
        self._beat.restore(state["beat"], num_steps)
        for index in range(len(self.blocks)):
            self.after_update(index)
