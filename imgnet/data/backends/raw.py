"""Raw pixels on the CPU: threads read the parts that are needed, threads resize them, and nothing is decoded."""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import final

from imgnet.data.backends.ahead import Ahead
from imgnet.data.backends.backend import Backend, Batch, BatchKey, Decoded, Finisher
from imgnet.data.backends.raw_parts import RawBatch, RawParts, RawReader, Reading
from imgnet.data.backends.squares import Squares
from imgnet.data.sampling.view import View
from imgnet.data.sources.raw import RawPixels
from imgnet.data.sources.source import Source

_FINISHED = 2  # batches that wait for the training


@final
class RawBackend(Backend):
    """Reads a batch while the one before is resized in ``num_threads``; up to four are held."""

    def __init__(self, source: Source, pixels: RawPixels, view: View, finish: Finisher, *, num_threads: int) -> None:
        self._num_samples = len(source)
        self._finish = finish
        self._reader = RawReader(RawParts(source, pixels, view))
        self._squares = Squares(view, num_threads)
        self._pass: Ahead[tuple[BatchKey, Decoded]] | None = None
        self._closed = False

    @property
    def num_samples(self) -> int:
        """Images in the split."""
        return self._num_samples

    def batches(self, keys: Iterable[BatchKey]) -> Iterator[Batch]:
        """A pass that was left in its middle ends when the next one starts."""
        if self._closed:
            raise RuntimeError("this back end is closed")
        self._end_pass()
        self._pass = Ahead(self._resized(keys), _FINISHED)
        for key, decoded in self._pass:
            yield self._finish(key, decoded)

    def close(self) -> None:
        """End all threads, each after the images that it is at."""
        self._end_pass()
        self._closed = True
        self._reader.close()
        self._squares.close()

    def _end_pass(self) -> None:
        if self._pass is not None:
            self._pass.stop()
            self._pass = None

    def _resized(self, keys: Iterable[BatchKey]) -> Iterator[tuple[BatchKey, Decoded]]:
        being_read: deque[Reading] = deque()
        for key in keys:
            being_read.append(self._reader.start(key))
            if len(being_read) > 1:
                yield self._made(being_read.popleft().wait())
        for reading in being_read:
            yield self._made(reading.wait())

    def _made(self, batch: RawBatch) -> tuple[BatchKey, Decoded]:
        squares = self._squares(batch.parts, batch.cut.mirrored)
        return batch.key, Decoded(squares.permute(0, 3, 1, 2), batch.bad)
