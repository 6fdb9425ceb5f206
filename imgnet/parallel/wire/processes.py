"""Workers that are processes: torch's point-to-point messages and all-reduces, over gloo or NCCL."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from threading import Lock
from typing import final

import torch
import torch.distributed as dist
from torch import Tensor

from imgnet.parallel.wire.interface import Arrival, Message, Start, Wire
from imgnet.profile.spans import watched

Wait = Callable[[], object]
Begin = Callable[[], "_Works"]


@final
class ProcessWire(Wire):
    """Messages between the processes of the default process group. Making one is collective.

    Args:
        device: where the messages are.
        groups: ranks that :meth:`all_reduce` will be asked for; the same on all workers, in the same order.
    """

    def __init__(self, device: torch.device, groups: Iterable[tuple[int, ...]] = ()) -> None:
        self._background = _Background(device)
        takes_turns = self._background.has_thread  # NCCL keeps the order by itself
        self._process_groups = _process_groups(groups, shares_world=not takes_turns)
        self._turns = _Turns(self._background) if takes_turns and self._process_groups else None

    def exchange(self, messages: Sequence[Message], tag: int) -> Start:
        """See :meth:`Wire.exchange`.

        What comes stands before what goes. With gloo a receiver first tells its sender that it is ready, and on the
        same connection that word would come after whatever was sent before, megabytes later.
        """
        incoming = [dist.P2POp(dist.irecv, message.received, message.peer, tag=tag) for message in messages]
        outgoing = [dist.P2POp(dist.isend, message.sent, message.peer, tag=tag) for message in messages]
        operations = [operation for operation in incoming + outgoing if operation.tensor.numel()]
        return self._in_turn("exchange", partial(self._exchange, operations))

    def _in_turn(self, kind: str, start: "Begin") -> Start:
        return start if self._turns is None else partial(self._turns.start, kind, start)

    def _exchange(self, operations: list[dist.P2POp]) -> "_Works":
        return _Works(dist.batch_isend_irecv(operations) if operations else [], self._background)

    def all_reduce(self, values: Tensor, ranks: tuple[int, ...]) -> Start:
        """See :meth:`Wire.all_reduce`."""
        return self._in_turn("all-reduce", partial(self._all_reduce, values, self._process_groups[ranks]))

    def _all_reduce(self, values: Tensor, group: dist.ProcessGroup) -> "_Works":
        work = dist.all_reduce(values, group=group, async_op=True)
        return _Works([] if work is None else [work], self._background)


def _process_groups(
    groups: Iterable[tuple[int, ...]], *, shares_world: bool
) -> dict[tuple[int, ...], dist.ProcessGroup]:
    """Communicators of this worker's groups. Collective: every rank makes those of all ranks, as torch demands.

    Args:
        groups: their ranks.
        shares_world: the group of all workers is the default one, whose communicator exists already. Not for sums
            that may begin later than they were started: others of the default group would overtake them on one worker.
    """
    made: dict[tuple[int, ...], dist.ProcessGroup] = {}
    for ranks in groups:
        is_world = shares_world and len(ranks) == dist.get_world_size()
        group = dist.group.WORLD if is_world else dist.new_group(list(ranks))
        if isinstance(group, dist.ProcessGroup):
            made[ranks] = group
    return made


class _Awaited(Arrival):
    """What a wait brings.

    Args:
        wait: more than once, from any thread.
        background: for what follows.
    """

    def __init__(self, wait: Wait, background: "_Background") -> None:
        self._wait = wait
        self._background = background

    def wait(self) -> None:
        self._wait()

    def then(self, task: Callable[[], None]) -> Arrival:
        def when_here() -> None:
            self.wait()
            task()

        return _Awaited(self._background.submit(when_here), self._background)


class _Works(_Awaited):
    """Messages that have begun."""

    def __init__(self, works: list[dist.Work], background: "_Background") -> None:
        self._works = works
        self._one_waits = Lock()
        super().__init__(watched(self._wait_for_all) if background.has_thread else self._wait_for_all, background)

    @property
    def is_over(self) -> bool:
        """Whether somebody has waited for all."""
        return not self._works

    def _wait_for_all(self) -> None:
        with self._one_waits:  # gloo's second wait for the same message does not return
            for work in self._works:
                work.wait()
            self._works = []


class _Turns:
    """Lets exchanges wait for the all-reduces that were started before them, and these for those.

    The next averages start while the last of a round are still on their way, which are needed sooner. Gloo sends both
    at once, on the same connections: the round that is needed now takes as long as both, and the link is idle later,
    during the next forward pass, when there is nothing left to send. Messages of one kind keep their order anyway.

    All workers name what they share in the same order, and wait only for what they named before: nobody waits in a
    circle.
    """

    def __init__(self, background: "_Background") -> None:
        self._background = background
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="turns")
        self._kind = ""
        self._begun: deque[_Works] = deque()
        """Of this kind."""
        self._last: Future[_Works] | None = None
        """What was put off, and those that came after it."""

    def start(self, kind: str, begin: Begin) -> Arrival:
        """Begin at once, or put off, behind the computation."""
        if self._last is not None and self._last.done() and self._last.exception() is None:
            self._last = None
        if self._last is None and (kind == self._kind or not self._under_way()):
            return self._begin(kind, begin)
        self._last = self._thread.submit(self._begin_after, kind, begin)
        return _Awaited(partial(_wait_for, self._last), self._background)

    def _under_way(self) -> bool:
        while self._begun and self._begun[0].is_over:
            self._begun.popleft()
        return bool(self._begun)

    def _begin(self, kind: str, begin: Begin) -> _Works:
        self._under_way()
        self._kind = kind
        self._begun.append(works := begin())
        return works

    def _begin_after(self, kind: str, begin: Begin) -> _Works:
        while kind != self._kind and self._under_way():
            self._begun[0].wait()
        return self._begin(kind, begin)


def _wait_for(works: "Future[_Works]") -> None:
    works.result().wait()


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
