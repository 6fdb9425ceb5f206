"""Rounds of workers that share a process are their matrices, and so are the messages that they are made of."""

import numpy as np
import pytest
import torch

from imgnet.config import WireDtype
from imgnet.parallel.topology import mixing_matrix
from imgnet.parallel.wire import Message
from imgnet.parallel.wire.memory import MemoryNetwork
from tests.in_process import Workers, schedules, start_of

NUM_VALUES = 50


@pytest.mark.parametrize(("world_size", "per_node"), [(2, 1), (3, 1), (5, 5), (6, 2), (7, 7), (8, 4), (12, 3)])
def test_every_round_is_its_matrix(world_size: int, per_node: int) -> None:
    for schedule in schedules(world_size, per_node):
        values = torch.stack([start_of(rank, NUM_VALUES) for rank in range(world_size)])
        wanted = values.double().numpy()
        workers = Workers(schedule, WireDtype.fp32, values)
        for step in range(9):
            workers.mix(step)
            wanted = mixing_matrix(schedule.round_at(step), world_size) @ wanted
            np.testing.assert_allclose(values.double().numpy(), wanted, atol=1e-6, err_msg=f"{schedule} at step {step}")


def test_a_message_comes_when_both_sides_have_started_it() -> None:
    network = MemoryNetwork()
    sent, received = torch.ones(2), [torch.zeros(2), torch.zeros(2)]
    one, other = (
        network.wire(rank).exchange([Message(1 - rank, sent * (rank + 1), received[rank])], tag=7) for rank in (0, 1)
    )
    done = []
    arrival = one()
    end = arrival.then(lambda: done.append("first")).then(lambda: done.append("second"))
    for early in (arrival, end):
        with pytest.raises(RuntimeError, match="all workers must start before one waits"):
            early.wait()
    other().wait()
    for late in (arrival, end, end):
        late.wait()
    assert done == ["first", "second"]
    assert [values.tolist() for values in received] == [[2.0, 2.0], [1.0, 1.0]]


def test_sums_of_a_group_are_matched_in_the_order_in_which_they_are_started() -> None:
    network = MemoryNetwork()
    values = torch.tensor([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]])
    starts = [[network.wire(rank).all_reduce(row[rank : rank + 1], (0, 1, 2)) for row in values] for rank in range(3)]
    arrivals = [start() for of_rank in starts for start in of_rank]
    for arrival in arrivals:
        arrival.wait()
    assert values.tolist() == [[6.0] * 3, [60.0] * 3]
