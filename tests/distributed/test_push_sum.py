"""Push-sum on real workers: the recursion in numpy, the same bits as workers in one process, and after a kill."""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from imgnet.config import SgdConfig, WireDtype
from imgnet.optim.loss_scale import LossScaler
from imgnet.parallel.averaging.methods.push_sum import PushSum
from imgnet.parallel.engines.decentralized import Decentralized
from imgnet.parallel.topology import Schedule, build_topology
from imgnet.parallel.wire import Wire
from imgnet.parallel.wire.memory import MemoryNetwork
from imgnet.runtime import Runtime
from tests.distributed.harness import on_workers
from tests.distributed.models import make_optimizer, parameters_of

WORKERS, NUM_STEPS, STOP = 4, 60, 23
SGD = SgdConfig(name="sgd", lr=0.05, weight_decay=0.02, momentum=0.9)
ARROWS: list[list[tuple[int, int, float]]] = [
    [(0, 1, 0.5), (0, 2, 0.25), (3, 0, 0.4)],
    [(1, 3, 0.4), (1, 0, 0.2), (2, 3, 0.5), (0, 1, 0.2)],
]
DRAW = np.random.default_rng(2)
INPUTS = DRAW.normal(size=(WORKERS, 8, 3)).astype(np.float32)
WANTED = DRAW.normal(size=(WORKERS, 8, 2)).astype(np.float32)
BYTES_OF_BLOCKS = 2 * 128
"""Of six weights and of two biases, each padded to 128 bytes."""

Matrix = NDArray[np.float64]


def rate(step: int) -> float:
    return 0.05 * (1 + np.cos(np.pi * step / NUM_STEPS))


def squares(module: nn.Module, inputs: Tensor, wanted: Tensor) -> Tensor:
    return (module(inputs) - wanted).square().sum() / 16


def make(
    runtime: Runtime, wire_dtype: WireDtype, *, overlap: bool, wire: Wire | None = None
) -> tuple[Decentralized, nn.Module]:
    """A worker, with a bucket for the weights and one for the biases."""
    torch.manual_seed(1)
    module = nn.Linear(3, 2)
    rounds = [[{"from": i, "to": j, "weight": w} for i, j, w in arrows] for arrows in ARROWS]
    schedule = Schedule.constant(build_topology("custom", WORKERS, WORKERS, rounds=rounds))
    strategy = Decentralized(
        module, squares, make_optimizer(SGD), schedule, runtime, num_accumulation_steps=1, max_grad_norm=None,
        scaler=LossScaler(runtime.device, enabled=False), bucket_mb=0, wire_dtype=wire_dtype,
        make_method=partial(PushSum, overlap=overlap), wire=wire,
    )  # fmt: skip
    return strategy, module


def step_of(strategy: Decentralized, rank: int, step: int) -> None:
    strategy.step(torch.from_numpy(INPUTS[rank]), torch.from_numpy(WANTED[rank]), rate(step), step)


def train(
    runtime: Runtime, wire: WireDtype, overlap: bool, last: int, kept: list[Any] | None
) -> tuple[Tensor, Any, float]:
    """Parameters after each step, what a checkpoint would hold, and bytes sent; goes on from what was ``kept``.

    Looks at the average now and then, which must leave no trace.
    """
    strategy, module = make(runtime, wire, overlap=overlap)
    first = 0
    if kept is not None:
        parameters, state, first = kept[runtime.rank]
        module.load_state_dict(parameters)
        strategy.restore(state, first)
    sent_before, rows = strategy.sent_bytes, []
    for step in range(first, last):
        step_of(strategy, runtime.rank, step)
        rows.append(parameters_of(module))
        if step % 10 == 3:
            look(strategy, step + 1)
    state = copy.deepcopy((module.state_dict(), strategy.state(), last))
    for averaging in strategy._method.averagings:
        averaging.settle()  # nobody leaves while a message is under way
    return torch.stack(rows), state, strategy.sent_bytes - sent_before


def look(strategy: Decentralized, num_steps: int) -> tuple[Tensor, float, float]:
    """Parameters of the average, and how far the workers are from it and from those that they send to."""
    with strategy.averaged(num_steps) as average:
        return parameters_of(average.module), average.consensus_distance, average.neighbour_distance


def train_and_look(runtime: Runtime) -> tuple[Tensor, float, float]:
    strategy, _ = make(runtime, WireDtype.fp32, overlap=True)
    for step in range(NUM_STEPS):
        step_of(strategy, runtime.rank, step)
    return look(strategy, NUM_STEPS)


def in_one_process(wire: WireDtype, overlap: bool) -> Tensor:
    """Parameters after each step, ``[steps, workers, parameters]``."""
    network, rows = MemoryNetwork(), []
    runtimes = [Runtime(rank, WORKERS, rank, WORKERS, torch.device("cpu"), 1) for rank in range(WORKERS)]
    team = [make(each, wire, overlap=overlap, wire=network.wire(each.rank)) for each in runtimes]
    for step in range(NUM_STEPS):
        for rank, (strategy, _) in enumerate(team):
            step_of(strategy, rank, step)
        rows.append(torch.stack([parameters_of(module) for _, module in team]))
    return torch.stack(rows)


def gradient(z: Matrix, rank: int) -> Matrix:
    """Of :func:`squares`, by hand; the six weights by rows, then the two biases."""
    inputs, wanted = INPUTS[rank].astype(float), WANTED[rank].astype(float)
    error = 2 / 16 * (inputs @ z[:6].reshape(2, 3).T + z[6:] - wanted)
    return np.concatenate([(error.T @ inputs).ravel(), error.sum(axis=0)])


def recursion(*, overlap: bool) -> tuple[Matrix, Matrix]:
    """x after each update, ``[steps, workers, parameters]``, and w in the end, ``[workers, 1]``.

    With momentum, and decay of the layer's weights alone.
    """
    torch.manual_seed(1)
    x = np.tile(parameters_of(nn.Linear(3, 2)).double().numpy(), (WORKERS, 1))
    w, momentum = np.ones((WORKERS, 1)), np.zeros_like(x)
    decay = 0.02 * np.array([1.0] * 6 + [0.0] * 2)
    rows = []
    for step in range(NUM_STEPS):
        at = x / w
        if step > 0:
            p = np.eye(WORKERS)
            for sender, receiver, weight in ARROWS[(step - 1) % 2]:
                p[receiver, sender] += weight
                p[sender, sender] -= weight
            x, w = p @ x, p @ w
        of_loss = np.stack([gradient((at if overlap else x / w)[rank], rank) for rank in range(WORKERS)])
        momentum = 0.9 * momentum + of_loss + decay * x / w
        x = x - rate(step) * momentum
        rows.append(x)
    return np.stack(rows), w


@pytest.mark.parametrize("overlap", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_real_workers_follow_the_recursion_and_a_kill_changes_no_bit(overlap: bool, tmp_path: Path) -> None:
    for name in ("whole", "first", "second"):
        (tmp_path / name).mkdir()
    whole = on_workers(train, WORKERS, tmp_path / "whole", WireDtype.fp32, overlap, NUM_STEPS, None)
    found = torch.stack([rows for rows, _, _ in whole], dim=1)
    np.testing.assert_allclose(found.double().numpy(), recursion(overlap=overlap)[0], rtol=0, atol=1e-6)
    assert torch.equal(found, in_one_process(WireDtype.fp32, overlap))
    first = on_workers(train, WORKERS, tmp_path / "first", WireDtype.fp32, overlap, STOP, None)
    kept = [state for _, state, _ in first]
    second = on_workers(train, WORKERS, tmp_path / "second", WireDtype.fp32, overlap, NUM_STEPS, kept)
    assert torch.equal(torch.stack([rows for rows, _, _ in second], dim=1), found[STOP:])
    for (_, state, _), (_, other, _) in zip(second, whole, strict=True):
        assert torch.equal(state[1]["averaging"]["weight"], other[1]["averaging"]["weight"])


def test_messages_in_bf16_are_those_of_one_process_and_half_as_long(tmp_path: Path) -> None:
    """Bytes of both kinds: a copy of each block, and 8 bytes of w, for each receiver."""
    sent = {}
    for wire in WireDtype:
        (tmp_path / wire.value).mkdir()
        results = on_workers(train, WORKERS, tmp_path / wire.value, wire, True, NUM_STEPS, None)
        sent[wire] = [num_bytes for _, _, num_bytes in results]
        rows = torch.stack([rows for rows, _, _ in results], dim=1)
        assert torch.equal(rows, in_one_process(wire, overlap=True))
        sums = rows[-1].double().mean(dim=0).numpy() - recursion(overlap=True)[0][-1].mean(axis=0)
        assert np.abs(sums).max() < (1e-6 if wire is WireDtype.fp32 else 0.02)
    receivers = [sum(sender == rank for arrows in ARROWS for sender, _, _ in arrows) for rank in range(WORKERS)]
    assert sent[WireDtype.fp32] == [NUM_STEPS / 2 * number * (BYTES_OF_BLOCKS + 8) for number in receivers]
    assert sent[WireDtype.bf16] == [NUM_STEPS / 2 * number * (BYTES_OF_BLOCKS / 2 + 8) for number in receivers]


def test_the_average_is_that_of_x_and_distances_are_those_of_z(tmp_path: Path) -> None:
    rows, w = recursion(overlap=True)
    assert np.abs(w - 1).max() > 0.3
    z, mean = rows[-1] / w, rows[-1].mean(axis=0)
    apart = [np.square(z[one] - z[other]).sum() for arrows in ARROWS for one, other, _ in arrows]
    wanted = np.sqrt(np.square(z - mean).sum(axis=1).mean()), np.sqrt(np.mean(apart))
    for parameters, *distances in on_workers(train_and_look, WORKERS, tmp_path):
        np.testing.assert_allclose(parameters.double().numpy(), mean, rtol=0, atol=1e-6)
        assert distances == pytest.approx(wanted, rel=1e-5)
