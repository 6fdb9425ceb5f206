"""Batch norm's statistics of an averaged model, measured on training images."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from imgnet.batch_norm import recalibrated
from imgnet.checkpoint.export import export_model
from imgnet.checkpoint.folder import read_worker
from imgnet.checkpoint.manifest import steps_of
from imgnet.config import Mode, ModelConfig, Precision, RunConfig
from imgnet.data.loader import build_train_loader
from imgnet.models.build import build_model
from imgnet.optim.loss_scale import LossScaler
from imgnet.parallel.engines.decentralized import Decentralized
from imgnet.parallel.topology import Schedule, build_topology
from imgnet.rundir import read_json
from imgnet.runtime import Runtime
from tests.distributed.harness import on_workers
from tests.distributed.models import ADAM, SGD, make_loader, make_model, make_optimizer, objective
from tests.distributed.test_evaluation import state_of
from tests.distributed.test_resume import assert_equal, configuration, make, on_four

NUM_BATCHES = 4
CPU = torch.device("cpu")
CNN = ModelConfig(name="small_cnn")


def model_with_dropout() -> nn.Module:
    return nn.Sequential(make_model(batch_norm=True), nn.Dropout(0.2))


def measure(runtime: Runtime) -> tuple[dict[str, Tensor], list[Tensor], bool]:
    """The averaged model with its statistics, this worker's images, and whether the worker is as it was."""
    model = model_with_dropout()
    schedule = Schedule.constant(build_topology("ring", runtime.world_size, runtime.world_size))
    strategy = Decentralized(
        model, objective, make_optimizer(ADAM), schedule, runtime,
        num_accumulation_steps=1, max_grad_norm=None, scaler=LossScaler(runtime.device, enabled=False), bucket_mb=1,
    )  # fmt: skip
    loader = make_loader(runtime)
    for step, batch in enumerate(loader.batches(epoch=0)):
        strategy.step(batch.images, batch.targets, 1e-2, step)
    images = [batch.images for _, batch in zip(range(NUM_BATCHES), loader.batches(epoch=1), strict=False)]
    before = state_of(model)
    averaged = strategy.averaged(loader.steps_per_epoch)
    with averaged as average, recalibrated(average.module, images, runtime.device, Precision.fp32):
        measured = {name: value.clone() for name, value in average.module.state_dict().items()}
    same = all(torch.equal(old, new) for old, new in zip(before, state_of(model), strict=True))
    return measured, images, same and model.training


def test_statistics_are_those_of_the_averaged_model_and_each_worker_stays_as_it_was(tmp_path: Path) -> None:
    results = on_workers(measure, 3, tmp_path)
    images = [batch for _, of_worker, _ in results for batch in of_worker]
    assert len(images) == 3 * NUM_BATCHES
    measured = results[0][0]
    means, variances = in_float64(measured, images)
    plain = model_with_dropout()
    plain.load_state_dict(measured)
    update_bn(images, plain)
    for name, wanted in (("running_mean", means), ("running_var", variances)):
        found = measured[f"0.norm.{name}"]
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found, plain.state_dict()[f"0.norm.{name}"], rtol=1e-6, atol=1e-7)
        assert all(torch.equal(found, other[f"0.norm.{name}"]) for other, _, _ in results)
    assert all(same for _, _, same in results)


def in_float64(state: dict[str, Tensor], images: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of each channel before the norm, averaged over batches."""
    weight, bias = state["0.first.weight"].double(), state["0.first.bias"].double()
    outputs = [nn.functional.conv2d(batch.double(), weight, bias, stride=2) for batch in images]
    means = torch.stack([output.mean(dim=(0, 2, 3)) for output in outputs])
    variances = torch.stack([output.transpose(0, 1).flatten(1).var(dim=1) for output in outputs])
    return means.mean(dim=0), variances.mean(dim=0)


def test_a_run_exports_what_it_measured_and_trains_as_without(tmp_path: Path) -> None:
    config = configuration("ring", SGD, 2)
    without, with_it = make(tmp_path / "without"), make(tmp_path / "with")
    on_four(without, config, workers=2)
    on_four(with_it, replace(config, evaluate_recalibrate_bn=2), workers=2)
    for rank in range(2):
        one, other = (read_worker(steps_of(run / "checkpoints")[0], rank) for run in (with_it, without))
        for state in (one, other):
            del state["progress"]["train_time_s"], state["progress"]["best_acc1"]
        assert_equal(one, other, f"rank {rank}")
    final, averaged = (load_file(run / "checkpoints" / "final.safetensors") for run in (with_it, without))
    wanted = plainly_measured(final, config, epoch=config.epochs - 1)
    for name, value in final.items():
        if name.endswith(("running_mean", "running_var")):
            torch.testing.assert_close(value, wanted[name], rtol=1e-5, atol=1e-6)
            assert not torch.equal(value, averaged[name])
        elif not name.endswith("num_batches_tracked"):
            assert torch.equal(value, averaged[name]), name


def test_a_model_is_scored_with_statistics_of_its_own(tmp_path: Path) -> None:
    config, model = configuration("ring", SGD), build_model(CNN, 10, device=CPU, channels_last=True, compiled=False)
    as_built, measured = tmp_path / "as_built.safetensors", tmp_path / "measured.safetensors"
    export_model(as_built, model, {})
    model.load_state_dict(plainly_measured(model.state_dict(), config, epoch=0))
    export_model(measured, model, {})
    losses = []
    for number, (weights, num_batches) in enumerate([(as_built, 0), (as_built, 2), (measured, 0)]):
        run_dir = make(tmp_path / str(number))
        of = replace(config, mode=Mode.evaluate, model=replace(CNN, weights=str(weights)))
        on_four(run_dir, replace(of, evaluate_recalibrate_bn=num_batches), workers=2)
        losses.append(read_json(run_dir / "summary.json")["val_loss"])
    assert losses[1] == pytest.approx(losses[2], rel=1e-6)
    assert abs(losses[0] - losses[1]) > 1e-3


def plainly_measured(state: dict[str, Tensor], config: RunConfig, epoch: int) -> dict[str, Tensor]:
    """torch's own pass over what both workers read in the first two steps of an epoch."""
    model = build_model(CNN, 10, device=CPU, channels_last=True, compiled=False)
    model.load_state_dict(state)
    images = []
    for rank in range(2):
        loader = build_train_loader(
            config.data, seed=config.seed, global_batch_size=24, channels_last=True,
            worker=Runtime(rank, 2, rank, 2, CPU, 1),
        )  # fmt: skip
        batches = [batch.images for _, batch in zip(range(2), loader.batches(epoch), strict=False)]
        images += [some for batch in batches for some in batch.chunk(config.num_accumulation_steps)]
    update_bn(images, model)
    return model.state_dict()
