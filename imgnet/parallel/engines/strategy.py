"""What the training loop asks of a way to train with many workers."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor
from torch.nn import Module, Parameter
from torch.optim import Optimizer

Objective = Callable[[Module, Tensor, Tensor], Tensor]
"""``(module, images, targets) -> mean loss``, a scalar with a gradient, in the run's precision."""

OptimizerFactory = Callable[[Iterable[tuple[str, Parameter]]], Optimizer]
"""Named parameters to their optimizer; called once, or once for each bucket of parameters."""


def set_learning_rate(optimizers: Iterable[Optimizer], lr: float) -> None:
    """Give the next update of all parameters this rate."""
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["lr"] = lr


class Strategy(ABC):
    """One way to train with many workers. Every method is collective.

    It counts no steps of its own: whoever calls it knows which one it is, and says so.
    """

    @abstractmethod
    def step(self, images: Tensor, targets: Tensor, lr: float, step: int) -> Tensor:
        """Forward, backward and update on this worker's share of the global batch.

        Args:
            images: float32 ``[n, 3, height, width]``, ``n`` divisible by the number of accumulation steps.
            targets: int64 ``[n]``.
            lr: learning rate of this step.
            step: the number of this step in the run, from 0, the same on all workers.

        Returns:
            The mean loss, a scalar on the device without a gradient; ``[workers]`` where this process stands for
            several. Nothing waits for it.
        """

    @abstractmethod
    def averaged(self, num_steps: int) -> AbstractContextManager["Average"]:
        """Put the average over all workers in the place of this worker's model, and take it back at the end.

        Inside, parameters and float buffers are those of the average; after it they are bit for bit as before.

        Args:
            num_steps: steps of the run that were made.
        """

    @abstractmethod
    def state(self) -> dict[str, Any] | None:
        """All that :meth:`restore` needs beside the model's own ``state_dict``: dicts, lists, tensors and numbers.

        Tensors are the live ones; copy them before the next step. None: a run of this kind cannot be continued.
        """

    @abstractmethod
    def restore(self, state: dict[str, Any], num_steps: int) -> None:
        """Go on as if the ``num_steps`` steps that led to ``state`` had just been made here.

        The model is restored already.
        """

    @abstractmethod
    def communication_wait_s(self) -> float:
        """Seconds that this worker's computation waited for averages since the last call; 0 where it is not known.

        Waits for the device.
        """

    @property
    @abstractmethod
    def sent_bytes(self) -> float:
        """Bytes of the gradients or parameters that this worker has sent since this object was made, to train.

        Evaluation, batch norm's statistics and flags are left out. Waits for nothing, and is not collective.
        """


class Average:
    """The averaged model, while it stands in the worker's place.

    Attributes:
        module: the model, unwrapped.
        consensus_distance: ``sqrt(mean_i |x_i - mean(x)|^2)`` over the workers' parameters (Kong et al. 2021,
            arXiv 2102.04828); 0 where all are equal.
        neighbour_distance: ``sqrt(mean |x_i - x_j|^2)`` over the pairs of workers that average with each other in the
            topology's next rounds; 0 where nobody does, or all are equal.
    """

    def __init__(self, module: Module, consensus_distance: float, neighbour_distance: float) -> None:
        self.module = module
        self.consensus_distance = consensus_distance
        self.neighbour_distance = neighbour_distance
