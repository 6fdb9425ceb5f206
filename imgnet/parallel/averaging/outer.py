"""An outer optimizer over any topology: DiLoCo, SlowMo and NoLoCo differ in topology, momentum and rate."""

from typing import Any, final

from imgnet.parallel.averaging.beat import Beat
from imgnet.parallel.averaging.intervals import Intervals
from imgnet.parallel.averaging.method import Method
from imgnet.parallel.averaging.slow_weights import SlowWeights
from imgnet.parallel.mixing import Mixer


@final
class Outer(Method):
    """Slow weights phi, from which H local steps lead to theta: phi moves towards W theta, and theta is phi again.

    See :class:`~imgnet.parallel.averaging.slow_weights.SlowWeights`, whose s is 1, or with ``scale_by_lr`` the learning
    rate of the last local step, as SlowMo has it where rates change. The next forward pass waits for the average. An
    evaluation in between is of the mean of theta.

    Args:
        mixer: see :class:`Method`.
        intervals: when; always in whole intervals.
        scale_by_lr: see above.
        of_slow_weights: their rate, momentum and ``nesterov``.
    """

    def __init__(self, mixer: Mixer, intervals: Intervals, *, scale_by_lr: bool, **of_slow_weights: Any) -> None:
        super().__init__(mixer)
        self._beat = Beat(mixer, intervals)
        self._slow_weights = SlowWeights(self.blocks, **of_slow_weights)
        self._scale_by_lr = scale_by_lr
        self._scale = 1.0

    def before_step(self, step: int, lr: float) -> None:
        """See :meth:`Method.before_step`."""
        self._slow_weights.begin()
        if self._beat.due() is not None:
            for index, (block, averaging) in enumerate(zip(self.blocks, self.averagings, strict=True)):
                averaging.finish()
                block.copy_(self._slow_weights.move(index, block, self._scale))
        self._beat.begin(step, lr)
        self._scale = lr if self._scale_by_lr else 1.0

    def before_update(self, index: int) -> None:
        """Nothing is under way."""

    def after_update(self, index: int) -> None:
        """See :meth:`Method.after_update`."""
        if (round_ := self._beat.due()) is not None:
            self.averagings[index].start(round_)

    def state(self) -> dict[str, Any]:
        """See :meth:`Method.state`."""
        return {"beat": self._beat.state(), "scale": self._scale} | self._slow_weights.state()

    def restore(self, state: dict[str, Any], num_steps: int) -> None:
        """See :meth:`Method.restore`."""
        self._beat.restore(state["beat"], num_steps)
        self._scale = state["scale"]
        self._slow_weights.restore(state)
        for index in range(len(self.blocks)):
            self.after_update(index)
