"""Push-sum: what directed rounds need to come to the mean of all workers (SGP, arXiv 1811.10792)."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, final

from imgnet.config import AveragingConfig
from imgnet.parallel.averaging.method import Method
from imgnet.parallel.averaging.rhythm import after_every_step
from imgnet.parallel.averaging.way import Way, weights_need_not_add_up_to_1

if TYPE_CHECKING:
    from imgnet.parallel.mixing import Mixer


@dataclass
class PushSumConfig(AveragingConfig):
    """Workers give shares of their parameters x and of a weight w to their receivers, and train at z = x / w."""

    overlap: bool = True
    """Whether a round is under way during the next forward and backward pass; else the pass waits for it."""


@final
class PushSum(Method):
    """``x <- P x, w <- P w``, then ``x <- x - lr u``, with ``u`` the update at ``z = x / w``.

    A block is x between steps, for checkpoints and evaluations to have the mean of x; in a step it is z, and x moves
    by the same ``-lr u``. w is float64, in the message that leaves first: fp32 might round it alike on all workers.
    """

    def __init__(self, mixer: "Mixer", *, overlap: bool = True) -> None:
        self._x = [block.clone() for block in mixer.blocks]
        w = mixer.blocks[0].new_ones(1).double()
        super().__init__(mixer, [w, *self._x])
        self.weight = self._w = w[0]
        self._overlap, self._step = overlap, -1
        self._together = [self.averagings[:2], *([averaging] for averaging in self.averagings[2:])]

    def before_step(self, step: int, lr: float) -> None:
        """See :meth:`Method.before_step`."""
        for averaging in () if self._overlap else self.averagings:
            averaging.finish()
        for x, block in zip(self._x, self.blocks, strict=True):
            if self._step < 0:
                x.copy_(block)
            block.copy_(x).div_(self._w)
        self._step = step

    def before_update(self, index: int) -> None:
        """See :meth:`Method.before_update`."""
        for averaging in self._together[index]:
            averaging.finish()
        self.blocks[index].copy_(self._x[index]).div_(self._w)
        self._x[index].sub_(self.blocks[index])

    def after_update(self, index: int) -> None:
        """See :meth:`Method.after_update`."""
        self.blocks[index].copy_(self._x[index].add_(self.blocks[index]))
        for averaging in self._together[index]:
            averaging.start(self.schedule.round_at(self._step))

    def state(self) -> dict[str, Any]:
        """See :meth:`Method.state`; what is under way are the blocks, and w."""
        return {"weight": self._w}

    def restore(self, state: dict[str, Any], num_steps: int) -> None:
        """See :meth:`Method.restore`."""
        self._w.copy_(state["weight"])
        self._step = num_steps - 1
        for x, block in zip(self._x, self.blocks, strict=True):
            x.copy_(block)
        for averaging in self.averagings if num_steps > 0 else ():
            averaging.start(self.schedule.round_at(self._step))


WAY = Way(
    ("push_sum",), PushSumConfig, lambda averaging, *_: partial(PushSum, overlap=averaging.overlap),
    weights_need_not_add_up_to_1, after_every_step, is_directed=True,
)  # fmt: skip
