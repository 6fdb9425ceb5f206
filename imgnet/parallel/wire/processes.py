"""Workers that are processes: torch's point-to-point messages and all-reduces, over gloo or NCCL."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import final

import torch
import torch.distributed as dist
from torch import Tensor

from imgnet.parallel.wire.interface import Arrival, Message, Start, Wire
from imgnet.profile.spans import watched

Wait = Callable[[], object]


@final
class ProcessWire(Wire):
    """Messages between the processes of the default process group. Making one is collective.

    Args:
        device: where the messages are.
        groups: ranks that :meth:`all_reduce` will be asked for; the same on all workers, in the same order.
    """

    def __init__(self, device: torch.device, groups: Iterable[tuple[int, ...]] = ()) -> None:
        self._background = _Background(device)
        self._process_groups = _process_groups(groups)

    def exchange(self, messages: Sequence[Message], tag: int) -> Start:
        """See :meth:`Wire.exchange`.

        What comes stands before what goes. With gloo a receiver first tells its sender that it is ready, and on the
        same connection that word would come after whatever was sent before, megabytes later.
        """
        incoming = [dist.P2POp(dist.irecv, message.received, message.peer, tag=tag) for message in messages]
        outgoing = [dist.P2POp(dist.isend, message.sent, message.peer, tag=tag) for message in messages]
        operations = [operation for operation in incoming + outgoing if operation.tensor.numel()]
        return partial(self._exchange, operations)

    def _exchange(self, operations: list[dist.P2POp]) -> Arrival:
        return _Works(dist.batch_isend_irecv(operations) if operations else [], self._background)

    def all_reduce(self, values: Tensor, ranks: tuple[int, ...]) -> Start:
        """See :meth:`Wire.all_reduce`."""
        return partial(self._all_reduce, values, self._process_groups[ranks])

    def _all_reduce(self, values: Tensor, group: dist.ProcessGroup) -> Arrival:
        work = dist.all_reduce(values, group=group, async_op=True)
        return _Works([] if work is None else [work], self._background)


def _process_groups(groups: Iterable[tuple[int, ...]]) -> dict[tuple[int, ...], dist.ProcessGroup]:
    """Communicators of this worker's groups. Collective: every rank makes those of all ranks, as torch demands."""
    made: dict[tuple[int, ...], dist.ProcessGroup] = {}
    for ranks in groups:
        everybody = len(ranks) == dist.get_world_size()  # whose communicator exists already
        group = dist.group.WORLD if everybody else dist.new_group(list(ranks))
        if isinstance(group, dist.ProcessGroup):
            made[ranks] = group
    return made


class _Works(Arrival):
    def __init__(self, works: list[dist.Work], background: "_Background") -> None:
        self._works = works
        self._background = background
        self._wait = watched(self._wait_for_all) if background.has_thread else self._wait_for_all

    def wait(self) -> None:
        self._wait()

    def _wait_for_all(self) -> None:
        for work in self._works:
            work.wait()
        self._works = []

    def then(self, task: Callable[[], None]) -> Arrival:
        def when_here() -> None:
            self.wait()
            task()

        return _Task(self._background.submit(when_here), self._background)


class _Task(Arrival):
    """The end of a task in the background."""

    def __init__(self, wait: Wait, background: "_Background") -> None:
        self._wait = wait
        self._background = background

    def wait(self) -> None:
        self._wait()

    def then(self, task: Callable[[], None]) -> Arrival:
        return _Task(self._background.submit(task), self._background)


class _Background:
    """Does what must follow a message's arrival while the worker goes on computing.

    A thread on CPU, where a wait holds up the one who waits; a second stream on a GPU, where nothing on the host waits.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._thread = None if self._stream else ThreadPoolExecutor(max_workers=1, thread_name_prefix="averaging")

    @property
    def has_thread(self) -> bool:
        """Whether waits are the host's."""
        return self._thread is not None

    def submit(self, task: Callable[[], None]) -> Wait:
        """Begin ``task``, after all that was submitted before. Returns what waits for its end, and raises its error."""
        if self._thread is not None:
            return self._thread.submit(task).result
        assert self._stream is not None
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            task()
            return self._stream.record_event().wait
