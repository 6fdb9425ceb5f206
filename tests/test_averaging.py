"""Every way to average against its published recursion in float64, with workers that share a process."""

import copy
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from imgnet.config import WireDtype
from imgnet.optim.schedule import learning_rate
from imgnet.parallel.averaging.consensus import ConsensusFactor
from imgnet.parallel.averaging.intervals import Intervals
from imgnet.parallel.averaging.merging import Merging
from imgnet.parallel.averaging.method import MakeMethod
from imgnet.parallel.averaging.methods.adaptive import Adaptive
from imgnet.parallel.averaging.methods.every_step import EveryStep
from imgnet.parallel.averaging.methods.local import Local
from imgnet.parallel.averaging.methods.outer import Outer
from imgnet.parallel.averaging.methods.streaming import Streaming
from imgnet.parallel.averaging.rhythm import Fragments
from imgnet.parallel.mixing import Mixer
from imgnet.parallel.topology import Schedule, build_topology, mixing_matrix
from imgnet.parallel.wire.memory import MemoryNetwork

Matrix = NDArray[np.float64]
WORKERS, NUM_STEPS, SIZES = 5, 300, (3, 2, 2)
RATES = [
    learning_rate(step, lr=0.2, min_lr=1e-3, warmup_steps=20, warmup_factor=0.01, total_steps=NUM_STEPS)
    for step in range(NUM_STEPS)
]
DRAW = np.random.default_rng(7)
SLOPES = DRAW.uniform(0.2, 1.5, (WORKERS, sum(SIZES)))
TARGETS = DRAW.normal(size=(WORKERS, sum(SIZES)))
START = DRAW.normal(size=sum(SIZES))
FACTOR = ConsensusFactor(smallest=0.1, largest=0.9, power=3.0, first_step=15, reference_lr=RATES[15])


def gradient(x: Matrix, step: int) -> Matrix:
    """Of each worker, ``[workers, parameters]``: the worker's own, another in each step."""
    return SLOPES * (x - TARGETS * (1 + 0.3 * np.sin(step + np.arange(WORKERS))[:, None]))


def schedule_of(name: str) -> Schedule:
    options = {"self_weight": 0.7} if name == "ring" else {}
    topology, exact = build_topology(name, WORKERS, WORKERS, **options), build_topology("complete", WORKERS, WORKERS)
    return Schedule.constant(topology) if name == "complete" else Schedule(Schedule.constant(topology).phases, exact)


class Team:
    """Workers that take turns, each with three blocks, plain SGD as its own update."""

    def __init__(self, name: str, make_method: MakeMethod, dtype: torch.dtype = torch.float64) -> None:
        network, schedule = MemoryNetwork(), schedule_of(name)
        start = torch.from_numpy(START).to(dtype)
        self.at_gradient = np.zeros((WORKERS, sum(SIZES)))
        """What the last gradients were taken at."""
        self.blocks = [[block.clone() for block in start.split(SIZES)] for _ in range(WORKERS)]
        self.methods = [
            make_method(Mixer(schedule, blocks, rank, WireDtype.fp32, network.wire(rank)))
            for rank, blocks in enumerate(self.blocks)
        ]

    def step(self, step: int) -> None:
        for rank, (blocks, method) in enumerate(zip(self.blocks, self.methods, strict=True)):
            method.before_step(step, RATES[step])
            self.at_gradient[rank] = torch.cat(blocks).double().numpy()
            x = np.stack([torch.cat(blocks).double().numpy()] * WORKERS)
            parts = torch.from_numpy(gradient(x, step)[rank]).to(blocks[0].dtype).split(SIZES)
            for index, (block, part) in enumerate(zip(blocks, parts, strict=True)):
                method.before_update(index)
                block.sub_(part, alpha=RATES[step])
                method.after_update(index)

    def run(self, first: int = 0, last: int = NUM_STEPS) -> Matrix:
        for step in range(first, last):
            self.step(step)
        return self.values()

    def values(self) -> Matrix:
        return np.stack([torch.cat(blocks).double().numpy() for blocks in self.blocks])

    def state(self) -> Any:
        return copy.deepcopy((self.blocks, [method.state() for method in self.methods]))

    def restore(self, state: Any, num_steps: int) -> None:
        for mine, kept, method, of_method in zip(self.blocks, state[0], self.methods, state[1], strict=True):
            for block, values in zip(mine, kept, strict=True):
                block.copy_(values)
            method.restore(copy.deepcopy(of_method), num_steps)


def matrix(name: str, number: int) -> Matrix:
    return mixing_matrix(schedule_of(name).round_at(number), WORKERS)


def streaming(every: int, number: int, delay: int, alpha: float | None, lr: float = 0.4) -> MakeMethod:
    """alpha None: merged as a difference."""
    of_slow_weights = {"lr": lr, "momentum": 0.9, "nesterov": True, "scale_by_lr": False}
    merging = Merging(alpha or 0.0, by_difference=alpha is None)
    return partial(Streaming, fragments=Fragments(number, every, delay), merging=merging, **of_slow_weights)


EXACT = np.full((WORKERS, WORKERS), 1 / WORKERS)
METHODS: dict[str, MakeMethod] = {
    "every_step": EveryStep,
    "adaptive": partial(Adaptive, factor=FACTOR),
    "local": partial(Local, intervals=Intervals(4, NUM_STEPS, 10, exact_every=3)),
    "overlap": partial(Local, intervals=Intervals(3, NUM_STEPS), overlap=True),
    "qsr": partial(Local, intervals=Intervals(2, NUM_STEPS, qsr_alpha=0.3, warmup_steps=20, peak_lr=0.2)),
    "nesterov": partial(
        Outer, intervals=Intervals(7, NUM_STEPS), lr=0.7, momentum=0.9, nesterov=True, scale_by_lr=False
    ),
    "heavy ball": partial(
        Outer, intervals=Intervals(5, NUM_STEPS), lr=0.7, momentum=0.5, nesterov=False, scale_by_lr=False
    ),
    "slowmo": partial(Outer, intervals=Intervals(6, NUM_STEPS), lr=0.8, momentum=0.6, nesterov=False, scale_by_lr=True),
    "streaming": streaming(12, 3, 2, 0.5),
    "streaming delta": streaming(6, 2, 2, None),
}
AGAINST = partial(np.testing.assert_allclose, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["ring", "complete", "random", "exp"])
def test_adaptive_consensus_is_its_recursion(name: str) -> None:
    x = np.tile(START, (WORKERS, 1))
    for step, lr in enumerate(RATES):
        g = 0.9 if step < 15 else 0.1 + 0.8 * min(1.0, lr / RATES[15]) ** 3
        mixed = matrix(name, step - 1) @ x if step else x
        x = (1 - g) * x + g * mixed - lr * gradient(x, step)
    AGAINST(Team(name, METHODS["adaptive"]).run(), x)


def test_adaptive_consensus_with_all_of_the_average_is_every_step_bit_for_bit() -> None:
    whole = partial(Adaptive, factor=ConsensusFactor(1.0, 1.0, 3.0, 0, RATES[0]))
    for dtype in (torch.float32, torch.float64):
        assert np.array_equal(Team("ring", whole, dtype).run(), Team("ring", EveryStep, dtype).run())


@pytest.mark.parametrize("share", [0.0, 0.3, 0.85])
def test_a_share_of_an_average_keeps_the_mean_and_shrinks_each_mode(share: float) -> None:
    rank, size = np.arange(WORKERS), 0.3 * np.cos(2 * np.pi * np.arange(WORKERS) / WORKERS)
    network, values = MemoryNetwork(), torch.from_numpy(np.tile(2.0 + size[:, None], (1, 3))).clone()
    schedule = Schedule.constant(build_topology("static-ring", WORKERS, WORKERS))
    factor = ConsensusFactor(share, share, 1.0, 0, 1.0)
    methods = [Adaptive(Mixer(schedule, [values[i]], i, WireDtype.fp32, network.wire(i)), factor) for i in rank]
    for step in range(4):
        for method in methods:
            method.before_step(step, 1.0)
            method.before_update(0)
            method.after_update(0)
    of_mode = 1 / 3 + 2 / 3 * np.cos(2 * np.pi / WORKERS)
    wanted = 2.0 + size * (1 - share * (1 - of_mode)) ** 3
    AGAINST(values.numpy(), np.tile(wanted[:, None], (1, 3)))


def test_the_share_follows_the_rate() -> None:
    factor = ConsensusFactor(0.2, 1.0, 2.0, 3, 0.5)
    found = [factor(step, lr) for step, lr in ((2, 0.1), (3, 0.5), (3, 0.9), (4, 0.25), (9, 0.05), (9, 0.0))]
    assert found == pytest.approx([1.0, 1.0, 1.0, 0.4, 0.208, 0.2], abs=1e-15)


@pytest.mark.parametrize("name", ["ring", "random", "exp"])
def test_local_steps_are_their_recursion(name: str) -> None:
    """H = 4 after ten steps of exact averages; each third average is exact. The last one is still under way."""
    x, number = np.tile(START, (WORKERS, 1)), 0
    for step, lr in enumerate(RATES):
        x = x - lr * gradient(x, step)
        if step < 10 or (step - 9) % 4 == 0:
            exact = step < 10 or number % 3 == 2
            x = (EXACT if exact else matrix(name, number)) @ x
            number += 1
    assert (NUM_STEPS - 10) % 4 == 2, "the last interval is cut short; its average is under way when the run ends"
    AGAINST(Team(name, METHODS["local"]).run(), x)


@pytest.mark.parametrize("name", ["ring", "complete"])
def test_averages_behind_the_computation_are_taken_in_before_the_next_update(name: str) -> None:
    """H = 3, gradients at the parameters before the average; the last one is still under way."""
    x = np.tile(START, (WORKERS, 1))
    for step, lr in enumerate(RATES):
        mixed = matrix(name, step // 3 - 1) @ x if step and step % 3 == 0 else x
        x = mixed - lr * gradient(x, step)
    AGAINST(Team(name, METHODS["overlap"]).run(), x)


def test_an_average_behind_each_step_is_every_step_bit_for_bit() -> None:
    behind = partial(Local, intervals=Intervals(1, NUM_STEPS), overlap=True)
    assert np.array_equal(Team("ring", behind, torch.float32).run(), Team("ring", EveryStep, torch.float32).run())


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9}, {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1}])
def test_an_average_after_each_step_is_allreduce(settings: dict[str, Any]) -> None:
    """Each worker's own optimizer against one for all with the mean gradient."""
    network, schedule = MemoryNetwork(), schedule_of("complete")
    rows = [torch.from_numpy(START.copy()) for _ in range(WORKERS)]
    one = torch.from_numpy(START.copy())
    methods = [
        Local(Mixer(schedule, [row], rank, WireDtype.fp32, network.wire(rank)), Intervals(1, NUM_STEPS))
        for rank, row in enumerate(rows)
    ]
    optimizers = [torch.optim.SGD([row], lr=0.1, **settings) for row in rows]
    together = torch.optim.SGD([one], lr=0.1, **settings)
    for step, lr in enumerate(RATES):
        for rank, (row, method, optimizer) in enumerate(zip(rows, methods, optimizers, strict=True)):
            method.before_step(step, lr)
            AGAINST(row.numpy(), one.numpy())
            row.grad = torch.from_numpy(gradient(np.tile(row.numpy(), (WORKERS, 1)), step)[rank])
            take(optimizer, lr)
            method.after_update(0)
        one.grad = torch.from_numpy(gradient(np.tile(one.numpy(), (WORKERS, 1)), step).mean(axis=0))
        take(together, lr)


def take(optimizer: torch.optim.Optimizer, lr: float) -> None:
    optimizer.param_groups[0]["lr"] = lr
    optimizer.step()


def test_the_quadratic_rule_is_a_table_computed_by_hand() -> None:
    """lr 0.1 for (0.2/0.1)^2 = 4, 0.05 for 16; never less than 3, never more than what is left."""
    rule = Intervals(3, num_steps=40, first_step=2, qsr_alpha=0.2)
    cases = [(0, 0.1), (2, 0.2), (2, 0.1), (6, 0.05), (22, 0.05), (22, 0.01), (38, 0.3), (39, 0.3), (5, 0.0)]
    assert [rule.length(step, lr) for step, lr in cases] == [1, 3, 4, 16, 16, 18, 2, 1, 35]
    assert [Intervals(3, 40).length(step, 0.1) for step in (0, 37, 38)] == [3, 3, 2]


def test_qsr_under_warm_up_and_cosine_averages_where_its_table_says() -> None:
    """In the warm-up (0.3 / 0.2)^2 = 2.25, so 2; at the end, where lr is small, all that is left."""
    assert RATES[20] == 0.2
    assert np.diff([*by_hand()]).max() > 10
    team, seen = Team("complete", METHODS["qsr"]), []
    for step in range(NUM_STEPS):
        team.step(step)
        if all(averaging._under_way for averaging in team.methods[0].averagings):
            seen.append(step)
    assert seen == [*range(1, 20, 2), *by_hand()]


def by_hand() -> Iterator[int]:
    """Last step of each interval after the warm-up."""
    step = 20
    while step < NUM_STEPS:
        step = min(step + max(2, math.floor((0.3 / RATES[step]) ** 2)), NUM_STEPS)
        yield step - 1


Outward = Callable[[Matrix, Matrix, float], tuple[Matrix, Matrix]]


def outer_run(name: str, every: int, outward: Outward) -> Matrix:
    """theta of all workers in the last step; ``outward(way, moment, lr) -> (step of phi, moment)``."""
    slow = np.tile(START, (WORKERS, 1))
    x, moment, number = slow.copy(), np.zeros_like(slow), 0
    for step, lr in enumerate(RATES):
        x = x - lr * gradient(x, step)
        if (step + 1) % every == 0 and step + 1 < NUM_STEPS:
            way, moment = outward(matrix(name, number) @ x - slow, moment, lr)
            slow = slow + way
            x, number = slow.copy(), number + 1
    return x


def nesterov(way: Matrix, moment: Matrix, lr: float) -> tuple[Matrix, Matrix]:
    moment = 0.9 * moment + way
    return 0.7 * (way + 0.9 * moment), moment


def heavy_ball(way: Matrix, moment: Matrix, lr: float) -> tuple[Matrix, Matrix]:
    moment = 0.5 * moment + way
    return 0.7 * moment, moment


def slowmo(way: Matrix, moment: Matrix, lr: float) -> tuple[Matrix, Matrix]:
    moment = 0.6 * moment + way / lr
    return 0.8 * lr * moment, moment


@pytest.mark.parametrize("name", ["complete", "random", "ring"])
@pytest.mark.parametrize(
    ("method", "every", "outward"),
    [("nesterov", 7, nesterov), ("heavy ball", 5, heavy_ball), ("slowmo", 6, slowmo)],
)
def test_an_outer_optimizer_is_its_recursion(name: str, method: str, every: int, outward: Outward) -> None:
    """An average under way at the end is not taken in yet."""
    AGAINST(Team(name, METHODS[method]).run(), outer_run(name, every, outward))


def test_diloco_is_torchs_sgd_on_the_way_back() -> None:
    """``phi - mean(theta)`` is the gradient that torch's SGD gets."""
    slow = torch.from_numpy(START.copy())
    outer = torch.optim.SGD([slow], lr=0.7, momentum=0.9, nesterov=True)
    team = Team("complete", METHODS["nesterov"])
    for step in range(NUM_STEPS):
        at_end_of_last_step = torch.from_numpy(team.values().mean(axis=0))
        team.step(step)
        if step > 0 and step % 7 == 0:
            slow.grad = slow - at_end_of_last_step
            outer.step()
            AGAINST(team.at_gradient, np.tile(slow.numpy(), (WORKERS, 1)))


def test_without_momentum_at_rate_one_an_outer_optimizer_is_local_steps() -> None:
    plain = partial(Outer, intervals=Intervals(4, NUM_STEPS), lr=1.0, momentum=0.0, nesterov=True, scale_by_lr=False)
    AGAINST(Team("ring", plain).run(), Team("ring", partial(Local, intervals=Intervals(4, NUM_STEPS))).run())


def streaming_run(
    name: str, every: int, number: int, delay: int, alpha: float | None, first: int = 0, moved: float = 0.4
) -> Matrix:
    """theta in the last step, as the paper has it: averages of ``slow - theta``, each due tau steps after it is sent.

    Fragment p is due after (p + 1) H / P steps and every H more. ``first``: the step that a run without a past starts
    with, for which nothing can be due that was not sent.
    """
    slow = np.tile(START, (WORKERS, 1))
    x, moment = slow.copy(), np.zeros_like(slow)
    of_fragment = np.repeat(np.arange(len(SIZES)) % number, SIZES)
    under_way: dict[int, tuple[int, Matrix]] = {}
    for step in range(first, NUM_STEPS):
        for p in [p for p, (due, _) in under_way.items() if due == step]:
            due, mine = under_way[p][0], of_fragment == p
            sent = under_way.pop(p)[1]
            outer_gradient = slow[:, mine] - matrix(name, due // every - (due % every == 0)) @ sent
            moment[:, mine] = 0.9 * moment[:, mine] + outer_gradient
            slow[:, mine] -= moved * (outer_gradient + 0.9 * moment[:, mine])
            way_meanwhile = x[:, mine] - sent
            kept = slow[:, mine] + way_meanwhile if alpha is None else alpha * x[:, mine] + (1 - alpha) * slow[:, mine]
            x[:, mine] = kept
        x = x - RATES[step] * gradient(x, step)
        for p in range(number):
            due = step + 1 + delay
            if due % every == (p + 1) * every // number % every:
                under_way[p] = due, x[:, of_fragment == p].copy()
    return x


@pytest.mark.parametrize(
    ("name", "every", "number", "delay", "alpha"),
    [
        ("complete", 6, 3, 1, 0.5),
        ("complete", 12, 2, 5, 0.3),
        ("complete", 2, 2, 0, 0.0),
        ("complete", 9, 3, 2, None),
        ("random", 9, 3, 2, 0.7),
        ("ring", 8, 1, 3, None),
        ("exp", 4, 2, 1, 1.0),
    ],
)
def test_streaming_is_its_recursion(name: str, every: int, number: int, delay: int, alpha: float | None) -> None:
    """Up to 300 averages. At the end one may be under way, which is not taken in."""
    found = Team(name, streaming(every, number, delay, alpha)).run()
    AGAINST(found, streaming_run(name, every, number, delay, alpha))


def test_streaming_that_starts_while_a_fragment_would_be_under_way_waits_for_the_next() -> None:
    """As a run does that goes on with another number of workers."""
    found = Team("complete", METHODS["streaming"]).run(first=11)
    AGAINST(found, streaming_run("complete", 12, 3, 2, 0.5, first=11))


@pytest.mark.parametrize("name", ["complete", "random"])
@pytest.mark.parametrize("alpha", [0.0, None])
def test_one_fragment_without_delay_is_an_outer_optimizer_bit_for_bit(name: str, alpha: float | None) -> None:
    for dtype in (torch.float32, torch.float64):
        whole = Team(name, streaming(7, 1, 0, alpha, lr=0.7), dtype).run()
        assert np.array_equal(whole, Team(name, METHODS["nesterov"], dtype).run())


def test_fragments_take_turns() -> None:
    """H = 12 in three fragments, two steps under way: due before steps 4, 8, 12, ..., sent after 2, 6, 10, ..."""
    fragments = Fragments(3, 12, 2)
    assert [fragments.starting(made) for made in range(1, 11)] == [None, 0, None, None, None, 1, None, None, None, 2]
    assert [fragments.due(average) for average in range(4)] == [4, 8, 12, 16]
    assert [[*fragments.blocks(average, 7)] for average in range(4)] == [[0, 3, 6], [1, 4], [2, 5], [0, 3, 6]]
    assert [fragments.round(average) for average in range(7)] == [0, 0, 0, 1, 1, 1, 2]


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stop", [0, 1, 9, 35, 37, 60, 100])
def test_a_run_that_resumes_anywhere_gives_the_same_bits(method: str, stop: int) -> None:
    wanted = Team("random", METHODS[method], torch.float32).run(0, 140)
    interrupted = Team("random", METHODS[method], torch.float32)
    interrupted.run(0, stop)
    state = interrupted.state()
    resumed = Team("random", METHODS[method], torch.float32)
    resumed.restore(state, stop)
    assert np.array_equal(resumed.run(stop, 140), wanted)
