"""The parts of raw pixels that a view takes: where they are cut is known before anything is read."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import final

import numpy as np

from imgnet.data.backends.backend import BatchKey
from imgnet.data.backends.bad_images import describe_failure
from imgnet.data.sampling.counter import Ints
from imgnet.data.sampling.view import Cut, View
from imgnet.data.sources.raw import Pixels, RawPixels
from imgnet.data.sources.source import Source

_NUM_READERS = 8  # reading waits for a disk or the network, not for a core


@final
class RawParts:
    """Parts one by one, in the thread that asks for them."""

    def __init__(self, source: Source, pixels: RawPixels, view: View) -> None:
        self._source = source
        self._pixels = pixels
        self._view = view

    def cut(self, key: BatchKey) -> Cut:
        """Where the images of ``key`` are cut. Reads none of them."""
        widths, heights = self._pixels.sizes(key.indices).T.tolist()
        return self._view.cut(key.epoch, key.indices, widths, heights)

    def read(self, index: int, box: Ints) -> Pixels | str:
        """The part of an image in ``box``: uint8 ``[h, w, 3]``; or the line that says why there is none."""
        try:
            return self._pixels.part(index, box.tolist())
        except OSError as error:
            return describe_failure(self._source, index, error)


@dataclass(frozen=True)
class RawBatch:
    """The parts of a batch, uint8 ``[h, w, 3]`` each, and which of them are only stand-ins."""

    key: BatchKey
    cut: Cut
    parts: list[Pixels]
    bad: dict[int, str]


@final
class Reading:
    """A batch that is being read."""

    def __init__(self, key: BatchKey, cut: Cut, chunks: list[Future[list[Pixels | str]]]) -> None:
        self._key = key
        self._cut = cut
        self._chunks = chunks

    def wait(self) -> RawBatch:
        """The batch, when all of it is read. What cannot be read is one black pixel."""
        read = [part for chunk in self._chunks for part in chunk.result()]
        bad = {place: part for place, part in enumerate(read) if isinstance(part, str)}
        self._cut.boxes[list(bad)] = 0, 0, 1, 1
        parts = [np.zeros((1, 1, 3), np.uint8) if isinstance(part, str) else part for part in read]
        return RawBatch(self._key, self._cut, parts, bad)


@final
class RawReader:
    """Whole batches, each shared among threads."""

    def __init__(self, parts: RawParts) -> None:
        self._parts = parts
        self._threads = ThreadPoolExecutor(_NUM_READERS, "read")

    def start(self, key: BatchKey) -> Reading:
        """Begin to read; returns at once."""
        cut = self._parts.cut(key)
        edges = np.linspace(0, len(key.indices), _NUM_READERS + 1).astype(int).tolist()
        chunks = [self._threads.submit(self._read, key, cut, *edge) for edge in pairwise(edges)]
        return Reading(key, cut, chunks)

    def close(self) -> None:
        """End the threads, each after the images that it is at."""
        self._threads.shutdown(cancel_futures=True)

    def _read(self, key: BatchKey, cut: Cut, first: int, after: int) -> list[Pixels | str]:
        return [self._parts.read(int(key.indices[place]), cut.parts[place]) for place in range(first, after)]
