"""The interface between what is read next and how it is made: keys go in, batches come out in the same order.

A back end holds no position and no random state, so that the keys alone decide what a run sees. One that decodes on the
GPU, reads tar shards or stages files is another class behind :class:`Backend`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
        """End the threads, also in the middle of a pass. The back end cannot be used afterwards."""


class Finisher:
    """The last steps of every back end that reads files: normalisation, bad images, the device."""

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
        self._normalizer = Normalizer(mean, std, device, channels_last)
        self._device = device
        self._dtype = dtype if device.type == "cuda" else torch.float32

    def sheet(self, num: int, px: int) -> Tensor:
        """Memory for a batch of squares, one for each call of :meth:`write`; its content is this class's affair."""
        if self._device.type == "cuda":
            # Bytes travel, because floats would be four times as many.
            return torch.empty((num, px, px, 3), dtype=torch.uint8, pin_memory=True)
        return self._normalizer.empty(num, px, px)

    def write(self, square: Tensor, out: Tensor) -> None:
        """One image (uint8 ``[px, px, 3]``) into its place of a sheet; on a CPU normalised, while it is in cache."""
        if out.dtype is torch.uint8:
            out.copy_(square)
        else:
            self._normalizer(square, out)

    def __call__(self, key: BatchKey, sheet: Tensor, bad: Mapping[int, str]) -> Batch:
        """A sheet that is written, or pixels (uint8 ``[n, px, px, 3]``, on the CPU or the device), as a batch.

        ``bad`` has the places whose image cannot be read or decoded, each with a line that names file and reason.
        Raises ImageError where an image is bad and not to be skipped.
        """
        labels = self._labels[key.indices]
        if bad:
            taken = self._bad_images.places_to_take(key.indices, bad)
            sheet, labels = sheet[torch.from_numpy(taken).to(sheet.device)], labels[taken]
        if sheet.dtype is torch.uint8:
            pixels = sheet.to(self._device, non_blocking=True)
            sheet = self._normalizer.empty(*pixels.shape[:3])
            self._normalizer(pixels, sheet)
        targets = torch.from_numpy(np.ascontiguousarray(labels)).to(self._device, non_blocking=True)
        return Batch(self._normalizer.as_images(sheet).to(self._dtype), targets)


class Normalizer:
    """Pixels to the values that models are trained on: ``(pixel / 255 - mean) / std`` for each colour."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device, channels_last: bool) -> None:
        spread = torch.tensor(std, dtype=torch.float64)
        self._scale = (1 / (255 * spread)).float().to(device)
        self._shift = (-torch.tensor(mean, dtype=torch.float64) / spread).float().to(device)
        self._device = device
        self._channels_last = channels_last
        self._buffers = Buffers(np.float32)
        self._factors: dict[int, tuple[Tensor, Tensor]] = {}

    def empty(self, num: int, height: int, width: int) -> Tensor:
        """float32 ``[n, height, width, 3]``, or ``[n, 3, height, width]`` without channels_last; uninitialised."""
        shape = (num, height, width, 3) if self._channels_last else (num, 3, height, width)
        if self._device.type == "cpu":
            return self._buffers.empty(*shape)
        return torch.empty(shape, dtype=torch.float32, device=self._device)

    def as_images(self, values: Tensor) -> Tensor:
        """What :meth:`empty` gave, in the order ``[n, 3, height, width]``."""
        return values.permute(0, 3, 1, 2) if self._channels_last else values

    def __call__(self, pixels: Tensor, out: Tensor) -> None:
        """uint8 ``[..., h, w, 3]`` on the device, of one image or many, into as much of :meth:`empty`."""
        if self._channels_last:
            out.copy_(pixels)
            # Whole rows at a time: a loop over three colours is too short for vector instructions.
            scale, shift = self._factors_of_rows(out.shape[-2])
            rows = out.flatten(-2)
        else:
            out.copy_(pixels.movedim(-1, -3))
            scale, shift, rows = self._scale.view(-1, 1, 1), self._shift.view(-1, 1, 1), out
        torch.addcmul(shift, rows, scale, out=rows)

    def _factors_of_rows(self, width: int) -> tuple[Tensor, Tensor]:
        if width not in self._factors:
            self._factors[width] = self._scale.repeat(width), self._shift.repeat(width)
        return self._factors[width]


def layout(channels_last: bool) -> torch.memory_format:
    """The memory format that a run asks for."""
    return torch.channels_last if channels_last else torch.contiguous_format
