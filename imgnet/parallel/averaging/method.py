"""What the decentralized strategy asks of a way to average."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

    from imgnet.parallel.mixing import Mixer


class Method(ABC):
    """How the parameters of one worker come to agree with those of others, bucket by bucket.

    In each step the strategy calls :meth:`before_step`, makes the forward and the backward pass, and for one bucket
    after the other :meth:`before_update`, the optimizer's update and :meth:`after_update`. Nothing may wait for what
    another worker starts in the same step: simulated workers take turns.

    Args:
        mixer: the worker's blocks, an averaging for each, and the schedule.
        averaged: what is averaged in the place of the blocks, of the same shapes; None: the blocks themselves.
    """

    def __init__(self, mixer: "Mixer", averaged: "Sequence[Tensor] | None" = None) -> None:
        self.blocks = mixer.blocks
        self.averagings = mixer.averagings if averaged is None else mixer.averagings_of(averaged)
        self.schedule = mixer.schedule
        self.weight: Tensor | None = None
        """What the blocks are divided by where gradients are taken, a scalar on the device; None: by nothing."""

    @abstractmethod
    def before_step(self, step: int, lr: float) -> None:
        """Step 0, 1, 2, ... begins: gradients are taken at what the blocks hold when this returns."""

    @abstractmethod
    def before_update(self, index: int) -> None:
        """The gradient of block ``index`` is there, its update comes next."""

    @abstractmethod
    def after_update(self, index: int) -> None:
        """Block ``index`` has been updated; it must not change before the next :meth:`before_step`."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What :meth:`restore` needs beside the blocks: dicts, lists, live tensors and numbers."""

    @abstractmethod
    def restore(self, state: dict[str, Any], num_steps: int) -> None:
        """Go on as if the ``num_steps`` steps that led to ``state`` had just been made; the blocks are as they were.

        Averages that were under way are started anew: the same numbers come of the same blocks.
        """


MakeMethod: TypeAlias = "Callable[[Mixer], Method]"
