"""Encoded images to pixels, with torchvision's decoders, in the training process or in processes of its own."""

import multiprocessing
import os
import re
import signal
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torchvision.io  # loads the operators of torch.ops.image
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from imgnet.data.augment import center_boxes, crop_boxes, flips
from imgnet.data.backend import Backend, Batch, BatchKey, Normalizer, layout
from imgnet.data.source import ImageError, Source

# Images held decoded at a time: enough that drawing their boxes together costs little, few enough that large
# photographs fit into memory.
_CHUNK = 32
_RGB = torchvision.io.ImageReadMode.RGB.value


def decode(data: bytes) -> Tensor:
    """An encoded image as uint8 ``[3, height, width]`` in RGB, turned as its EXIF data say.

    The bytes tell the format, whatever the file is called.

    Raises:
        ValueError, RuntimeError: the bytes are no complete JPEG, PNG, WebP or GIF image.
    """
    # The operator behind torchvision.io.decode_image, which since 0.29 warns at each call that torchcodec replaces it.
    image: Tensor = torch.ops.image.decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), _RGB, True)
    if image.ndim == 4:
        image = image[0]  # animated: the first frame
    if image.dtype == torch.uint16:
        image = (image.to(torch.int32) >> 8).to(torch.uint8)
    return image


class View(ABC):
    """How the images of a batch are cut to squares of ``px``."""

    px: int

    @abstractmethod
    def render(self, images: Sequence[Tensor], epoch: int, indices: np.ndarray, out: Tensor) -> None:
        """Cut ``images`` (uint8 ``[3, h, w]``), the samples ``indices``, into ``out`` (uint8 ``[n, 3, px, px]``)."""


@dataclass(frozen=True)
class TrainView(View):
    """A random crop, resized, and mirrored or not; see :mod:`imgnet.data.augment`."""

    px: int
    seed: int
    scale: Sequence[float]
    ratio: Sequence[float]
    flip_probability: float

    def render(self, images: Sequence[Tensor], epoch: int, indices: np.ndarray, out: Tensor) -> None:
        """Resizing sees no pixel outside the crop."""
        widths, heights = _sizes(images)
        boxes = crop_boxes(self.seed, epoch, indices, widths, heights, self.scale, self.ratio)
        for place, image, (left, top, width, height) in zip(out, images, boxes.tolist(), strict=True):
            place.copy_(_resize(image[:, top : top + height, left : left + width], self.px, self.px))
        mirrored = torch.from_numpy(flips(self.seed, epoch, indices, self.flip_probability))
        out[mirrored] = out[mirrored].flip(-1)


@dataclass(frozen=True)
class EvalView(View):
    """The shorter side resized to ``resize_px``, the central ``px`` cut out."""

    px: int
    resize_px: int

    def render(self, images: Sequence[Tensor], epoch: int, indices: np.ndarray, out: Tensor) -> None:
        """The same for every epoch and index. The whole image is resized, as for published results."""
        widths, heights = _sizes(images)
        boxes = center_boxes(widths, heights, self.resize_px, self.px)
        px = boxes[:, 2:] / self.px  # source pixels in one pixel of the crop, for each axis
        sides = np.rint(np.stack([widths, heights], axis=1) / px).astype(np.int64)
        corners = np.rint(boxes[:, :2] / px).astype(np.int64)
        geometry = zip(sides.tolist(), corners.tolist(), strict=True)
        for place, image, ((width, height), (left, top)) in zip(out, images, geometry, strict=True):
            place.copy_(_resize(image, height, width)[:, top : top + self.px, left : left + self.px])


class DecodingBackend(Backend):
    """Reads, decodes and cuts in ``num_workers`` processes, or in this one where that is 0; moves and normalises here.

    The processes live from the first batch to :meth:`close`, and end by themselves however this process ends.
    """

    def __init__(
        self,
        source: Source,
        view: View,
        normalizer: Normalizer,
        *,
        num_workers: int,
        channels_last: bool,
        device: torch.device,
    ) -> None:
        self._num_samples = len(source)
        self._normalizer = normalizer
        self._memory_format = layout(channels_last)
        self._device = device
        self._keys = _Keys()
        self._processes: _MultiProcessingDataLoaderIter | None = None
        with _expected_warnings():
            self._loader: DataLoader[_Made] | None = DataLoader(
                _Batches(source, view),
                batch_size=None,
                sampler=self._keys,
                num_workers=num_workers,
                collate_fn=_unchanged,
                pin_memory=device.type == "cuda",
                worker_init_fn=_serve_parent,
                # A fork shares the table of files and the imports that are paid for. macOS, where it is unsafe, has
                # another default.
                multiprocessing_context="fork" if num_workers and sys.platform == "linux" else None,
                generator=torch.Generator(),  # its own, or each pass would advance the random state of the run
                persistent_workers=num_workers > 0,
            )

    @property
    def num_samples(self) -> int:
        """Images in the split."""
        return self._num_samples

    def batches(self, keys: Iterable[BatchKey]) -> Iterator[Batch]:
        """Up to two batches for each decoding process are made ahead."""
        if self._loader is None:
            raise RuntimeError("this back end is closed")
        self._keys.current = keys
        with _expected_warnings():
            made_in_order = iter(self._loader)
        if isinstance(made_in_order, _MultiProcessingDataLoaderIter):
            self._processes = made_in_order
        for made in made_in_order:
            if isinstance(made, ImageError):
                raise made
            yield self._on_device(*made)

    def close(self) -> None:
        """End the decoding processes, each after the batch that it is at. To be called when a run fails, too."""
        if self._processes is not None:
            # A private method, but the public way is to drop the last reference, and the traceback of an error holds
            # one. What the garbage collector does in the end comes too late, and waits five seconds for each process.
            self._processes._shutdown_workers()
        self._processes = self._loader = None

    def _on_device(self, pixels: Tensor, targets: Tensor) -> Batch:
        # Bytes travel, because floats would be four times as many.
        pixels = pixels.to(self._device, non_blocking=True)
        return Batch(self._normalizer(pixels, self._memory_format), targets.to(self._device, non_blocking=True))


_Made = tuple[Tensor, Tensor] | ImageError
T = TypeVar("T")


class _Keys(Sampler[BatchKey]):
    """The keys of the pass that starts next; the loader, and with it the processes, outlives many passes."""

    def __init__(self) -> None:
        self.current: Iterable[BatchKey] = ()

    def __iter__(self) -> Iterator[BatchKey]:
        return iter(self.current)


class _Batches(Dataset[_Made]):
    """Whole batches by their keys: uint8 ``[n, 3, px, px]`` with colours innermost in memory, and int64 ``[n]``."""

    def __init__(self, source: Source, view: View) -> None:
        self._source = source
        self._view = view

    def __getitem__(self, key: BatchKey) -> _Made:
        """An error is returned, because the loader would wrap a raised one into the traceback of another process."""
        num, px = len(key.indices), self._view.px
        pixels = torch.empty((num, 3, px, px), dtype=torch.uint8, memory_format=torch.channels_last)
        try:
            for start in range(0, num, _CHUNK):
                indices = key.indices[start : start + _CHUNK]
                images = [self._read(index) for index in indices.tolist()]
                self._view.render(images, key.epoch, indices, pixels[start : start + _CHUNK])
        except ImageError as error:
            return error
        return pixels, torch.from_numpy(self._source.labels[key.indices])

    def _read(self, index: int) -> Tensor:
        try:
            return decode(self._source.read(index))
        except (OSError, RuntimeError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else _reason(error)
            raise ImageError(f"cannot read the image {self._source.describe(index)}: {reason}") from None


def _sizes(images: Sequence[Tensor]) -> tuple[list[int], list[int]]:
    """Widths and heights."""
    return [image.shape[2] for image in images], [image.shape[1] for image in images]


def _resize(image: Tensor, height: int, width: int) -> Tensor:
    """Bilinear with antialiasing, uint8 ``[3, h, w]`` to uint8 ``[3, height, width]``."""
    # Decoders give colours innermost. A packed copy of the crop in this layout is resized by torch's vector code in
    # two thirds of the time, the copy included, that it takes on the crop itself.
    packed = image[None].contiguous(memory_format=torch.channels_last)
    return functional.interpolate(packed, size=(height, width), mode="bilinear", antialias=True)[0]


def _reason(error: Exception) -> str:
    """What an operator said, without the name of the function and the line in its source."""
    first_line = str(error).partition("\n")[0]
    return re.sub(r"^.*?\.(cpp|h):\d+, ", "", first_line)


def _unchanged(made: T) -> T:
    return made


@contextmanager
def _expected_warnings() -> Iterator[None]:
    """Hide what torch and Python say about choices that were made on purpose."""
    with warnings.catch_warnings():
        # More processes than cores are what the user asked for, and right where reading waits for a network.
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        # Python 3.12 warns at every fork of a process with threads. These children use none of what the threads hold.
        warnings.filterwarnings("ignore", message="This process .* is multi-threaded, use of fork")
        yield


def _serve_parent(worker_id: int) -> None:
    """Prepare a decoding process to live as long as the training process, whatever signals the whole job gets."""
    # Interrupts and Slurm's warnings reach all processes of a job; the training process alone answers them.
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    # torch ends this process when its parent changes from now on, and so misses a parent that is dead by now.
    parent = multiprocessing.parent_process()
    if parent is not None and os.getppid() != parent.pid:
        os._exit(1)
