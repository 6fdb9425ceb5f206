"""The steps of decentralized workers against the recursion that they are meant to follow, in float64."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from imgnet.config import SgdConfig, WireDtype
from imgnet.optim.loss_scale import INITIAL_SCALE, LossScaler
from imgnet.parallel.engines.allreduce import AllReduce
from imgnet.parallel.engines.decentralized import Decentralized
from imgnet.parallel.engines.strategy import Strategy
from imgnet.parallel.topology import Phase, Schedule, build_topology
from imgnet.runtime import Runtime
from tests.distributed.harness import on_workers
from tests.distributed.models import make_loader, make_model, make_optimizer, objective, parameters_of
from tests.distributed.recursion import QUASI_GLOBAL_UPDATE, SGD_UPDATE, Update, simulate

SGD = SgdConfig(name="sgd", lr=0.1, weight_decay=0.0, momentum=0.9)
QUASI_GLOBAL = SgdConfig(name="sgd", lr=0.1, weight_decay=0.0, momentum=0.9, quasi_global=True)
NUM_STEPS = 8
OVERFLOW_STEPS = (2, 5)


def topology_schedule(name: str, world_size: int) -> Schedule:
    if name == "switching":
        phases = [Phase(0, build_topology("complete", world_size, 2)), Phase(3, build_topology("ring", world_size, 2))]
        return Schedule(tuple(phases))
    return Schedule.constant(build_topology(name, world_size, 2 if world_size % 2 == 0 else world_size))


def overflowing(module: nn.Module, images: Tensor, targets: Tensor, *, runtime: Runtime, step: list[int]) -> Tensor:
    """The loss; infinite on rank 1 alone in some steps, as where fp16 overflows."""
    loss = objective(module, images, targets)
    step[0] += 1
    return loss * float("inf") if runtime.rank == 1 and step[0] - 1 in OVERFLOW_STEPS else loss


def make(runtime: Runtime, schedule: Schedule | None, config: SgdConfig, **changes: Any) -> tuple[Strategy, nn.Module]:
    """A strategy with a bucket for each parameter; AllReduce without a schedule."""
    module = make_model(batch_norm=changes.pop("batch_norm", False))
    wire = changes.pop("wire_dtype", WireDtype.fp32)
    settings = {
        "num_accumulation_steps": 1, "max_grad_norm": None, "scaler": LossScaler(runtime.device, enabled=False),
    } | changes  # fmt: skip
    loss = settings.pop("objective", objective)
    factory = make_optimizer(config)
    if schedule is None:
        return AllReduce(module, loss, factory, runtime, bucket_mb=1, **settings), module
    return Decentralized(module, loss, factory, schedule, runtime, bucket_mb=0, wire_dtype=wire, **settings), module


def run(runtime: Runtime, strategy: Strategy, module: nn.Module) -> Tensor:
    """This worker's parameters after each step, ``[steps, parameters]``."""
    rows = []
    for step, batch in zip(range(NUM_STEPS), make_loader(runtime).batches(epoch=0), strict=False):
        strategy.step(batch.images, batch.targets, 0.1, step)
        rows.append(parameters_of(module))
    return torch.stack(rows)


def train(runtime: Runtime, name: str, config: SgdConfig, max_grad_norm: float | None) -> Tensor:
    return run(
        runtime, *make(runtime, topology_schedule(name, runtime.world_size), config, max_grad_norm=max_grad_norm)
    )


def assert_equal(
    found: list[Tensor], wanted: list[np.ndarray], of_mean: float = 1e-6, of_workers: float = 1e-5
) -> None:
    """Relative to the length of the way that training went."""
    workers = torch.stack(found, dim=1).double().numpy()
    reference = np.stack(wanted)
    way = np.linalg.norm(reference[-1].mean(axis=0) - reference[0].mean(axis=0))
    assert way > 0.01, "something must be trained for the test to say anything"
    means = np.linalg.norm(workers.mean(axis=1) - reference.mean(axis=1), axis=-1)
    assert means.max() <= of_mean * way + 1e-6
    assert np.linalg.norm(workers - reference, axis=-1).max() <= of_workers * way + 1e-6


@pytest.mark.parametrize(
    ("name", "config", "update", "max_grad_norm"),
    [
        ("complete", SGD, SGD_UPDATE, None),
        ("switching", SGD, SGD_UPDATE, None),
        ("star", SGD, SGD_UPDATE, 0.05),
        ("ring", QUASI_GLOBAL, QUASI_GLOBAL_UPDATE, None),
        ("torus", QUASI_GLOBAL, QUASI_GLOBAL_UPDATE, 0.5),
    ],
)
def test_training_follows_the_recursion(
    name: str, config: SgdConfig, update: Update, max_grad_norm: float | None, tmp_path: Path
) -> None:
    found = on_workers(train, 4, tmp_path, name, config, max_grad_norm)
    schedule = topology_schedule(name, 4)
    assert_equal(found, simulate(schedule, update, NUM_STEPS, max_grad_norm=max_grad_norm))


def train_with_overflow(runtime: Runtime, name: str | None, config: SgdConfig) -> tuple[Tensor, list[float], Tensor]:
    """Parameters after each step, the loss scale after each step, and the flag that all workers share."""
    scaler = LossScaler(runtime.device, enabled=True)
    loss = partial(overflowing, runtime=runtime, step=[0])
    schedule = topology_schedule(name, runtime.world_size) if name else None
    strategy, module = make(runtime, schedule, config, scaler=scaler, objective=loss)
    scales, flags, rows = [], [], []
    for step, batch in zip(range(NUM_STEPS), make_loader(runtime).batches(epoch=0), strict=False):
        strategy.step(batch.images, batch.targets, 0.1, step)
        rows.append(parameters_of(module))
        scales.append(float(scaler.scale))
        flags.append(scaler.found_inf.clone())
    return torch.stack(rows), scales, torch.stack(flags)


@pytest.mark.parametrize(
    ("name", "config", "update"), [("ring", SGD, SGD_UPDATE), ("ring", QUASI_GLOBAL, QUASI_GLOBAL_UPDATE)]
)
def test_an_overflow_in_one_worker_makes_all_skip(name: str, config: SgdConfig, update: Update, tmp_path: Path) -> None:
    results = on_workers(train_with_overflow, 4, tmp_path, name, config)
    halvings = [sum(step <= now for step in OVERFLOW_STEPS) for now in range(NUM_STEPS)]
    for rows, scales, flags in results:
        assert scales == [INITIAL_SCALE / 2**number for number in halvings]
        assert flags.tolist() == [float(step in OVERFLOW_STEPS) for step in range(NUM_STEPS)]
        assert bool(rows.isfinite().all())
    wanted = simulate(topology_schedule(name, 4), update, NUM_STEPS, skipped=OVERFLOW_STEPS)
    assert_equal([rows for rows, _, _ in results], wanted)


def test_an_overflow_in_one_worker_leaves_allreduce_workers_equal(tmp_path: Path) -> None:
    results = on_workers(train_with_overflow, 2, tmp_path, None, SGD)
    rows, scales, flags = results[0]
    assert scales[-1] == INITIAL_SCALE / 4
    assert flags.tolist() == [float(step in OVERFLOW_STEPS) for step in range(NUM_STEPS)]
    assert torch.equal(rows, results[1][0])
    for step in OVERFLOW_STEPS:
        assert torch.equal(rows[step], rows[step - 1])


def evaluate_between_steps(runtime: Runtime, name: str, wire: WireDtype, look: bool) -> tuple[Tensor, dict]:
    """Train with batch norm, and look at the average after each step, or never. Parameters at the end; last average."""
    schedule = topology_schedule(name, runtime.world_size)
    strategy, module = make(runtime, schedule, SGD, batch_norm=True, wire_dtype=wire)
    averages = {}
    for step, batch in zip(range(NUM_STEPS), make_loader(runtime).batches(epoch=0), strict=False):
        strategy.step(batch.images, batch.targets, 0.1, step)
        own = {key: value.clone() for key, value in module.state_dict().items()}
        if look:
            with strategy.averaged(step + 1) as average:
                averages = {key: value.clone() for key, value in average.module.state_dict().items()}
            assert all(torch.equal(own[key], value) for key, value in module.state_dict().items())
    return torch.cat([parameters_of(module), *(buffer.reshape(-1).float() for buffer in module.buffers())]), averages


@pytest.mark.parametrize(
    ("name", "wire"), [("ring", WireDtype.fp32), ("complete", WireDtype.fp32), ("complete", WireDtype.bf16)]
)
def test_evaluation_leaves_no_trace_in_training(name: str, wire: WireDtype, tmp_path: Path) -> None:
    """Averages are under way while the model is replaced by another one."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    looked = on_workers(evaluate_between_steps, 3, tmp_path / "a", name, wire, True)
    never = on_workers(evaluate_between_steps, 3, tmp_path / "b", name, wire, False)
    for (mine, averages), (other, _) in zip(looked, never, strict=True):
        assert torch.equal(mine, other)
        for key, value in averages.items():
            assert torch.equal(value, looked[0][1][key]), key
    assert not torch.equal(looked[0][0], looked[1][0])
