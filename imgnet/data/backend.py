"""The interface between what is read next and how it is made: keys go in, batches come out in the same order.

A back end holds no position and no random state, so that the keys alone decide what a run sees. One that decodes on the
GPU, reads tar shards or stages files is another class behind :class:`Backend`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from imgnet.data.counter import Ints


@dataclass(frozen=True)
class BatchKey:
    """All that a batch depends on."""

    epoch: int
    """Picks the crops and flips; back ends for validation ignore it."""
    indices: Ints
    """The samples of one worker, in order: int64 ``[n]``."""


@dataclass(frozen=True)
class Batch:
    """Images and their classes, on the worker's device."""

    images: Tensor
    """float32 ``[n, 3, px, px]``, normalised."""
    targets: Tensor
    """int64 ``[n]``."""


class Backend(ABC):
    """Makes batches of one split for one worker."""

    @property
    @abstractmethod
    def num_samples(self) -> int:
        """Images in the whole split, over all workers."""

    @abstractmethod
    def batches(self, keys: Iterable[BatchKey]) -> Iterator[Batch]:
        """One batch for each key. Work on later keys may start early; only one of these iterators is in use at a time.

        Raises:
            ImageError: an image cannot be read or decoded.
        """

    @abstractmethod
    def close(self) -> None:
        """End the processes of this back end, also in the middle of a pass. It cannot be used afterwards."""


class Normalizer:
    """Pixels to the values that models are trained on: ``(pixel / 255 - mean) / std`` for each colour."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        spread = torch.tensor(std, dtype=torch.float64)
        self._scale = (1 / (255 * spread)).float().view(1, 3, 1, 1).to(device)
        self._shift = (-torch.tensor(mean, dtype=torch.float64) / spread).float().view(1, 3, 1, 1).to(device)

    def __call__(self, pixels: Tensor, memory_format: torch.memory_format) -> Tensor:
        """uint8 ``[n, 3, h, w]`` on the device to float32 in ``memory_format``."""
        images = pixels.to(torch.float32, memory_format=memory_format)
        return torch.addcmul(self._shift, images, self._scale, out=images)


def layout(channels_last: bool) -> torch.memory_format:
    """The memory format that a run asks for."""
    return torch.channels_last if channels_last else torch.contiguous_format
