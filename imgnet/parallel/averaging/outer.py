"""An outer optimizer over any topology: DiLoCo, SlowMo and NoLoCo differ in topology, momentum and rate."""

from typing import Any, final

import torch

from imgnet.parallel.averaging.intervals import Intervals
from imgnet.parallel.averaging.local import Beat
from imgnet.parallel.averaging.method import Method
from imgnet.parallel.mixing import Mixer


@final
class Outer(Method):
    """Slow weights phi, moved by H local steps that lead to theta, with an outer momentum m.

    At the end of an interval::

        r = W theta - phi;  m <- mu m + r / s
        phi <- phi + eta s (r / s + mu m) (Nesterov) or phi + eta s m (heavy ball);  theta <- phi

    s is 1, or with ``scale_by_lr`` the learning rate of the last local step, as SlowMo has it where rates change. The
    next forward pass waits for the average. An evaluation in between is of the mean of theta.

    Args:
        mixer: see :class:`Method`.
        intervals: when; always in whole intervals.
        lr: eta.
        momentum: mu.
        nesterov: else heavy ball.
        scale_by_lr: see above.
    """

    def __init__(
        self, mixer: Mixer, intervals: Intervals, *, lr: float, momentum: float, nesterov: bool, scale_by_lr: bool
    ) -> None:
        super().__init__(mixer)
        self._beat = Beat(mixer, intervals)
        self._lr, self._momentum, self._nesterov, self._scale_by_lr = lr, momentum, nesterov, scale_by_lr
        self._scale = 1.0
        self._slow: list[torch.Tensor] = []
        """phi; made in the first step, when the blocks are what training begins with."""
        self._moments = [torch.zeros_like(block) for block in self.blocks]

    def before_step(self, step: int, lr: float) -> None:
        """See :meth:`Method.before_step`."""
        if not self._slow:
            self._slow = [block.clone() for block in self.blocks]
        if self._beat.due() is not None:
            for index in range(len(self.blocks)):
                self._end_interval(index)
        self._beat.begin(step, lr)
        self._scale = lr if self._scale_by_lr else 1.0

    def _end_interval(self, index: int) -> None:
        block, slow, moment = self.blocks[index], self._slow[index], self._moments[index]
        self.averagings[index].finish()
        way = block.sub_(slow).div_(self._scale)
        moment.mul_(self._momentum).add_(way)
        step = way.add_(moment, alpha=self._momentum) if self._nesterov else moment
        slow.add_(step, alpha=self._lr * self._scale)
        block.copy_(slow)

    def before_update(self, index: int) -> None:
        """Nothing is under way."""

    def after_update(self, index: int) -> None:
        """See :meth:`Method.after_update`."""
        if (round_ := self._beat.due()) is not None:
            self.averagings[index].start(round_)

    def state(self) -> dict[str, Any]:
        """See :meth:`Method.state`."""
        return {"beat": self._beat.state(), "scale": self._scale, "slow": self._slow, "moments": self._moments}

    def restore(self, state: dict[str, Any], num_steps: int) -> None:
        """See :meth:`Method.restore`."""
        self._beat.restore(state["beat"], num_steps)
        self._scale = state["scale"]
        device = self.blocks[0].device
        self._slow, self._moments = ([values.to(device) for values in state[key]] for key in ("slow", "moments"))
        for index in range(len(self.blocks)):
            self.after_update(index)
