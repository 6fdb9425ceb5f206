"""Slow weights and the outer optimizer that moves them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class SlowWeights:
    """phi of one worker, a tensor for each block, and an outer momentum m.

    Towards an average that the workers came to, with s the scale of the way::

        r = average - phi;  m <- mu m + r / s
        phi <- phi + eta s (r / s + mu m) (Nesterov) or phi + eta s m (heavy ball)

    Args:
        blocks: the parameters.
        lr: eta.
        momentum: mu.
        nesterov: else heavy ball.
    """

    def __init__(self, blocks: Sequence[Tensor], *, lr: float, momentum: float, nesterov: bool) -> None:
        self._blocks = blocks
        self._lr, self._momentum, self._nesterov = lr, momentum, nesterov
        self._slow: list[Tensor] = []
        self._moments = [torch.zeros_like(block) for block in blocks]

    def begin(self) -> None:
        """A step begins. In the first one the blocks are what training begins with, and so is phi."""
        if not self._slow:
            self._slow = [block.clone() for block in self._blocks]

    def move(self, index: int, average: Tensor, scale: float = 1.0) -> Tensor:
        """Make the outer step of a block; what ``average`` held is lost. Returns phi, which is not to be changed."""
        slow, moment = self._slow[index], self._moments[index]
        way = average.sub_(slow).div_(scale)
        moment.mul_(self._momentum).add_(way)
        step = way.add_(moment, alpha=self._momentum) if self._nesterov else moment
        return slow.add_(step, alpha=self._lr * scale)

    def state(self) -> dict[str, Any]:
        """Live tensors."""
        return {"slow": self._slow, "moments": self._moments}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state, wherever its tensors are."""
        device = self._blocks[0].device
        self._slow, self._moments = ([values.to(device) for values in state[key]] for key in ("slow", "moments"))
