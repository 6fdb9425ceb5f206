"""How images are cut to squares: which part of each is decoded, and what is made of that part."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.nn import functional

from imgnet.config import Interpolation
from imgnet.data.sampling.augment import NUM_ATTEMPTS, center_boxes, center_corners, crop_boxes, flips, resized_sizes
from imgnet.data.sampling.counter import Floats, Ints


@dataclass(frozen=True)
class Cut:
    """What a batch takes from its images. Boxes are ``left, top, width, height`` in pixels."""

    parts: Ints
    """The part of each image that has to be decoded: int64 ``[n, 4]``."""
    boxes: Floats
    """The part of that part that becomes the square: float64 ``[n, 4]``."""
    mirrored: npt.NDArray[np.bool_]
    """Which squares are mirrored left to right: bool ``[n]``."""


@dataclass(frozen=True)
class Resizing:
    """How a part of an image becomes larger or smaller: to the bit as in torchvision's ``v2.functional.resize``."""

    interpolation: Interpolation = Interpolation.bilinear
    antialias: bool = True

    def __call__(self, image: Tensor, height: int, width: int) -> Tensor:
        """uint8 ``[h, w, 3]`` to uint8 ``[height, width, 3]``, colours innermost in memory."""
        # Torch's vector code takes colours innermost, packed, and with the stride of a batch of more than one image:
        # else it turns what it made, which takes as long as to make it. A copy of a crop costs less, too.
        batch = image.contiguous()[None].permute(0, 3, 1, 2)
        mode = self.interpolation.value
        resized = functional.interpolate(batch, size=(height, width), mode=mode, antialias=self.antialias)
        return resized[0].permute(1, 2, 0)


class View(ABC):
    """How the images of a batch are cut to squares of ``px``."""

    px: int
    resizing: Resizing

    @abstractmethod
    def cut(self, epoch: int, indices: Ints, widths: Sequence[int], heights: Sequence[int]) -> Cut:
        """Where the samples ``indices`` are cut, from the sizes of their images in pixels."""

    @abstractmethod
    def square(self, part: Tensor) -> Tensor:
        """What becomes of a decoded part, not yet mirrored: uint8 ``[h, w, 3]`` to uint8 ``[px, px, 3]``."""


@dataclass(frozen=True)
class TrainView(View):
    """A random crop, resized, and mirrored or not; see :mod:`imgnet.data.sampling.augment`."""

    px: int
    seed: int
    scale: Sequence[float]
    ratio: Sequence[float]
    flip_probability: float
    num_attempts: int = NUM_ATTEMPTS
    resizing: Resizing = Resizing()

    def cut(self, epoch: int, indices: Ints, widths: Sequence[int], heights: Sequence[int]) -> Cut:
        """Resizing sees no pixel outside the crop."""
        parts = crop_boxes(
            self.seed, epoch, indices, widths, heights, self.scale, self.ratio, num_attempts=self.num_attempts
        )
        boxes = parts.astype(np.float64)
        boxes[:, :2] = 0
        return Cut(parts, boxes, flips(self.seed, epoch, indices, self.flip_probability))

    def square(self, part: Tensor) -> Tensor:
        """All of the crop."""
        return self.resizing(part, self.px, self.px)


@dataclass(frozen=True)
class EvalView(View):
    """The shorter side resized to ``resize_px``, or both, and the central ``px`` cut out."""

    px: int
    resize_px: int
    squash: bool = False
    resizing: Resizing = Resizing()

    def cut(self, epoch: int, indices: Ints, widths: Sequence[int], heights: Sequence[int]) -> Cut:
        """The same for every epoch and index. The whole image is decoded and resized, as for published results."""
        parts = np.zeros((len(indices), 4), dtype=np.int64)
        parts[:, 2], parts[:, 3] = widths, heights
        boxes = center_boxes(parts[:, 2:], self.resize_px, self.px, squash=self.squash)
        return Cut(parts, boxes, np.zeros(len(indices), dtype=bool))

    def square(self, part: Tensor) -> Tensor:
        """To the pixel as torchvision's Resize and CenterCrop."""
        size = resized_sizes([part.shape[1::-1]], self.resize_px, squash=self.squash)
        ((wide, high),), ((left, top),) = size.tolist(), center_corners(size, self.px).tolist()
        return self.resizing(part, high, wide)[top : top + self.px, left : left + self.px]
