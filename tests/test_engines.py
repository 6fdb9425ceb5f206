"""Both engines through ``run.py``: the same run comes of them, with a learning rate that differs in every step."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.commands import run_py

NUM_STEPS = 30
RUN = [
    "data=synthetic", "data.num_train=240", "data.num_val=100", "data.num_classes=10", "data.train_px=64",
    "data.eval_px=64", "data.eval_resize_px=64", "precision=fp32", "global_batch_size=24", "epochs=3",
    "optimizer.lr=0.1", "optimizer.warmup_epochs=0.7", "log_every_steps=1", "resume=none",
    "cluster.accelerator=cpu", "topology.engine=imgnet,decent_dp", "hydra.sweep.dir=runs",
]  # fmt: skip
SMOOTH = "test_convnext"
"""Of timm, with GELU and layer norm. A ReLU lets a value pass or not by its last bit, which differs between engines and
CPUs, and makes a difference of 1e-4 at once: so does small_cnn, after nine steps that agree to 1e-7."""
SMOOTH_WITH_BATCH_NORM = "test_efficientnet"
"""Of timm, with SiLU. Where a batch has next to no variance, its inverse makes more of a last bit."""


@pytest.mark.parametrize(
    ("model", "topology", "tolerance"),
    [
        (SMOOTH, ["topology=exp"], 5e-6),  # 1e-7 to 6e-7 with five seeds
        pytest.param(SMOOTH, ["topology=ring"], 5e-6, marks=pytest.mark.slow),
        pytest.param(
            SMOOTH, ["topology=alternating-exp-ring", "cluster.simulated_nodes=2"], 5e-6, marks=pytest.mark.slow
        ),
        pytest.param(SMOOTH_WITH_BATCH_NORM, ["topology=exp"], 3e-3, marks=pytest.mark.slow),  # 3e-6 to 3e-4
    ],
)
def test_warm_up_and_cosine_give_the_same_model(
    model: str, topology: list[str], tolerance: float, tmp_path: Path
) -> None:
    ended = run_py(*RUN, f"model.name={model}", *topology, cwd=tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    runs = [tmp_path / "runs" / str(number) for number in (0, 1)]
    rates = pd.read_json(runs[1] / "steps.jsonl", lines=True)["lr"]
    assert rates.nunique() == len(rates) == NUM_STEPS
    ours, theirs = (_together(run) for run in runs)
    assert (ours - theirs).norm() <= tolerance * theirs.norm()
    rows = [pd.read_csv(run / "metrics.csv") for run in runs]
    for column in ("train_loss", "val_loss", "consensus_distance"):
        assert rows[0][column].tolist() == pytest.approx(rows[1][column].tolist(), rel=10 * tolerance), column


def _together(run: Path) -> Tensor:
    """All parameters and running statistics of a run's model, each kind in its own units."""
    model = load_file(run / "checkpoints" / "final.safetensors")
    return torch.cat([value.double().reshape(-1) for value in model.values() if value.is_floating_point()])
