"""The interface between what is read next and how it is made: keys go in, batches come out in the same order.

A back end holds no position and no random state, so that the keys alone decide what a run sees. One that decodes on the
GPU, reads tar shards or stages files is another class behind :class:`Backend`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from imgnet.data.backends.bad_images import BadImages
from imgnet.data.backends.buffers import Buffers
from imgnet.data.sampling.counter import Ints


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
    """``[n, 3, px, px]``, normalised: float32 on a CPU, the precision of the training on a GPU."""
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
            ImageError: an image cannot be read or decoded, and is not to be skipped.
        """

    @abstractmethod
    def close(self) -> None:
        """End the processes and threads, also in the middle of a pass. The back end cannot be used afterwards."""


@dataclass(frozen=True)
class Decoded:
    """What a decoding back end makes of a key, before it is normalised."""

    pixels: Tensor
    """uint8 ``[n, 3, px, px]`` with colours innermost in memory."""
    bad: dict[int, str]
    """Places in the batch whose image cannot be read or decoded, each with a line that names file and reason."""


class Finisher:
    """The last step of every decoding back end: bad images, the device, normalisation."""

    def __init__(
        self,
        labels: Ints,
        bad_images: BadImages,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        device: torch.device,
        channels_last: bool,
        dtype: torch.dtype,
    ) -> None:
        self._labels = labels
        self._bad_images = bad_images
        self._normalizer = Normalizer(mean, std, device)
        self._device = device
        self._memory_format = layout(channels_last)
        self._dtype = dtype if device.type == "cuda" else torch.float32

    def __call__(self, key: BatchKey, decoded: Decoded) -> Batch:
        """Raises ImageError where an image is bad and not to be skipped."""
        pixels, labels = decoded.pixels, self._labels[key.indices]
        if decoded.bad:
            taken = self._bad_images.places_to_take(key.indices, decoded.bad)
            pixels, labels = pixels[torch.from_numpy(taken).to(pixels.device)], labels[taken]
        # Bytes travel, because floats would be four times as many.
        pixels = pixels.to(self._device, non_blocking=True)
        images = self._normalizer(pixels, self._memory_format)
        targets = torch.from_numpy(np.ascontiguousarray(labels)).to(self._device, non_blocking=True)
        return Batch(images.to(self._dtype), targets)


class Normalizer:
    """Pixels to the values that models are trained on: ``(pixel / 255 - mean) / std`` for each colour."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        spread = torch.tensor(std, dtype=torch.float64)
        self._scale = (1 / (255 * spread)).float().to(device)
        self._shift = (-torch.tensor(mean, dtype=torch.float64) / spread).float().to(device)
        self._device = device
        self._buffers = Buffers(np.float32)

    def __call__(self, pixels: Tensor, memory_format: torch.memory_format) -> Tensor:
        """uint8 ``[n, 3, h, w]`` on the device to float32 in ``memory_format``."""
        num, colors, height, width = pixels.shape
        if memory_format is torch.channels_last:
            # Whole rows at a time: a loop over three colours is too short for vector instructions.
            images = self._empty(num, height, width * colors)
            scale, shift = self._scale.repeat(width), self._shift.repeat(width)
            images.copy_(pixels.permute(0, 2, 3, 1).reshape(images.shape))
            torch.addcmul(shift, images, scale, out=images)
            return images.view(num, height, width, colors).permute(0, 3, 1, 2)
        images = self._empty(num, colors, height, width).copy_(pixels)
        return torch.addcmul(self._shift.view(-1, 1, 1), images, self._scale.view(-1, 1, 1), out=images)

    def _empty(self, *shape: int) -> Tensor:
        if self._device.type == "cpu":
            return self._buffers.empty(*shape)
        return torch.empty(shape, dtype=torch.float32, device=self._device)


def layout(channels_last: bool) -> torch.memory_format:
    """The memory format that a run asks for."""
    return torch.channels_last if channels_last else torch.contiguous_format
