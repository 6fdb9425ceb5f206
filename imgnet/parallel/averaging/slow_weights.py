"""Slow weights and the outer optimizer that moves them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from imgnet.config import AveragingConfig
from imgnet.config.schemas import BelowOne, Positive

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class SlowWeightsConfig(AveragingConfig):
    """The optimizer that moves slow weights towards an average."""

    lr: Positive = 0.7
    """Of the outer optimizer."""
    momentum: BelowOne = 0.9
    nesterov: bool = True
    """false: heavy ball."""
    scale_by_lr: bool = False
    """Momentum of the way divided by the learning rate, as SlowMo has it where rates change."""

    def of_slow_weights(self) -> dict[str, Any]:
        """What :class:`SlowWeights` takes beside the blocks."""
        return {key: getattr(self, key) for key in ("lr", "momentum", "nesterov", "scale_by_lr")}


class SlowWeights:
    """phi of one worker, a tensor for each block, and an outer momentum m.

    Towards an average that the workers came to::

        r = average - phi;  m <- mu m + r / s
        phi <- phi + eta s (r / s + mu m) (Nesterov) or phi + eta s m (heavy ball)

    s is 1, or with ``scale_by_lr`` the learning rate of the last step before.

    Args:
        blocks: the parameters.
        lr: eta.
        momentum: mu.
        nesterov: else heavy ball.
        scale_by_lr: see above.
    """

    def __init__(
        self, blocks: "Sequence[Tensor]", *, lr: float, momentum: float, nesterov: bool, scale_by_lr: bool
    ) -> None:
        self._blocks = blocks
        self._lr, self._momentum, self._nesterov, self._scale_by_lr = lr, momentum, nesterov, scale_by_lr
        self._scale = 1.0
        self._slow: list[Tensor] = []
        self._moments = [block.new_zeros(block.shape) for block in blocks]

    def begin_step(self, lr: float) -> None:
        """A step begins with the blocks as they are; in the first one phi is what they are."""
        if not self._slow:
            self._slow = [block.clone() for block in self._blocks]
        self._scale = lr if self._scale_by_lr else 1.0

    def move(self, index: int, average: "Tensor") -> "Tensor":
        """Make the outer step of a block; what ``average`` held is lost. Returns phi, which is not to be changed."""
        slow, moment = self._slow[index], self._moments[index]
        way = average.sub_(slow).div_(self._scale)
        moment.mul_(self._momentum).add_(way)
        step = way.add_(moment, alpha=self._momentum) if self._nesterov else moment
        return slow.add_(step, alpha=self._lr * self._scale)

    def state(self) -> dict[str, Any]:
        """Live tensors and a number."""
        return {"slow": self._slow, "moments": self._moments, "scale": self._scale}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state, wherever its tensors are."""
        device = self._blocks[0].device
        self._slow, self._moments = ([values.to(device) for values in state[key]] for key in ("slow", "moments"))
        self._scale = state["scale"]
