"""Rounds carried out by real workers are the matrices that they are said to be."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from imgnet.config import SgdConfig, WireDtype
from imgnet.optim.loss_scale import LossScaler
from imgnet.parallel.engines.decentralized import Decentralized
from imgnet.parallel.topology import Schedule, build_topology, mixing_matrix
from imgnet.runtime import Runtime
from tests.distributed.harness import on_workers
from tests.distributed.models import make_optimizer, parameters_of
from tests.in_process import Workers, schedules, start_of

FROZEN = SgdConfig(name="sgd", lr=0.0, weight_decay=0.0)
LAYOUTS = [(2, 2), (3, 3), (4, 2)]
LARGE = [pytest.param(*layout, marks=pytest.mark.slow) for layout in ((6, 2), (8, 4))]
MAX_STEPS = 7
UNIT = 2.0**-8  # of bf16: the largest error of a rounded value, relative to it


def num_steps(schedule: Schedule) -> int:
    return min(MAX_STEPS, 2 + max(phase.first_step + len(phase.topology.rounds) for phase in schedule.phases))


def mean_objective(module: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return module(images).mean()


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 1))


def frozen_strategy(runtime: Runtime, schedule: Schedule, wire: WireDtype) -> tuple[Decentralized, nn.Module]:
    """A strategy that only mixes, from parameters of each worker's own; every parameter is a bucket."""
    module = model()
    strategy = Decentralized(
        module, mean_objective, make_optimizer(FROZEN), schedule, runtime, num_accumulation_steps=1,
        max_grad_norm=None, scaler=LossScaler(runtime.device, enabled=False), bucket_mb=0, wire_dtype=wire,
    )  # fmt: skip
    with torch.no_grad():
        flat = start_of(runtime.rank, parameters_of(module).numel())
        for parameter, values in zip(
            module.parameters(), flat.split([p.numel() for p in module.parameters()]), strict=True
        ):
            parameter.copy_(values.view_as(parameter))
    return strategy, module


def mix(runtime: Runtime, per_node: int, wire: WireDtype, steps: int | None = None) -> list[torch.Tensor]:
    """For each schedule: this worker's parameters after each step, ``[steps, number of parameters]``."""
    results = []
    for schedule in schedules(runtime.world_size, per_node):
        strategy, module = frozen_strategy(runtime, schedule, wire)
        rows = []
        for step in range(steps or num_steps(schedule)):
            strategy.step(torch.ones(1, 7), torch.zeros(1), lr=0.0, step=step)
            rows.append(parameters_of(module))
        for averaging in strategy._mixer.averagings:  # nothing may be under way when the next schedule begins
            averaging.settle()
        results.append(torch.stack(rows))
    return results


def by_schedule(results: list[list[torch.Tensor]]) -> list[np.ndarray]:
    """``[steps, world size, parameters]`` for each schedule, float64."""
    return [torch.stack(of_workers, dim=1).double().numpy() for of_workers in zip(*results, strict=True)]


@pytest.mark.parametrize(("world_size", "per_node"), [*LAYOUTS, *LARGE])
def test_every_round_is_its_matrix(world_size: int, per_node: int, tmp_path: Path) -> None:
    found = by_schedule(on_workers(mix, world_size, tmp_path, per_node, WireDtype.fp32))
    for schedule, steps in zip(schedules(world_size, per_node), found, strict=True):
        wanted = torch.stack([start_of(rank, steps.shape[2]) for rank in range(world_size)]).double().numpy()
        for step, values in enumerate(steps):
            if step > 0:  # the first step has nothing to take in
                wanted = mixing_matrix(schedule.round_at(step - 1), world_size) @ wanted
            np.testing.assert_allclose(values, wanted, atol=1e-6, err_msg=f"{schedule} at step {step}")
        np.testing.assert_allclose(in_one_process(schedule, WireDtype.fp32, steps), steps, atol=1e-6)


def in_one_process(schedule: Schedule, wire: WireDtype, steps: np.ndarray) -> np.ndarray:
    """The same rounds from the same start, ``[steps, world size, parameters]``, with all workers in this process."""
    buckets = torch.from_numpy(steps[0]).float().split([parameter.numel() for parameter in model().parameters()], dim=1)
    of_buckets = []
    for bucket in buckets:
        padded = nn.functional.pad(bucket, (0, -bucket.shape[1] % 32))  # as imgnet.parallel.flat does
        workers = Workers(schedule, wire, padded)
        rows = [bucket]
        for step in range(len(steps) - 1):
            workers.mix(step)
            rows.append(padded[:, : bucket.shape[1]].clone())
        of_buckets.append(torch.stack(rows))
    return torch.cat(of_buckets, dim=2).double().numpy()


def bf16_bound(matrix: np.ndarray, values: np.ndarray, in_groups: bool) -> np.ndarray:
    """What ``imgnet.parallel.transfers`` promises, for each worker and value."""
    others = matrix > 0
    largest = np.stack([np.abs(values[row]).max(axis=0) for row in others])
    own = np.diag(matrix)[:, None]
    taken = (1.0 - own + matrix.sum(axis=1, keepdims=True) - own) / 2  # and given, where arrows make a difference
    size = others.sum(axis=1, keepdims=True)
    of_values = np.where(
        in_groups & (size > 2), 4 * UNIT * taken * size / np.maximum(size - 1, 1), 2 * UNIT * taken
    )  # fmt: skip
    of_weights = 2.0**-16 * (size - 1 + others.sum(axis=0)[:, None] - 1)
    return (of_values + of_weights) * largest + 1e-6


@pytest.mark.parametrize(("world_size", "per_node"), [*LAYOUTS[1:], LARGE[0]])
def test_bf16_on_the_wire_keeps_the_mean_and_its_bound(world_size: int, per_node: int, tmp_path: Path) -> None:
    found = by_schedule(on_workers(mix, world_size, tmp_path, per_node, WireDtype.bf16, 12))
    worst = 0.0
    for schedule, steps in zip(schedules(world_size, per_node), found, strict=True):
        for step in range(1, len(steps)):
            round_ = schedule.round_at(step - 1)
            matrix = mixing_matrix(round_, world_size)
            error = np.abs(steps[step] - matrix @ steps[step - 1])
            bound = bf16_bound(matrix, steps[step - 1], in_groups=hasattr(round_, "groups"))
            assert np.all(error <= bound), (schedule, step)
            worst = max(worst, float(error.max()))
        np.testing.assert_array_equal(in_one_process(schedule, WireDtype.bf16, steps), steps)  # message for message
        drift = np.abs(steps.mean(axis=1) - steps[0].mean(axis=0)).max()
        assert drift <= 2**-22, f"{schedule}: the mean of all workers moved by {drift}"
    assert worst > 1e-4, "messages must really be rounded for the test to say anything"


def agree(runtime: Runtime, wire: WireDtype) -> list[torch.Tensor]:
    """This worker's parameters after so many rounds that fp32 has brought all workers together."""
    results = []
    for name in AGREEING:
        schedule = Schedule.constant(build_topology(name, runtime.world_size, 2))
        strategy, module = frozen_strategy(runtime, schedule, wire)
        for step in range(60):
            strategy.step(torch.ones(1, 7), torch.zeros(1), lr=0.0, step=step)
        results.append(parameters_of(module))
    return results


AGREEING = ("complete", "ring", "static-ring", "exp", "star")


@pytest.mark.parametrize(("wire", "limit"), [(WireDtype.fp32, 1e-5), (WireDtype.bf16, UNIT)])
def test_how_close_workers_come(wire: WireDtype, limit: float, tmp_path: Path) -> None:
    found = on_workers(agree, 4, tmp_path, wire)
    for place, name in enumerate(AGREEING):
        values = torch.stack([of_worker[place] for of_worker in found]).double()
        mean = values.mean(0)
        distance = ((values - mean).square().mean() / mean.square().mean()).sqrt().item()
        assert distance <= limit, name


def count_messages(runtime: Runtime, name: str, options: dict) -> tuple[int, int]:
    """Communicators and messages of two steps."""
    made, sent = [], []
    new_group, batch = torch.distributed.new_group, torch.distributed.batch_isend_irecv
    torch.distributed.new_group = lambda *given, **named: made.append(given) or new_group(*given, **named)
    torch.distributed.batch_isend_irecv = lambda messages: sent.append(messages) or batch(messages)
    schedule = Schedule.constant(build_topology(name, runtime.world_size, runtime.world_size, **options))
    strategy, _ = frozen_strategy(runtime, schedule, WireDtype.fp32)
    for step in range(2):
        strategy.step(torch.ones(1, 7), torch.zeros(1), lr=0.0, step=step)
    torch.distributed.new_group, torch.distributed.batch_isend_irecv = new_group, batch
    return len(made), len(sent)


RESTS = [[], [], [{"ranks": [0, 1, 2, 3]}]]


@pytest.mark.parametrize(
    ("name", "options", "wanted"),
    [("random", {}, (0, 8)), ("custom", {"rounds": RESTS}, (1, 0)), ("complete", {}, (1, 0))],
)
def test_no_message_without_need(name: str, options: dict, wanted: tuple[int, int], tmp_path: Path) -> None:
    """Pairs need no communicator, an idle round no message; four parameters make four buckets."""
    assert on_workers(count_messages, 4, tmp_path, name, options) == [wanted] * 4


def measure_distances(runtime: Runtime, per_node: int, num_steps: int) -> list[tuple[torch.Tensor, float, float]]:
    """For each schedule: this worker's parameters after some steps, and both distances."""
    found = []
    for schedule in schedules(runtime.world_size, per_node):
        strategy, module = frozen_strategy(runtime, schedule, WireDtype.bf16)
        for step in range(num_steps):
            strategy.step(torch.ones(1, 7), torch.zeros(1), lr=0.0, step=step)
        with strategy.averaged(num_steps) as average:
            pass
        found.append((parameters_of(module), average.consensus_distance, average.neighbour_distance))
    return found


@pytest.mark.parametrize("num_steps", [0, 2])
def test_distances_are_those_of_the_parameters(num_steps: int, tmp_path: Path) -> None:
    results = on_workers(measure_distances, 4, tmp_path, 2, num_steps)
    for schedule, of_workers in zip(schedules(4, 2), zip(*results, strict=True), strict=True):
        x = torch.stack([parameters for parameters, _, _ in of_workers]).double().numpy()
        from_average = np.sqrt(np.mean(np.square(x - x.mean(axis=0)).sum(axis=1)))
        rounds = schedule.next_rounds(max(num_steps - 1, 0), limit=8)
        pairs = [(i, j) for round_ in rounds for i, j in np.argwhere(mixing_matrix(round_, 4)) if i != j]
        between = np.sqrt(np.mean([np.square(x[i] - x[j]).sum() for i, j in pairs]))
        for _, distance, neighbour_distance in of_workers:
            assert distance == pytest.approx(from_average, rel=1e-5, abs=1e-6)
            assert neighbour_distance == pytest.approx(between, rel=1e-5, abs=1e-6)
