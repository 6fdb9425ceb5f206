"""Workers that share one process and take turns: a message is a copy, made when both sides have started it.

Nothing waits here. What every worker starts before anyone waits has come by then; a wait for anything else would last
for ever, and raises instead.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import final

from torch import Tensor

from imgnet.parallel.wire.interface import Arrival, Message, Start, Wire


class MemoryNetwork:
    """What the workers of one process have started and not yet ended."""

    def __init__(self) -> None:
        self.messages: dict[tuple[int, int, int], tuple[Message, _Delivery]] = {}
        """By sender, receiver and tag."""
        self.sums: dict[tuple[int, ...], list[dict[int, tuple[Tensor, _Delivery]]]] = {}
        """By group: sums under way, the oldest first, each with the values of the ranks that have started it."""

    def wire(self, rank: int) -> Wire:
        """The connection of one worker."""
        return _MemoryWire(self, rank)


@final
class _MemoryWire(Wire):
    def __init__(self, network: MemoryNetwork, rank: int) -> None:
        self._network = network
        self._rank = rank

    def exchange(self, messages: Sequence[Message], tag: int) -> Start:
        return partial(self._exchange, list(messages), tag)

    def _exchange(self, messages: list[Message], tag: int) -> Arrival:
        delivery, under_way = _Delivery(len(messages)), self._network.messages
        for mine in messages:
            if (mine.peer, self._rank, tag) in under_way:
                theirs, other_delivery = under_way.pop((mine.peer, self._rank, tag))
                mine.received.copy_(theirs.sent)
                theirs.received.copy_(mine.sent)
                other_delivery.came()
                delivery.came()
            else:
                place = (self._rank, mine.peer, tag)
                assert place not in under_way, f"a second exchange of {place} (sender, receiver, tag) before the first"
                under_way[place] = (mine, delivery)
        return delivery

    def all_reduce(self, values: Tensor, ranks: tuple[int, ...]) -> Start:
        return partial(self._all_reduce, values, ranks)

    def _all_reduce(self, values: Tensor, ranks: tuple[int, ...]) -> Arrival:
        delivery, sums = _Delivery(1), self._network.sums.setdefault(ranks, [])
        mine = next((started for started in sums if self._rank not in started), None)
        if mine is None:
            mine = {}
            sums.append(mine)
        mine[self._rank] = (values, delivery)
        if len(mine) == len(ranks):
            _add_up([sums[0][rank] for rank in ranks])  # the first that began is the first that all have started
            del sums[0]
        return delivery


def _add_up(parts: Sequence[tuple[Tensor, "_Delivery"]]) -> None:
    """In the order of ranks, so that the bits do not depend on who came last."""
    total = parts[0][0].clone()
    for values, _ in parts[1:]:
        total.add_(values)
    for values, delivery in parts:
        values.copy_(total)
        delivery.came()


class _Delivery(Arrival):
    """So many messages, and what is to be done when the last has come."""

    def __init__(self, num_missing: int) -> None:
        self._num_missing = num_missing
        self._tasks: list[Callable[[], None]] = []

    def came(self) -> None:
        """One of them has come."""
        self._num_missing -= 1
        if self._num_missing == 0:
            for task in self._tasks:
                task()

    def wait(self) -> None:
        if self._num_missing:
            raise RuntimeError(f"{self._num_missing} messages have not come; all workers must start before one waits")

    def then(self, task: Callable[[], None]) -> Arrival:
        end = _Delivery(1)

        def do() -> None:
            task()
            end.came()

        if self._num_missing:
            self._tasks.append(do)
        else:
            do()
        return end
