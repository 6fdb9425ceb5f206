"""Adaptive consensus: how much of an average is taken in follows the learning rate (DSGD-AC, arXiv 2602.02899)."""

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, final

from imgnet.config import RunConfig
from imgnet.parallel.averaging.consensus import AdaptiveConfig, ConsensusFactor, consensus_factor
from imgnet.parallel.averaging.method import MakeMethod, Method
from imgnet.parallel.averaging.methods.every_step import EveryStep
from imgnet.parallel.averaging.rhythm import in_every_step
from imgnet.parallel.averaging.way import Way, starts_in_time

if TYPE_CHECKING:
    from imgnet.parallel.mixing import Mixer


@final
class Adaptive(Method):
    """``x[t+1] = x[t] + g (W x[t] - x[t]) - lr u``.

    What a worker takes is scaled, so that the mean of all workers does not depend on g. With g = 1 it is the average
    itself, bit for bit.

    Args:
        mixer: see :class:`Method`.
        factor: g.
    """

    def __init__(self, mixer: "Mixer", factor: ConsensusFactor) -> None:
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


def _make(averaging: AdaptiveConfig, config: RunConfig, steps_per_epoch: int) -> MakeMethod:
    return partial(Adaptive, factor=consensus_factor(averaging, config, steps_per_epoch))


def _problems(averaging: AdaptiveConfig, config: RunConfig) -> Iterator[str]:
    if averaging.min_factor > averaging.max_factor:
        yield (
            f"averaging.min_factor={averaging.min_factor} must be at most averaging.max_factor={averaging.max_factor}"
        )
    yield from starts_in_time(averaging, config)


WAY = Way(("adaptive",), AdaptiveConfig, _make, _problems, in_every_step, is_of_decent_dp=True)
