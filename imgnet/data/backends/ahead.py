"""Work ahead of the one who needs it, in a thread."""

import queue
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar, final

T = TypeVar("T")


@final
class Ahead(Generic[T]):
    """Takes up to ``depth`` items of an iterator before they are asked for. For work that releases the GIL."""

    def __init__(self, items: Iterator[T], depth: int) -> None:
        self._queue: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
        self._stopped = threading.Event()
        # A daemon, since a process that ends by an error is not to wait for the batch after next.
        self._thread = threading.Thread(target=self._work, args=(items,), name="data", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        """Raises what the iterator raised, in its place."""
        if self._stopped.is_set():
            raise StopIteration
        item, error = self._queue.get()
        if error is not None:
            self._stopped.set()
            raise error
        return item  # pyright: ignore[reportReturnType]  (None only beside an error)

    def stop(self) -> None:
        """Return when the thread has ended, which it does after the item that it is at."""
        self._stopped.set()
        while self._thread.is_alive():
            try:
                self._queue.get(timeout=0.05)
            except queue.Empty:
                continue
        self._thread.join()

    def _work(self, items: Iterator[T]) -> None:
        try:
            for item in items:
                self._queue.put((item, None))
                if self._stopped.is_set():
                    return
            self._queue.put((None, StopIteration()))
        except BaseException as error:  # raised again where the item is asked for
            self._queue.put((None, error))
