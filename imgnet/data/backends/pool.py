"""Every step from the files to normalised images in one pool of threads, so that no stage waits for another."""

import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from imgnet.data.backends.backend import Backend, Batch, BatchKey, Finisher
from imgnet.data.backends.pieces import Reader
from imgnet.data.sampling.view import View
from imgnet.data.sources.source import Source

_AHEAD = 3  # batches that are begun before they are asked for
# Images that a thread makes at a time, at most: enough that drawing their boxes and waking DALI cost little, few enough
# that large photographs fit into memory.
_CHUNK = 64


@dataclass(frozen=True)
class _Begun:
    """A batch that threads work on."""

    key: BatchKey
    sheet: Tensor
    chunks: list[Future[dict[int, str]]]
    """Each tells what is bad in it, by its place in the batch."""


@final
class PoolBackend(Backend):
    """Reads, decodes, resizes and normalises in ``num_threads``; an image stays in the cache of one core throughout."""

    def __init__(
        self, source: Source, view: View, finish: Finisher, make_reader: Callable[[], Reader], *, num_threads: int
    ) -> None:
        """``make_reader`` is called for each thread, which has a reader of its own."""
        self._source = source
        self._view = view
        self._finish = finish
        self._make_reader = make_reader
        self._num_threads = num_threads
        self._of_thread = threading.local()
        self._threads: ThreadPoolExecutor | None = None
        self._begun: deque[_Begun] = deque()
        self._closed = False

    @property
    def num_samples(self) -> int:
        """Images in the split."""
        return len(self._source)

    def batches(self, keys: Iterable[BatchKey]) -> Iterator[Batch]:
        """A pass that was left in its middle ends when the next one starts."""
        if self._closed:
            raise RuntimeError("this back end is closed")
        self._end_pass()
        threads = self._threads = self._threads or self._started()
        begun = self._begun = deque[_Begun]()
        for key in keys:
            begun.append(self._begin(threads, key))
            if len(begun) > _AHEAD:
                yield self._finished(begun.popleft())
        while begun:
            yield self._finished(begun.popleft())

    def close(self) -> None:
        """End all threads, each after the images that it is at."""
        self._closed = True
        self._end_pass()
        if self._threads is not None:
            self._threads.shutdown()
            self._threads = None

    def _end_pass(self) -> None:
        chunks = [chunk for batch in self._begun for chunk in batch.chunks]
        self._begun.clear()
        wait([chunk for chunk in chunks if not chunk.cancel()])

    def _started(self) -> ThreadPoolExecutor:
        num_of_torch = torch.get_num_threads()  # now, or the first other thread that sets a number sets this one's too
        ready = threading.Barrier(self._num_threads + 1)
        readers = [self._make_reader() for _ in range(self._num_threads)]
        begin = (self._of_thread, readers, ready)
        threads = ThreadPoolExecutor(self._num_threads, "data", _begin_thread, begin)
        _start_all(threads, ready)
        torch.set_num_threads(num_of_torch)  # for this thread, and those that begin later
        return threads

    def _begin(self, threads: ThreadPoolExecutor, key: BatchKey) -> _Begun:
        self._source.expect(key.indices)
        sheet = self._finish.sheet(len(key.indices), self._view.px)
        # So many that every thread has some of the batches that are ahead.
        size = min(_CHUNK, math.ceil(_AHEAD * len(key.indices) / self._num_threads))
        chunks = [slice(first, first + size) for first in range(0, len(key.indices), size)]
        return _Begun(key, sheet, [threads.submit(self._make, key, chunk, sheet) for chunk in chunks])

    @torch.inference_mode()  # that of the thread; what is evaluated in that mode could not be written otherwise
    def _make(self, key: BatchKey, chunk: slice, sheet: Tensor) -> dict[int, str]:
        """Write the images in these places to the sheet."""
        read: Reader = self._of_thread.read
        pieces = read(BatchKey(key.epoch, key.indices[chunk]))
        for part, mirrored, out in zip(pieces.data, pieces.cut.mirrored.tolist(), sheet[chunk].unbind(), strict=True):
            square = self._view.square(torch.from_numpy(part))
            self._finish.write(square.flip(1) if mirrored else square, out)
        return {chunk.start + place: line for place, line in pieces.bad.items()}

    def _finished(self, batch: _Begun) -> Batch:
        bad: dict[int, str] = {}
        for chunk in batch.chunks:
            bad |= chunk.result()
        return self._finish(batch.key, batch.sheet, bad)


def _start_all(threads: ThreadPoolExecutor, ready: threading.Barrier) -> None:
    try:
        for _ in range(ready.parties - 1):
            threads.submit(int)
        ready.wait()
    except BaseException:  # the system has no more threads, or somebody interrupts: none may wait for ever
        ready.abort()
        threads.shutdown(wait=False)
        raise


def _begin_thread(of_thread: threading.local, readers: list[Reader], ready: threading.Barrier) -> None:
    """No method, because a thread holds it to its end and so would hold the pool, which then nobody could drop."""
    # Or torch would share each small copy among as many threads again, which wait for one another spinning.
    torch.get_num_threads()  # the first use of torch in a thread takes over the number of the process, so now
    torch.set_num_threads(1)
    of_thread.read = readers.pop()
    ready.wait()
