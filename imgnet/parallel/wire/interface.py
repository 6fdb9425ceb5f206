"""What a transfer asks of the wire."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Message:
    """What is exchanged with one peer: tensors that stay the same, round after round, and may be empty."""

    peer: int
    """Its rank."""
    sent: Tensor
    """Contiguous; must not change until the exchange has ended."""
    received: Tensor
    """Contiguous; of the size of what the peer sends."""


class Arrival(ABC):
    """Messages under way."""

    @abstractmethod
    def wait(self) -> None:
        """Wait until all have been sent and have come. A second call does nothing."""

    @abstractmethod
    def then(self, task: Callable[[], None]) -> "Arrival":
        """Do ``task`` once they have come, while the worker goes on computing.

        Tasks of one worker are done one after the other, in the order in which they were named. ``task`` may start
        messages, but not wait for any.

        Returns:
            The end of ``task``; its ``wait`` raises the task's error.
        """


Start = Callable[[], Arrival]
"""Sends what the tensors hold now, and returns at once. What it started must have come before it is called again."""


class Wire(ABC):
    """One worker's connection with the others. What it prepares is used many times.

    The workers start what they share in the same order.
    """

    @abstractmethod
    def exchange(self, messages: Sequence[Message], tag: int) -> Start:
        """Prepare an exchange with some peers, each of which has one with this worker under the same ``tag``.

        Args:
            messages: one for each peer.
            tag: of no other exchange with these peers that is under way at the same time.
        """

    @abstractmethod
    def all_reduce(self, values: Tensor, ranks: tuple[int, ...]) -> Start:
        """Prepare a sum over some workers, this one among them: ``values``, 1-D, become the same bits on all."""
