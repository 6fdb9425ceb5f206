"""Adaptive consensus: how much of an average is taken in follows the learning rate (DSGD-AC, arXiv 2602.02899)."""

from dataclasses import dataclass
from typing import Any, final

from imgnet.parallel.averaging.every_step import EveryStep
from imgnet.parallel.averaging.method import Method
from imgnet.parallel.mixing import Mixer


@dataclass(frozen=True)
class ConsensusFactor:
    """``g = min + (max - min) (lr / reference_lr)^power`` from a step on, ``max`` before it and above that rate."""

    smallest: float
    largest: float
    power: float
    first_step: int
    reference_lr: float
    """The learning rate of ``first_step``."""

    def __call__(self, step: int, lr: float) -> float:
        """The share of an average that is taken in at a step of this learning rate, in [0, 1]."""
        if step < self.first_step:
            return self.largest
        return self.smallest + (self.largest - self.smallest) * min(lr / self.reference_lr, 1.0) ** self.power


@final
class Adaptive(Method):
    """``x[t+1] = x[t] + g (W x[t] - x[t]) - lr u``.

    What a worker takes is scaled, so that the mean of all workers does not depend on g. With g = 1 it is the average
    itself, bit for bit.

    Args:
        mixer: see :class:`Method`.
        factor: g.
    """

    def __init__(self, mixer: Mixer, factor: ConsensusFactor) -> None:
        super().__init__(mixer)
        self._every_step = EveryStep(mixer)
        self._factor = factor
        self._share = 1.0
        self._own = self.blocks[0].new_empty(max(block.numel() for block in self.blocks))

    def before_step(self, step: int, lr: float) -> None:
        """See :meth:`Method.before_step`."""
        self._share = self._factor(step, lr)
        self._every_step.before_step(step, lr)

    def before_update(self, index: int) -> None:
        """See :meth:`Method.before_update`."""
        block = self.blocks[index]
        if self._share == 1.0:
            self._every_step.before_update(index)
            return
        own = self._own[: block.numel()].copy_(block)
        self._every_step.before_update(index)
        block.sub_(own).mul_(self._share).add_(own)

    def after_update(self, index: int) -> None:
        """See :meth:`Method.after_update`."""
        self._every_step.after_update(index)

    def state(self) -> dict[str, Any]:
        """Empty: g follows from the step and its learning rate."""
        return self._every_step.state()

    def restore(self, state: dict[str, Any], num_steps: int) -> None:
        """See :meth:`Method.restore`."""
        self._every_step.restore(state, num_steps)
