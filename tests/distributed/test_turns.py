"""Messages of one kind wait for those of another kind that were started before them."""

from pathlib import Path

import torch
import torch.distributed as dist

from imgnet.parallel.wire import Message
from imgnet.parallel.wire.processes import ProcessWire
from imgnet.runtime import Runtime
from tests.distributed.harness import on_workers

EVERYBODY = (0, 1, 2)


def sum_then_exchange(runtime: Runtime) -> tuple[str, float, float]:
    """Worker 2 starts its sum when the others have started all of theirs, and none could have come."""
    wire = ProcessWire(runtime.device, [EVERYBODY])
    values, sent, received = torch.full((4,), runtime.rank + 1.0), torch.full((4,), float(runtime.rank)), torch.zeros(4)
    messages = [Message(1 - runtime.rank, sent, received)] if runtime.rank < 2 else []
    if runtime.rank == 2:
        dist.barrier()
    arrivals = [wire.all_reduce(values, EVERYBODY)(), wire.exchange(messages, tag=0)()]
    assert wire._turns is not None
    begun = wire._turns._kind
    if runtime.rank < 2:
        dist.barrier()  # of the default group: it does not wait for the sum
    for arrival in arrivals:
        arrival.wait()
    return begun, float(values[0]), float(received[0])


def test_an_exchange_begins_when_the_sum_before_it_has_come(tmp_path: Path) -> None:
    results = on_workers(sum_then_exchange, 3, tmp_path)
    assert [begun for begun, _, _ in results[:2]] == ["all-reduce"] * 2
    assert [total for _, total, _ in results] == [6.0] * 3
    assert [received for _, _, received in results] == [1.0, 0.0, 0.0]


def in_random_order(runtime: Runtime, num_messages: int) -> list[float]:
    """Sums and exchanges of all workers, started in one order and waited for in another; results are exact."""
    wire = ProcessWire(runtime.device, [EVERYBODY])
    random = torch.Generator().manual_seed(3)
    kinds = torch.randint(3, (num_messages,), generator=random).tolist()
    peers = [other for other in EVERYBODY if other != runtime.rank]
    arrivals, results = [], []
    for number, kind in enumerate(kinds):
        size = 1 + 5000 * (number % 7)
        if kind == 0:
            values = torch.full((size,), float(number + runtime.rank))
            arrivals.append(wire.all_reduce(values, EVERYBODY)())
            results.append(values)
        else:
            own = torch.full((size,), float(number * 10 + runtime.rank))
            messages = [Message(peer, own, torch.empty(size)) for peer in peers]
            arrivals.append(wire.exchange(messages, number)())
            results += [message.received for message in messages]
        if number % 11 == 0:
            dist.all_reduce(torch.zeros(3))  # others of the default group do not meet them
    for place in torch.randperm(len(arrivals), generator=random).tolist():
        arrivals[place].wait()
    assert all(bool((values == values[0]).all()) for values in results)
    return [float(values[0]) for values in results]


def test_sums_and_exchanges_in_any_order_reach_whom_they_are_for(tmp_path: Path) -> None:
    num_messages = 200
    found = on_workers(in_random_order, 3, tmp_path, num_messages)
    kinds = torch.randint(3, (num_messages,), generator=torch.Generator().manual_seed(3)).tolist()
    for rank, values in enumerate(found):
        wanted = []
        for number, kind in enumerate(kinds):
            peers = [other for other in EVERYBODY if other != rank]
            wanted += [3.0 * number + 3] if kind == 0 else [number * 10.0 + peer for peer in peers]
        assert values == wanted
