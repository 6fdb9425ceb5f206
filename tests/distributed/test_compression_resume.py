"""AllReduce with compressed gradients, interrupted and not: the same bits, with what the compression carries over."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from imgnet.checkpoint.folder import read_worker
from imgnet.checkpoint.manifest import steps_of
from imgnet.config import AllReduceConfig, Compression
from tests.distributed.models import ADAM, SGD
from tests.distributed.test_resume import NUM_EPOCHS, STEPS_PER_EPOCH, assert_same, configuration, make, on_four

START_STEP = 4
POWERSGD = AllReduceConfig(
    name="allreduce", bucket_mb=0, compression=Compression.powersgd, powersgd_rank=3, powersgd_start_step=START_STEP
)
BF16 = AllReduceConfig(name="allreduce", bucket_mb=0, compression=Compression.bf16)


@pytest.mark.parametrize(
    ("topology", "stops"),
    [
        (POWERSGD, (1, START_STEP, 2 * STEPS_PER_EPOCH - 1)),
        pytest.param(BF16, (1, STEPS_PER_EPOCH + 2), marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_run_equals_an_undisturbed_one(
    topology: AllReduceConfig, stops: tuple[int, ...], tmp_path: Path
) -> None:
    """Before the first compressed step, right before it, and in the midst of those; two passes in each step."""
    config = replace(configuration("allreduce", ADAM, passes=2), topology=topology)
    undisturbed, interrupted = make(tmp_path / "undisturbed"), make(tmp_path / "interrupted")
    on_four(undisturbed, config, workers=2)
    for step in stops:
        on_four(interrupted, config, step, workers=2)
    on_four(interrupted, config, workers=2)
    assert assert_same(interrupted, undisturbed) == STEPS_PER_EPOCH * NUM_EPOCHS


def test_each_worker_keeps_its_own_errors(tmp_path: Path) -> None:
    run_dir = make(tmp_path / "run")
    on_four(run_dir, replace(configuration("allreduce", SGD), topology=POWERSGD), STEPS_PER_EPOCH + 2, workers=2)
    folder = steps_of(run_dir / "checkpoints")[0]
    first, second = (read_worker(folder, rank)["strategy"]["compressor"] for rank in (0, 1))
    compressed = [index for index, values in first["q"].items() if values.numel()]
    assert len(compressed) >= 3, "several buckets"
    assert all(torch.equal(first["q"][index], second["q"][index]) for index in compressed)
    assert not any(torch.equal(first["errors"][index], second["errors"][index]) for index in compressed)
    assert first["rng"] == second["rng"]
