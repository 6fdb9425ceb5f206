"""Push-sum against the recursion of its paper, in float64 and plain numpy, with workers that share a process."""

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from imgnet.config import WireDtype
from imgnet.parallel.averaging.method import MakeMethod
from imgnet.parallel.averaging.methods.every_step import EveryStep
from imgnet.parallel.averaging.methods.push_sum import PushSum
from imgnet.parallel.mixing import Mixer
from imgnet.parallel.topology import Schedule, build_topology
from imgnet.parallel.wire.memory import MemoryNetwork

Matrix = NDArray[np.float64]
WORKERS, SIZES, DECAY = 5, (3, 2), 0.01
NUM_STEPS = 2000
DRAW = np.random.default_rng(5)
SLOPES = DRAW.uniform(0.2, 1.5, (WORKERS, sum(SIZES)))
TARGETS = DRAW.normal(size=(WORKERS, sum(SIZES)))
START = DRAW.normal(size=sum(SIZES))
AGAINST = partial(np.testing.assert_allclose, rtol=0, atol=1e-12)

ARROWS: list[list[tuple[int, int, float]]] = [
    [(0, 1, 0.5), (0, 2, 0.25), (3, 4, 0.6), (4, 0, 0.3)],
    [(1, 3, 0.5), (1, 0, 0.25), (2, 0, 0.7), (3, 2, 0.25)],
    [],
    [(2, 1, 0.2), (4, 1, 0.2), (3, 1, 0.1), (1, 4, 0.35)],
]
"""Column-stochastic rounds, with workers that only give, only get, or rest, as ``topology.rounds`` has them."""


def rate(step: int) -> float:
    """Up, down and up again, another one in each step."""
    return 0.05 * (1.2 + np.sin(step / 50))


def gradient(z: Matrix, step: int, rank: int | slice = slice(None)) -> Matrix:
    """Of one worker, or of all, ``[workers, parameters]``: of its own problem, another one in each step."""
    return SLOPES[rank] * (z - TARGETS[rank] * (1 + 0.3 * np.sin(step + np.arange(WORKERS))[:, None][rank]))


def shifted(distance: int) -> list[tuple[int, int, float]]:
    return [(rank, (rank + distance) % WORKERS, 0.5) for rank in range(WORKERS)]


ROUNDS = {
    "directed-ring": [shifted(1)],
    "directed-exp": [shifted(1), shifted(2), shifted(4)],
    "custom": ARROWS,
}


def matrix(arrows: Sequence[tuple[int, int, float]]) -> Matrix:
    """P: column i is where worker i's own goes."""
    found = np.eye(WORKERS)
    for sender, receiver, weight in arrows:
        found[receiver, sender] += weight
        found[sender, sender] -= weight
    return found


def schedule_of(name: str) -> Schedule:
    written = [[{"from": i, "to": j, "weight": w} for i, j, w in arrows] for arrows in ARROWS]
    options = {"rounds": written} if name == "custom" else {}
    return Schedule.constant(build_topology(name, WORKERS, WORKERS, **options))


class Team:
    """Workers that take turns, each with two blocks, and SGD with decay as its own update."""

    def __init__(
        self, name: str, make_method: MakeMethod, dtype: torch.dtype = torch.float64, wire: WireDtype = WireDtype.fp32
    ) -> None:
        network, schedule = MemoryNetwork(), schedule_of(name)
        start = torch.from_numpy(START).to(dtype)
        self.blocks = [[block.clone() for block in start.split(SIZES)] for _ in range(WORKERS)]
        self.methods = [
            make_method(Mixer(schedule, blocks, rank, wire, network.wire(rank)))
            for rank, blocks in enumerate(self.blocks)
        ]

    def step(self, step: int, lr: float) -> None:
        for rank, (blocks, method) in enumerate(zip(self.blocks, self.methods, strict=True)):
            method.before_step(step, lr)
            at = torch.cat(blocks).double().numpy()
            parts = torch.from_numpy(gradient(at, step, rank)).to(blocks[0].dtype).split(SIZES)
            for index, (block, part) in enumerate(zip(blocks, parts, strict=True)):
                method.before_update(index)
                block.sub_(part + DECAY * block, alpha=lr)
                method.after_update(index)

    def run(self, first: int = 0, last: int = NUM_STEPS) -> Matrix:
        for step in range(first, last):
            self.step(step, rate(step))
        return self.values()

    def values(self) -> Matrix:
        return np.stack([torch.cat(blocks).double().numpy() for blocks in self.blocks])

    def weights(self) -> Matrix:
        return np.array([float(method.state()["weight"]) for method in self.methods])

    def state(self) -> Any:
        return copy.deepcopy((self.blocks, [method.state() for method in self.methods]))

    def restore(self, state: Any, num_steps: int) -> None:
        for mine, kept, method, of_method in zip(self.blocks, state[0], self.methods, state[1], strict=True):
            for block, values in zip(mine, kept, strict=True):
                block.copy_(values)
            method.restore(copy.deepcopy(of_method), num_steps)


WAITING = partial(PushSum, overlap=False)


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("name", ROUNDS)
def test_it_is_the_published_recursion(name: str) -> None:
    """Without overlap: x' = x - lr u(z), x = P x', w = P w, z = x / w; in the end the last round is under way."""
    team, rounds = Team(name, WAITING), ROUNDS[name]
    x, w = np.tile(START, (WORKERS, 1)), np.ones(WORKERS)
    for step in range(NUM_STEPS):
        team.step(step, rate(step))
        z = x / w[:, None]
        after = x - rate(step) * (gradient(z, step) + DECAY * z)
        if step % 100 < 5 or step == NUM_STEPS - 1:
            AGAINST(team.values(), after)
            AGAINST(team.weights(), w)
        p = matrix(rounds[step % len(rounds)])
        x, w = p @ after, p @ w
    assert (np.abs(w - 1).max() > 0.3) == (name == "custom")


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("name", ROUNDS)
def test_behind_the_computation_gradients_are_taken_one_round_earlier(name: str) -> None:
    """The gradient at z before a round, the decay after it: as every way to average behind the next step."""
    rounds = ROUNDS[name]
    x, w = np.tile(START, (WORKERS, 1)), np.ones(WORKERS)
    for step in range(NUM_STEPS):
        of_loss = gradient(x / w[:, None], step)
        if step > 0:
            p = matrix(rounds[(step - 1) % len(rounds)])
            x, w = p @ x, p @ w
        x = x - rate(step) * (of_loss + DECAY * x / w[:, None])
    team = Team(name, PushSum)
    AGAINST(team.run(), x)
    AGAINST(team.weights(), w)


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("method", [PushSum, WAITING])
def test_the_sums_of_parameters_and_of_weights_are_kept(method: MakeMethod) -> None:
    """At rate 0, where nothing else changes them, in thousands of rounds."""
    team = Team("custom", method)
    for step in range(NUM_STEPS):
        team.step(step, 0.0)
    AGAINST(team.values().sum(axis=0), WORKERS * START)
    assert abs(team.weights().sum() - WORKERS) < 1e-12
    z = team.values() / team.weights()[:, None]
    AGAINST(z, np.tile(START, (WORKERS, 1)))
    assert np.abs(team.values() - START).max() > 0.3, "the parameters themselves are in the proportions of the weights"


@pytest.mark.parametrize("name", ["directed-ring", "directed-exp"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_where_weights_add_up_to_1_it_is_plain_averaging_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    team = Team(name, PushSum, dtype)
    assert np.array_equal(team.run(last=300), Team(name, EveryStep, dtype).run(last=300))
    assert team.weights().tolist() == [1.0] * WORKERS


def test_workers_come_to_the_minimum_of_all_which_plain_averaging_misses() -> None:
    """What the weights are for: each worker counts once, whatever it gives and gets."""
    wanted = (SLOPES * TARGETS).sum(axis=0) / (SLOPES.sum(axis=0) + WORKERS * DECAY)
    missed = {}
    for method in (PushSum, EveryStep):
        team = Team("custom", method)
        for step in range(1200):
            team.step(step, 0.01)
        missed[method] = np.abs(team.values().mean(axis=0) - wanted).max()
    assert missed[PushSum] < 0.03 < 0.1 < missed[EveryStep]


@pytest.mark.parametrize("wire", WireDtype)
def test_messages_in_fp32_and_bf16_keep_the_sums(wire: WireDtype) -> None:
    """fp32 to 1e-6 of the exact recursion, bf16 to what it can tell; w is exact in both."""
    exact, rounded = Team("custom", PushSum), Team("custom", PushSum, torch.float32, wire)
    difference = np.abs(rounded.run(last=400) - exact.run(last=400))
    assert difference.max() < (2e-6 if wire is WireDtype.fp32 else 0.02)
    assert difference.mean(axis=0).max() > 0
    of_sums = np.abs(rounded.values().sum(axis=0) - exact.values().sum(axis=0)).max()
    assert abs(rounded.weights().sum() - WORKERS) < 1e-12
    assert of_sums < (5e-6 if wire is WireDtype.fp32 else 0.02)


@pytest.mark.parametrize("method", [PushSum, WAITING])
@pytest.mark.parametrize("stop", [0, 1, 2, 9, 35, 100])
def test_a_run_that_resumes_anywhere_gives_the_same_bits(method: MakeMethod, stop: int) -> None:
    whole = Team("custom", method, torch.float32)
    wanted = whole.run(last=140)
    interrupted = Team("custom", method, torch.float32)
    interrupted.run(last=stop)
    resumed = Team("custom", method, torch.float32)
    resumed.restore(interrupted.state(), stop)
    assert np.array_equal(resumed.run(stop, 140), wanted)
    assert np.array_equal(resumed.weights(), whole.weights())
