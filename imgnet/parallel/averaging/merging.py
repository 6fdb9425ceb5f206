"""What becomes of the local steps that are made while an average is under way."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from imgnet.config import AveragingConfig
from imgnet.config.schemas import Share

if TYPE_CHECKING:
    from torch import Tensor


class Merge(Enum):
    """``mix``: a share ``alpha`` of the parameters is kept. ``delta``: the way that they went meanwhile is kept."""

    mix = "mix"
    delta = "delta"


@dataclass
class MergingConfig(AveragingConfig):
    """How parameters that went on meet slow weights that moved."""

    merge: Merge = Merge.mix
    alpha: Share = 0.5
    """What ``merge=mix`` keeps of the worker's own parameters; 0: they become the slow weights."""


def merging_problems(averaging: MergingConfig) -> Iterator[str]:
    """A share that is set where none is kept."""
    if averaging.merge is Merge.delta and averaging.alpha != MergingConfig.alpha:
        yield f"averaging.alpha={averaging.alpha} needs averaging.merge=mix; it is {averaging.merge.value}"


@dataclass(frozen=True)
class Merging:
    """``theta <- (1 - alpha) phi + alpha theta``, or by difference ``theta <- phi + (theta - theta when it was sent)``.

    ``phi`` are the slow weights.
    """

    alpha: float = 0.0
    """In [0, 1]."""
    by_difference: bool = False

    def before(self, block: "Tensor", sent: "Tensor") -> None:
        """While ``sent`` still is what the parameters were."""
        if self.by_difference:
            block.sub_(sent)

    def after(self, block: "Tensor", slow: "Tensor") -> None:
        """When the slow weights have moved."""
        if self.by_difference:
            block.add_(slow)
        else:
            block.lerp_(slow, 1.0 - self.alpha)


def merging_of(averaging: MergingConfig) -> Merging:
    """What a run asks for."""
    return Merging(averaging.alpha, averaging.merge is Merge.delta)
