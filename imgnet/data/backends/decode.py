"""Encoded images to pixels, with torchvision's decoders, in the training process or in processes of its own."""

import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
import torchvision.io  # loads the operators of torch.ops.image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from imgnet.data.backends.backend import Backend, Batch, BatchKey, Decoded, Finisher
from imgnet.data.backends.bad_images import describe_failure
from imgnet.data.backends.raw_parts import RawParts
from imgnet.data.sampling.view import View
from imgnet.data.sources.header import PpmHeader, read_ppm_header
from imgnet.data.sources.source import ImageError, Source

# Images held decoded at a time: enough that drawing their boxes together costs little, few enough that large
# photographs fit into memory.
_CHUNK = 32
_RGB = torchvision.io.ImageReadMode.RGB.value
_TURN_BY_EXIF = False  # nor do the loaders that published results come from


def decode(data: bytes) -> Tensor:
    """An encoded image as uint8 ``[3, height, width]`` in RGB, to the bit as torchvision's ImageFolder loads it.

    So EXIF data turn nothing, and transparency is left out. Only of PNGs with 16 bits of grey the upper 8 are taken,
    where Pillow cuts all values at 255. The bytes tell the format, whatever the file is called.

    Raises:
        ValueError, RuntimeError: the bytes are no complete JPEG, PNG, WebP or GIF image, nor what ``as_ppm`` wrote.
    """
    header = read_ppm_header(data)
    if header is not None:
        return _raw(data, header)
    # The operator behind torchvision.io.decode_image, which since 0.29 warns at each call that torchcodec replaces it.
    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    image: Tensor = torch.ops.image.decode_image(encoded, _RGB, _TURN_BY_EXIF)
    if image.ndim == 4:
        image = image[0]  # animated: the first frame
    if image.dtype == torch.uint16:
        image = (image.to(torch.int32) >> 8).to(torch.uint8)
    return image


def _raw(data: bytes, header: PpmHeader) -> Tensor:
    pixels = torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=header.num_bytes)
    return pixels.view(header.height, header.width, 3).permute(2, 0, 1)


class DecodingBackend(Backend):
    """Reads, decodes and cuts in ``num_workers`` processes, or in this one where that is 0; moves and normalises here.

    The processes live from the first batch to :meth:`close`, and end by themselves however this process ends.
    """

    def __init__(
        self,
        source: Source,
        view: View,
        finish: Finisher,
        *,
        num_workers: int,
        pin_memory: bool,
    ) -> None:
        self._num_samples = len(source)
        self._finish = finish
        self._keys = _Keys()
        self._processes: _MultiProcessingDataLoaderIter | None = None
        with _expected_warnings():
            self._loader: DataLoader[_Made] | None = DataLoader(
                _Batches(source, view),
                batch_size=None,
                sampler=self._keys,
                num_workers=num_workers,
                collate_fn=_unchanged,
                pin_memory=pin_memory,
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
        for key, pixels, bad in made_in_order:
            yield self._finish(key, Decoded(pixels, bad))

    def close(self) -> None:
        """End the decoding processes, each after the batch that it is at. To be called when a run fails, too."""
        if self._processes is not None:
            # A private method, but the public way is to drop the last reference, and the traceback of an error holds
            # one. What the garbage collector does in the end comes too late, and waits five seconds for each process.
            self._processes._shutdown_workers()
        self._processes = self._loader = None


_Made = tuple[BatchKey, Tensor, dict[int, str]]
_Part = tuple[int, Tensor, bool]
"""A place in a batch, the pixels (uint8 ``[3, h, w]``) that its square is made of, and whether that is mirrored."""
T = TypeVar("T")


class _Keys(Sampler[BatchKey]):
    """The keys of the pass that starts next; the loader, and with it the processes, outlives many passes."""

    def __init__(self) -> None:
        self.current: Iterable[BatchKey] = ()

    def __iter__(self) -> Iterator[BatchKey]:
        return iter(self.current)


class _Batches(Dataset[_Made]):
    """Whole batches by their keys: the key, the pixels, and the images that are bad."""

    def __init__(self, source: Source, view: View) -> None:
        self._source = source
        self._view = view
        self._raw = RawParts(source, source.pixels, view) if source.pixels is not None else None

    def __getitem__(self, key: BatchKey) -> _Made:
        """Errors are returned, because the loader would wrap a raised one into the traceback of another process."""
        bad: dict[int, str] = {}
        pixels = np.zeros((len(key.indices), self._view.px, self._view.px, 3), dtype=np.uint8)
        for start in range(0, len(key.indices), _CHUNK):
            chunk = BatchKey(key.epoch, key.indices[start : start + _CHUNK])
            parts = self._decoded(chunk, start, bad) if self._raw is None else _read(self._raw, chunk, start, bad)
            for place, part, mirrored in parts:
                self._view.render([part], np.array([mirrored]), pixels[place : place + 1])
        return key, torch.from_numpy(pixels).permute(0, 3, 1, 2), bad

    def _decoded(self, chunk: BatchKey, first: int, bad: dict[int, str]) -> Iterator[_Part]:
        """The parts of encoded images, which have to be decoded before it is known where they are cut."""
        images = self._images(chunk, first, bad)
        places = list(images)
        widths, heights = zip(*(image.shape[:0:-1] for image in images.values()), strict=True) if images else ((), ())
        cut = self._view.cut(chunk.epoch, chunk.indices[[place - first for place in places]], widths, heights)
        for place, box, mirrored in zip(places, cut.parts.tolist(), cut.mirrored.tolist(), strict=True):
            left, top, width, height = box
            yield place, images[place][:, top : top + height, left : left + width], mirrored

    def _images(self, chunk: BatchKey, first: int, bad: dict[int, str]) -> dict[int, Tensor]:
        """Decoded images by their places in the batch; those that are bad are told in ``bad``."""
        images: dict[int, Tensor] = {}
        for place, index in enumerate(chunk.indices.tolist(), first):
            try:
                images[place] = decode_sample(self._source, index)
            except ImageError as error:
                bad[place] = str(error)
        return images


def _read(raw: RawParts, chunk: BatchKey, first: int, bad: dict[int, str]) -> Iterator[_Part]:
    """The parts of images that need no decoding."""
    cut = raw.cut(chunk)
    for place, index in enumerate(chunk.indices.tolist()):
        part = raw.read(index, cut.parts[place])
        if isinstance(part, str):
            bad[first + place] = part
        else:
            yield first + place, torch.from_numpy(part).permute(2, 0, 1), bool(cut.mirrored[place])


def decode_sample(source: Source, index: int, data: bytes | None = None) -> Tensor:
    """Image ``index`` as :func:`decode` gives it; its bytes are read where they are not given.

    Raises:
        ImageError: one line that names the image and the reason.
    """
    try:
        return decode(source.read(index) if data is None else data)
    except (OSError, RuntimeError, ValueError) as error:
        raise ImageError(describe_failure(source, index, error)) from None


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
