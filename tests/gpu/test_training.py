"""What only a GPU shows: the numbers of the CPU, no wait of the host, reduced precision, compiled models."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import config_of, on_device, traced
from benchmarks.step_overhead import Ours
from imgnet.config import (
    AllReduceConfig,
    DecentralizedConfig,
    Precision,
    ProfileConfig,
    RunConfig,
    TopologyConfig,
    WireDtype,
)
from imgnet.runtime import Runtime
from tests.distributed.harness import on_workers

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
several_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NCCL wants a GPU for each worker")
RING = DecentralizedConfig(name="ring")
COMPLETE = DecentralizedConfig(name="complete")
ALLREDUCE = AllReduceConfig(name="allreduce")
STEPS, BATCH = 6, 24


def configuration(topology: TopologyConfig = RING, precision: Precision = Precision.fp32, *, compiled=False):
    return replace(config_of("small_cnn", 32, BATCH, STEPS, compiled, precision), topology=topology)


def trained(runtime: Runtime, device: str, config: RunConfig, folder: Path) -> torch.Tensor:
    """This worker's parameters after an epoch, on the CPU."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    ours = Ours(config, on_device(runtime, device), folder)
    with ours.tracker() as tracker:
        ours.epoch()(tracker)
    return torch.cat([parameter.detach().flatten().cpu() for parameter in ours.model.parameters()])


def on_both(folder: Path, config: RunConfig, workers: int, *, use_gpu: bool = False) -> None:
    """Workers on GPUs end where workers on the CPU do."""
    found = {}
    for device, uses in (("cpu", False), ("cuda", use_gpu)):
        (folder / device / "run").mkdir(parents=True)
        found[device] = on_workers(
            trained, workers, folder / device, device, config, folder / device / "run", use_gpu=uses
        )
    for on_cpu, on_gpu in zip(found["cpu"], found["cuda"], strict=True):
        torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("topology", "workers"), [(RING, 1), (ALLREDUCE, 2), (COMPLETE, 3)])
def test_workers_that_share_a_gpu_train_as_on_the_cpu(topology: TopologyConfig, workers: int, tmp_path: Path) -> None:
    """Over gloo, which sums what is on a GPU, but exchanges nothing that is."""
    on_both(tmp_path, configuration(topology), workers)


@several_gpus
@pytest.mark.parametrize("topology", [ALLREDUCE, RING, COMPLETE, replace(RING, wire_dtype=WireDtype.bf16)])
def test_workers_with_a_gpu_each_train_as_on_the_cpu(topology: TopologyConfig, tmp_path: Path) -> None:
    on_both(tmp_path, configuration(topology), 2, use_gpu=True)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("precision", [Precision.bf16, Precision.fp16])
def test_half_precision_stays_near_fp32(precision: Precision, compiled: bool, tmp_path: Path) -> None:
    ends = []
    for name, of in (("fp32", Precision.fp32), ("half", precision)):
        (tmp_path / name / "run").mkdir(parents=True)
        config = configuration(precision=of, compiled=compiled)
        ends += on_workers(trained, 1, tmp_path / name, "cuda", config, tmp_path / name / "run")
    assert ends[1].isfinite().all()
    assert (ends[1] - ends[0]).norm() <= 0.005 * ends[0].norm()


@pytest.mark.parametrize("precision", [Precision.fp32, Precision.bf16, Precision.fp16])
@pytest.mark.parametrize("topology", [RING, ALLREDUCE])
def test_no_step_waits_for_the_gpu(topology: TopologyConfig, precision: Precision, tmp_path: Path) -> None:
    config = replace(configuration(topology, precision), profile=ProfileConfig(STEPS - 2, 1))
    (tmp_path / "run").mkdir()
    assert on_workers(traced, 1, tmp_path, "cuda", config, tmp_path / "run")[0].synchronisations == 0
