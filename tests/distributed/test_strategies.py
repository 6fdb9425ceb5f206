"""What AllReduce and decentralized training compute, on real workers."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from imgnet.config import OptimizerConfig
from imgnet.optim.loss_scale import LossScaler
from imgnet.optim.schedule import learning_rate
from imgnet.parallel.averaging.consensus import ConsensusFactor
from imgnet.parallel.averaging.methods.adaptive import Adaptive
from imgnet.parallel.averaging.methods.every_step import EveryStep
from imgnet.parallel.engines.allreduce import AllReduce
from imgnet.parallel.engines.decent_dp import DecentDp
from imgnet.parallel.engines.decentralized import Decentralized
from imgnet.parallel.engines.strategy import Strategy
from imgnet.parallel.topology import Schedule, build_topology
from imgnet.runtime import Runtime
from tests.distributed.harness import on_workers
from tests.distributed.models import (
    ACCUM_ADAM,
    ADAM,
    QUASI_GLOBAL,
    SGD,
    make_loader,
    make_model,
    make_optimizer,
    objective,
    parameters_of,
)

NUM_STEPS = 10


def rates(config: OptimizerConfig) -> list[float]:
    """Warm-up, then cosine: no two alike."""
    schedule = {"lr": config.lr, "min_lr": 1e-5, "warmup_steps": 4, "warmup_factor": 0.01, "total_steps": NUM_STEPS}
    found = [learning_rate(step, **schedule) for step in range(NUM_STEPS)]
    assert len(set(found)) == NUM_STEPS
    return found


def train_plainly(optimizer_config: OptimizerConfig, max_grad_norm: float | None = None) -> Tensor:
    """Ten steps in this process with nothing of ours but the data and the optimizer."""
    model = make_model()
    optimizer = make_optimizer(optimizer_config)(model.named_parameters())
    loader = make_loader(Runtime(0, 1, 0, 1, torch.device("cpu"), 1))
    for lr, batch in zip(rates(optimizer_config), loader.batches(epoch=0), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = lr
        objective(model, batch.images, batch.targets).backward()
        if max_grad_norm is not None:
            clip_grad_norm_(model.parameters(), max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
    return parameters_of(model)


def train(
    runtime: Runtime,
    topology: str,
    optimizer_config: OptimizerConfig,
    passes: int = 1,
    max_grad_norm: float | None = None,
    engine: str = "imgnet",
    bucket_mb: int = 1,
    factor: ConsensusFactor | None = None,
) -> Tensor:
    """The same steps through a strategy; returns this worker's parameters."""
    torch.set_num_threads(1)  # as in the test's own process: sums depend on it, to the last bit
    model = make_model(seed=runtime.rank)  # rank 0's values must win
    strategy = make_strategy(
        runtime, model, topology, optimizer_config, passes, max_grad_norm, engine, bucket_mb, factor
    )
    batches = zip(rates(optimizer_config), make_loader(runtime).batches(epoch=0), strict=True)
    for step, (lr, batch) in enumerate(batches):
        strategy.step(batch.images, batch.targets, lr, step)
    return parameters_of(model)


def make_strategy(
    runtime: Runtime,
    model: torch.nn.Module,
    name: str,
    optimizer_config: OptimizerConfig,
    passes: int,
    max_grad_norm: float | None,
    engine: str,
    bucket_mb: int,
    factor: ConsensusFactor | None,
) -> Strategy:
    factory = make_optimizer(optimizer_config)
    scaler = LossScaler(runtime.device, enabled=False)
    if name == "allreduce":
        return AllReduce(
            model, objective, factory, runtime,
            num_accumulation_steps=passes, max_grad_norm=max_grad_norm, scaler=scaler, bucket_mb=bucket_mb,
        )  # fmt: skip
    topology = build_topology(name, runtime.world_size, runtime.local_world_size)
    if engine == "decent_dp":
        return DecentDp(
            model,
            objective,
            factory,
            topology,
            runtime,
            num_accumulation_steps=passes,
            bucket_mb=bucket_mb,
            factor=factor,
        )
    return Decentralized(
        model, objective, factory, Schedule.constant(topology), runtime,
        num_accumulation_steps=passes, max_grad_norm=max_grad_norm, scaler=scaler, bucket_mb=bucket_mb,
        make_method=EveryStep if factor is None else partial(Adaptive, factor=factor),
    )  # fmt: skip


def relative_difference(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_allreduce_equals_one_process_with_the_same_global_batch(world_size: int, tmp_path: Path) -> None:
    wanted = train_plainly(SGD)
    for found in on_workers(train, world_size, tmp_path, "allreduce", SGD):
        assert relative_difference(found, wanted) <= 1e-5


def test_accumulation_and_clipping_leave_allreduce_equal_to_one_process(tmp_path: Path) -> None:
    wanted = train_plainly(SGD, max_grad_norm=0.05)
    assert relative_difference(train_plainly(SGD), wanted) > 1e-3, "the norm must bind for the test to say anything"
    for found in on_workers(train, 2, tmp_path, "allreduce", SGD, 3, 0.05):
        assert relative_difference(found, wanted) <= 1e-5


@pytest.mark.parametrize("config", [SGD, ADAM, ACCUM_ADAM], ids=lambda config: config.name)
@pytest.mark.parametrize("max_grad_norm", [None, 0.05])
def test_decentralized_on_one_worker_equals_plain_training_exactly(
    config: OptimizerConfig, max_grad_norm: float | None, tmp_path: Path
) -> None:
    (found,) = on_workers(train, 1, tmp_path, "ring", config, 1, max_grad_norm)
    assert torch.equal(found, train_plainly(config, max_grad_norm))


def test_workers_of_a_ring_differ_while_allreduce_workers_do_not(tmp_path: Path) -> None:
    ring = on_workers(train, 4, tmp_path, "ring", SGD)
    assert not torch.equal(ring[0], ring[2])


@pytest.mark.parametrize(
    ("topology", "config", "world_size", "per_node", "passes", "factor"),
    [
        ("complete", ADAM, 3, 3, 1, None),
        ("ring", ADAM, 4, 4, 3, None),
        ("ring", QUASI_GLOBAL, 4, 4, 1, None),
        ("exp", SGD, 4, 4, 1, None),
        ("alternating-exp-ring", ADAM, 4, 2, 1, None),
        ("ring", SGD, 4, 4, 1, ConsensusFactor(0.1, 0.8, 3.0, 4, 0.1)),
    ],
)
def test_both_engines_give_the_same_parameters(
    topology: str,
    config: OptimizerConfig,
    world_size: int,
    per_node: int,
    passes: int,
    factor: ConsensusFactor | None,
    tmp_path: Path,
) -> None:
    found = []
    for engine in ("imgnet", "decent_dp"):
        (tmp_path / engine).mkdir()
        arguments = (topology, config, passes, None, engine, 0, factor)  # a bucket for each parameter
        found.append(on_workers(train, world_size, tmp_path / engine, *arguments, workers_per_node=per_node))
    for ours, theirs in zip(*found, strict=True):
        assert relative_difference(ours, theirs) <= 1e-6
