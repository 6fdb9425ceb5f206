"""Compressed gradients of AllReduce against float64 references, on real workers."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from imgnet.config import AllReduceConfig, Compression, SgdConfig
from imgnet.optim.loss_scale import INITIAL_SCALE, LossScaler
from imgnet.parallel.engines import compression
from imgnet.parallel.engines.allreduce import AllReduce
from imgnet.parallel.engines.compression import Bf16, Compressor, PowerSgd, build_compressor
from imgnet.runtime import Runtime
from tests.distributed.harness import on_workers
from tests.distributed.low_rank import Array, PowerSgdReference
from tests.distributed.models import make_loader, make_model, make_optimizer, objective, parameters_of
from tests.distributed.recursion import batches_of

START_STEP = 3
MOMENTUM = 0.9
RATES = [0.02, 0.05, 0.1, 0.1, 0.09, 0.08, 0.06, 0.05, 0.03, 0.01]
SGD = SgdConfig(name="sgd", lr=0.1, weight_decay=0.0, momentum=MOMENTUM)
Average = Callable[[list[list[Array]]], list[Array]]


def plain_mean(gradients: list[list[Array]]) -> list[Array]:
    return [np.mean(of_workers, axis=0) for of_workers in zip(*gradients, strict=True)]


def powersgd(rank: int, start_step: int = START_STEP, min_compression_rate: float = 1.0) -> Compressor:
    return PowerSgd(rank=rank, start_step=start_step, min_compression_rate=min_compression_rate)


def make(
    runtime: Runtime,
    compressor: Compressor | None,
    module: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    **changes: Any,
) -> AllReduce:
    """AllReduce with SGD and a bucket for each parameter."""
    settings = {
        "num_accumulation_steps": 1, "max_grad_norm": None, "scaler": LossScaler(runtime.device, enabled=False),
    } | changes  # fmt: skip
    loss = settings.pop("objective", objective)
    factory = make_optimizer(SGD) if optimizer is None else lambda _: optimizer
    return AllReduce(module, loss, factory, runtime, bucket_mb=0, compressor=compressor, **settings)


def train(
    runtime: Runtime, make_compressor: Callable[[], Compressor | None], passes: int, max_grad_norm: float | None
) -> Tensor:
    """This worker's parameters after each step, ``[steps, parameters]``."""
    module = make_model()
    strategy = make(runtime, make_compressor(), module, num_accumulation_steps=passes, max_grad_norm=max_grad_norm)
    rows = []
    for (step, lr), batch in zip(enumerate(RATES), make_loader(runtime).batches(epoch=0), strict=False):
        strategy.step(batch.images, batch.targets, lr, step)
        rows.append(parameters_of(module))
    return torch.stack(rows)


def arrival_order() -> list[int]:
    """The parameters in the order in which a backward pass brings their gradients."""
    model, order = make_model(), []
    for index, parameter in enumerate(model.parameters()):
        parameter.register_post_accumulate_grad_hook(lambda _, index=index: order.append(index))
    model(torch.zeros(1, 3, 16, 16)).sum().backward()
    return order


def simulate(
    average: Average, world_size: int, max_grad_norm: float | None, start_step: int = START_STEP
) -> list[Array]:
    """Parameters after each step in float64, with gradients averaged by ``average`` from ``start_step`` on."""
    model = make_model().double().to(memory_format=torch.contiguous_format)
    order = arrival_order()
    parameters = list(model.parameters())
    arrived = [parameters[index] for index in order]
    momenta, rows = [np.zeros(tuple(p.shape)) for p in arrived], []
    batches = [batches_of(rank, world_size, len(RATES)) for rank in range(world_size)]
    for step, lr in enumerate(RATES):
        gradients = [gradients_of(model, arrived, batches[rank][step]) for rank in range(world_size)]
        means = (average if step >= start_step else plain_mean)(gradients)
        norm = np.sqrt(sum(np.sum(mean**2) for mean in means))
        share = 1.0 if max_grad_norm is None else min(1.0, max_grad_norm / (norm + 1e-6))
        momenta = [MOMENTUM * momentum + share * mean for momentum, mean in zip(momenta, means, strict=True)]
        with torch.no_grad():
            for parameter, momentum in zip(arrived, momenta, strict=True):
                parameter.sub_(torch.from_numpy(lr * momentum))
        rows.append(parameters_of(model).numpy())
    return rows


def gradients_of(model: nn.Module, parameters: list[nn.Parameter], batch: tuple[Tensor, Tensor]) -> list[Array]:
    model.zero_grad()
    objective(model, *batch).backward()
    return [parameter.grad.numpy().copy() for parameter in parameters if parameter.grad is not None]


def shapes_in_order() -> list[tuple[int, ...]]:
    parameters = list(make_model().parameters())
    return [tuple(parameters[index].shape) for index in arrival_order()]


def assert_follows(found: list[Tensor], wanted: list[Array], tolerance: float = 1e-5) -> None:
    """Workers are equal to the bit, and follow the reference, relative to the length of the way."""
    assert all(torch.equal(found[0], other) for other in found)
    reference = np.stack(wanted)
    way = np.linalg.norm(reference[-1] - reference[0])
    assert way > 0.01, "something must be trained for the test to say anything"
    assert np.linalg.norm(found[0].double().numpy() - reference, axis=1).max() <= tolerance * way


@pytest.mark.parametrize(
    ("rank", "world_size", "passes", "max_grad_norm"),
    [(1, 2, 1, None), (2, 4, 3, None), (4, 2, 2, 0.05)],
)
def test_powersgd_follows_the_papers_recursion(
    rank: int, world_size: int, passes: int, max_grad_norm: float | None, tmp_path: Path
) -> None:
    found = on_workers(train, world_size, tmp_path, partial(powersgd, rank), passes, max_grad_norm)
    reference = PowerSgdReference(shapes_in_order(), rank, min_compression_rate=1.0)
    wanted = simulate(reference.average, world_size, max_grad_norm)
    assert sum(compression is not None for compression in reference.compressions) >= 2
    assert_follows(found, wanted)
    plain = simulate(plain_mean, world_size, max_grad_norm)
    assert np.linalg.norm(plain[-1] - wanted[-1]) > 1e-2 * np.linalg.norm(plain[-1] - plain[0])


def test_powersgd_of_full_rank_is_the_exact_mean(tmp_path: Path) -> None:
    full = partial(powersgd, rank=1000, start_step=2, min_compression_rate=0.0)
    assert_follows(on_workers(train, 3, tmp_path, full, 1, None), simulate(plain_mean, 3, None))


def train_late(runtime: Runtime) -> Tensor:
    """The same steps, but the first of this process is a late one of the run, and compressed at once."""
    module = make_model()
    strategy = make(runtime, powersgd(4), module)
    rows = []
    for (step, lr), batch in zip(enumerate(RATES), make_loader(runtime).batches(epoch=0), strict=False):
        strategy.step(batch.images, batch.targets, lr, step + 1000)
        rows.append(parameters_of(module))
    return torch.stack(rows)


def test_powersgd_goes_by_the_step_of_the_run_and_not_of_the_process(tmp_path: Path) -> None:
    """As where a run goes on with another number of workers: buckets are formed before anything is kept for them."""
    reference = PowerSgdReference(shapes_in_order(), 4, min_compression_rate=1.0)
    assert_follows(on_workers(train_late, 2, tmp_path), simulate(reference.average, 2, None, start_step=0))


class Recorder(torch.optim.Optimizer):
    """Updates nothing, and keeps the sum of all gradients in float64."""

    def __init__(self, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        super().__init__([parameter for _, parameter in named_parameters], {"lr": 0.0})
        self.sums = [torch.zeros(p.shape, dtype=torch.float64) for p in self.param_groups[0]["params"]]

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for total, parameter in zip(self.sums, self.param_groups[0]["params"], strict=True):
            assert parameter.grad is not None
            total += parameter.grad


def linear_net(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(9, 14, bias=False), nn.Tanh(), nn.Linear(14, 8, bias=False)).to(dtype)


def feed_back(runtime: Runtime, num_steps: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """What was applied in sum, the errors at the end, and the worker's own gradients in sum, in arrival order."""
    module, plain = linear_net(torch.float32), linear_net(torch.float64)
    compressor, recorder = powersgd(2, start_step=2), Recorder(module.named_parameters())
    strategy = make(runtime, compressor, module, recorder, objective=square_loss)
    generator = torch.Generator().manual_seed(runtime.rank)
    for step in range(num_steps):
        scale = 1.0 + np.sin(step / 50)
        images, targets = (torch.randn(4, size, generator=generator) * scale for size in (9, 8))
        strategy.step(images, targets, 0.1, step)
        square_loss(plain, images.double(), targets.double()).backward()
    errors = compressor.state()["errors"]
    return recorder.sums[::-1], [errors[index].double() for index in sorted(errors)], gradients(plain)[::-1]


def gradients(module: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in module.parameters() if parameter.grad is not None]


def square_loss(module: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    return (module(images) - targets).square().mean()


@pytest.mark.parametrize("num_steps", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_what_powersgd_leaves_out_of_a_gradient_comes_later(num_steps: int, tmp_path: Path) -> None:
    """What was applied, and the mean of the errors that are left, is the sum of all gradients."""
    results = on_workers(feed_back, 3, tmp_path, num_steps, timeout_s=400)
    for place, applied in enumerate(results[0][0]):
        errors = torch.stack([errors[place] for _, errors, _ in results]).mean(dim=0).view_as(applied)
        gradients = torch.stack([own[place] for _, _, own in results]).mean(dim=0)
        assert errors.norm() > 1e-4 * gradients.norm(), "something must be left out for the test to say anything"
        assert (applied + errors - gradients).norm() <= 1e-6 * gradients.norm()


def average_once(runtime: Runtime) -> tuple[list[Tensor], list[Tensor]]:
    """The averaged gradients as AllReduce in bf16 has them, and this worker's own."""
    module, plain = make_model(), make_model()
    recorder = Recorder(module.named_parameters())
    batch = next(iter(make_loader(runtime).batches(epoch=0)))
    make(runtime, Bf16(), module, recorder).step(batch.images, batch.targets, 0.1, 0)
    objective(plain, batch.images, batch.targets).backward()
    return recorder.sums, gradients(plain)


def rounded(values: Tensor) -> Tensor:
    """To bf16, from and to float64."""
    return values.to(torch.bfloat16).double()


@pytest.mark.parametrize("world_size", [2, 4])
def test_bf16_averages_are_rounded_where_they_are_said_to_be(world_size: int, tmp_path: Path) -> None:
    """Of two workers to the bit: ``Q(Q(g_0) / 2 + Q(g_1) / 2)``; of more every partial sum may add half a step."""
    results = on_workers(average_once, world_size, tmp_path)
    for place, average in enumerate(results[0][0]):
        shares = [rounded(rounded(own[place].double()) / world_size) for _, own in results]
        if world_size == 2:
            assert torch.equal(average, rounded(shares[0] + shares[1]))
        exact = sum(own[place].double() for _, own in results) / world_size
        largest = sum(share.abs() for share in shares)
        assert bool(((average - exact).abs() <= (world_size + 1) * 2.0**-8 * largest).all())
        assert not torch.equal(average, exact)
        assert all(torch.equal(average, other[place]) for other, _ in results)


def bf16_mean(gradients: list[list[Array]]) -> list[Array]:
    return [
        rounded(sum(rounded(rounded(torch.from_numpy(own)) / len(gradients)) for own in of_workers)).numpy()
        for of_workers in zip(*gradients, strict=True)
    ]


def test_training_in_bf16_follows_the_recursion(tmp_path: Path) -> None:
    """As far as rounding allows: a gradient that is off by 1e-7 may be rounded the other way, by 2^-7 of itself."""
    found = on_workers(train, 2, tmp_path, Bf16, 2, None)
    wanted = simulate(bf16_mean, 2, None, start_step=0)
    assert_follows(found, wanted, tolerance=2e-4)
    exact = simulate(plain_mean, 2, None)
    assert np.linalg.norm(exact[-1] - wanted[-1]) > 5e-4 * np.linalg.norm(exact[-1] - exact[0])


def overflow(runtime: Runtime) -> tuple[Tensor, list[float]]:
    """fp16's loss scale with gradients in bf16; one worker's loss is infinite in step 2."""
    scaler, module, steps = LossScaler(runtime.device, enabled=True), make_model(), []

    def loss(module: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        steps.append(len(steps))
        return objective(module, images, targets) * (float("inf") if runtime.rank == 1 and steps[-1] == 2 else 1.0)

    strategy = make(runtime, Bf16(), module, scaler=scaler, objective=loss)
    rows, scales = [], []
    for step, batch in zip(range(5), make_loader(runtime).batches(epoch=0), strict=False):
        strategy.step(batch.images, batch.targets, 0.1, step)
        rows.append(parameters_of(module))
        scales.append(float(scaler.scale))
    return torch.stack(rows), scales


def test_a_loss_scale_is_divided_out_of_bf16_gradients_and_an_overflow_skipped_by_all(tmp_path: Path) -> None:
    results = on_workers(overflow, 2, tmp_path)
    rows, scales = results[0]
    assert scales == [INITIAL_SCALE] * 2 + [INITIAL_SCALE / 2] * 3
    assert torch.equal(rows, results[1][0])
    assert torch.equal(rows[2], rows[1])
    assert bool(rows.isfinite().all())
    assert not torch.equal(rows[3], rows[2])


class Dead(nn.Module):
    """A layer that no gradient reaches, though it takes part, before one that learns."""

    def __init__(self) -> None:
        super().__init__()
        self.dead, self.alive = nn.Linear(20, 30), nn.Linear(20, 10)

    def forward(self, images: Tensor) -> Tensor:
        features = images.flatten(1)[:, :20]
        return self.alive(features) + 0.0 * self.dead(features).sum()


def train_dead(runtime: Runtime) -> Tensor:
    torch.manual_seed(0)
    module = Dead()
    strategy = make(runtime, powersgd(4, start_step=2), module)
    for step, batch in zip(range(6), make_loader(runtime).batches(epoch=0), strict=False):
        strategy.step(batch.images, batch.targets, 0.1, step)
    return parameters_of(module)


def test_a_gradient_of_zeros_stays_zero_under_the_default_rank(tmp_path: Path) -> None:
    found = on_workers(train_dead, 2, tmp_path)
    assert bool(found[0].isfinite().all())
    assert torch.equal(found[0], found[1])


def break_the_hook(runtime: Runtime) -> str:
    """The error of a step whose all-reduce fails."""

    def failing(*_: object) -> None:
        raise ValueError("the other side is gone")

    compression.powerSGD_hook = failing  # type: ignore[assignment]
    strategy = make(runtime, powersgd(2), make_model())
    batch = next(make_loader(runtime).batches(epoch=0))
    with pytest.raises(RuntimeError) as caught:
        strategy.step(batch.images, batch.targets, 0.1, 0)
    return str(caught.value)


def test_an_error_of_the_thread_says_what_it_was(tmp_path: Path) -> None:
    (told,) = on_workers(break_the_hook, 1, tmp_path)
    assert "ValueError: the other side is gone" in told


def test_the_configuration_says_which_compressor(tmp_path: Path) -> None:
    kinds = on_workers(built, 1, tmp_path)[0]
    assert kinds == ["NoneType", "Bf16", "PowerSgd"]


def built(runtime: Runtime) -> list[str]:
    return [
        type(build_compressor(AllReduceConfig(name="allreduce", compression=compression), warmup_steps=7)).__name__
        for compression in Compression
    ]
