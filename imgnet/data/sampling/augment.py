"""Where each image is cut and whether it is mirrored, as pure functions of (seed, epoch, index).

Boxes are ``left, top, width, height`` in pixels of the source image. Nothing depends on which samples share a batch.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from imgnet.data.sampling.counter import FIRST_CROP_DRAW, FLIP_DRAW, Floats, Ints, uniforms

NUM_ATTEMPTS = 10
_DRAWS_PER_ATTEMPT = 4  # area, ratio, left, top


def crop_boxes(
    seed: int,
    epoch: int,
    indices: npt.ArrayLike,
    widths: npt.ArrayLike,
    heights: npt.ArrayLike,
    scale: Sequence[float],
    ratio: Sequence[float],
    num_attempts: int = NUM_ATTEMPTS,
) -> Ints:
    """Training crops: int64 ``[n, 4]``, always inside the image and at least one pixel wide and high.

    The law is that of torchvision's RandomResizedCrop, which attempts it ten times: the share of the area uniform in
    ``scale``, width / height log-uniform in ``ratio``, the first attempt that fits into the image, and a central box if
    none does. More attempts change the crops of those images alone that had a central box.
    """
    indices = np.asarray(indices, dtype=np.int64)
    widths, heights = np.asarray(widths, dtype=np.int64), np.asarray(heights, dtype=np.int64)
    draws = FIRST_CROP_DRAW + np.arange(num_attempts * _DRAWS_PER_ATTEMPT)
    random = uniforms(seed, epoch, indices, draws).reshape(len(indices), num_attempts, _DRAWS_PER_ATTEMPT)

    sizes = _attempted_sizes(random, widths * heights, scale, ratio)
    fits = ((sizes >= 1) & (sizes <= np.stack([widths, heights], axis=1)[:, None])).all(axis=2)
    rows, first = np.arange(len(indices)), fits.argmax(axis=1)
    size, place = sizes[rows, first], random[rows, first, 2:]
    room = np.stack([widths, heights], axis=1) - size
    boxes = np.concatenate([np.floor(place * (room + 1)).astype(np.int64), size], axis=1)

    found = fits.max(axis=1, keepdims=True)
    return np.where(found, boxes, _fallback_boxes(widths, heights, ratio))


def flips(seed: int, epoch: int, indices: npt.ArrayLike, probability: float) -> npt.NDArray[np.bool_]:
    """Which training images are mirrored left to right: bool ``[n]``."""
    return uniforms(seed, epoch, indices, [FLIP_DRAW])[:, 0] < probability


def resized_sizes(sizes: npt.ArrayLike, resize_px: int, *, squash: bool) -> Ints:
    """What validation images of ``sizes`` ``[n, 2]`` are resized to, width and height: int64 ``[n, 2]``.

    The shorter side becomes ``resize_px`` and the longer one is rounded down, as torchvision's Resize does it, so that
    the two axes may differ slightly in scale; or both become ``resize_px``.
    """
    source = np.asarray(sizes, dtype=np.int64)
    return resize_px * source // (source if squash else source.min(axis=1, keepdims=True))


def center_corners(sizes: Ints, crop_px: int) -> Ints:
    """Left and top of the central ``crop_px`` in images of ``sizes`` ``[n, 2]``, as in torchvision's CenterCrop."""
    return np.rint((sizes - crop_px) / 2).astype(np.int64)


def center_boxes(sizes: npt.ArrayLike, resize_px: int, crop_px: int, *, squash: bool = False) -> Floats:
    """Validation crops in images of ``sizes`` ``[n, 2]``, before these are resized: float64 ``[n, 4]``."""
    resized = resized_sizes(sizes, resize_px, squash=squash)
    px = np.asarray(sizes, dtype=np.int64) / resized  # source pixels in one pixel of the crop
    return np.concatenate([center_corners(resized, crop_px) * px, crop_px * px], axis=1)


def _attempted_sizes(random: Floats, areas: Ints, scale: Sequence[float], ratio: Sequence[float]) -> Ints:
    """Width and height of every attempt: int64 ``[n, attempts, 2]``, not yet checked against the image."""
    area = areas[:, None] * (scale[0] + (scale[1] - scale[0]) * random[:, :, 0])
    low, high = np.log(ratio[0]), np.log(ratio[1])
    aspect = np.exp(low + (high - low) * random[:, :, 1])
    return np.rint(np.sqrt(np.stack([area * aspect, area / aspect], axis=2))).astype(np.int64)


def _fallback_boxes(widths: Ints, heights: Ints, ratio: Sequence[float]) -> Ints:
    """The largest central box whose width / height lies in ``ratio``: int64 ``[n, 4]``."""
    width = np.minimum(widths, np.maximum(1, np.rint(heights * ratio[1]).astype(np.int64)))
    height = np.minimum(heights, np.maximum(1, np.rint(widths / ratio[0]).astype(np.int64)))
    return np.stack([(widths - width) // 2, (heights - height) // 2, width, height], axis=1)
