"""Training that was interrupted equals training that was not, bit for bit."""

import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from imgnet import train
from imgnet.checkpoint.folder import read_worker
from imgnet.checkpoint.manifest import read_manifest, steps_of
from imgnet.config import (
    AllReduceConfig,
    CheckpointConfig,
    DecentralizedConfig,
    LocalConfig,
    ModelConfig,
    OptimizerConfig,
    Precision,
    RunConfig,
    SwitchConfig,
    TopologyConfig,
)
from imgnet.parallel.requests import NOTHING, Decision
from imgnet.rundir import read_json
from imgnet.runtime import Runtime
from tests.distributed.harness import NOBODY_WATCHES, on_workers
from tests.distributed.models import ACCUM_ADAM, ADAM, SGD, synthetic

STEPS_PER_EPOCH = 6
NUM_EPOCHS = 3
TIMES = ["train_time_s", "images_per_s", "eval_time_s"]
OPTIMIZERS = {"sgd": SGD, "adam": ADAM, "accum_adam": ACCUM_ADAM}
TOPOLOGIES: dict[str, TopologyConfig] = {
    "allreduce": AllReduceConfig(name="allreduce"),
    **{name: DecentralizedConfig(name=name) for name in ("complete", "ring", "exp")},
}


def configuration(topology: str, optimizer: OptimizerConfig, passes: int = 1, **changes: Any) -> RunConfig:
    return RunConfig(
        name="test", epochs=NUM_EPOCHS, global_batch_size=24, num_accumulation_steps=passes, precision=Precision.fp32,
        log_every_steps=2, model=ModelConfig(name="small_cnn"), data=synthetic(24 * STEPS_PER_EPOCH, 50),
        topology=TOPOLOGIES[topology], optimizer=optimizer, cluster=LocalConfig(name="local"),
        checkpoint=CheckpointConfig(keep_last=10), **changes,
    )  # fmt: skip


class StopAfter:
    """Stands for :class:`imgnet.parallel.requests.Requests`, with decisions that were made beforehand."""

    def __init__(self, step: int | None, save_after: tuple[int, ...] = ()) -> None:
        self.step = step
        self.save_after = save_after

    def after_step(self, step: int) -> Decision:
        if step == self.step:
            return Decision(stop=True)
        return Decision(save=True) if step in self.save_after else NOTHING

    def saved(self) -> None:
        """Nothing depends on it."""


def run_training(
    runtime: Runtime, config: RunConfig, run_dir: Path, stop_after: int | None, save_after: tuple[int, ...] = ()
) -> None:
    train.Requests = lambda *_: StopAfter(stop_after, save_after)  # type: ignore[misc, assignment]
    train.run(config, runtime, run_dir, threading.Event(), NOBODY_WATCHES)


def make(folder: Path) -> Path:
    for part in ("checkpoints", "logs", "meeting"):
        (folder / part).mkdir(parents=True)
    return folder


def on_four(run_dir: Path, config: RunConfig, stop_after: int | None = None, *more: Any, workers: int = 4) -> None:
    meeting = run_dir / "meeting"
    shutil.rmtree(meeting)
    meeting.mkdir()
    on_workers(run_training, workers, meeting, config, run_dir, stop_after, *more)


def assert_same(found: Path, wanted: Path) -> int:
    """The last checkpoints of two runs: every worker's parameters, buffers, optimizer, random states; and the rows.

    Returns:
        The step of both.
    """
    folders = [steps_of(run / "checkpoints")[0] for run in (found, wanted)]
    manifests = [read_manifest(folder) for folder in folders]
    assert manifests[0].step == manifests[1].step
    for rank in range(manifests[1].world_size):
        one, other = (read_worker(folder, rank) for folder in folders)
        for state in (one, other):
            state["progress"].pop("train_time_s")
        assert_equal(one, other, f"rank {rank}")
    rows = [pd.read_csv(run / "metrics.csv").drop(columns=TIMES) for run in (found, wanted)]
    pd.testing.assert_frame_equal(rows[0], rows[1], check_exact=True)
    return manifests[0].step


def assert_equal(one: Any, other: Any, where: str) -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_equal(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_equal(*pair, f"{where}[{index}]")
    else:
        assert one == other, where


ALWAYS = [("allreduce", "sgd", 2), ("complete", "accum_adam", 1), ("ring", "adam", 2), ("exp", "sgd", 1)]
MATRIX = [
    # All 24 take more than a minute; they are run by hand, but for one of each topology.
    pytest.param(
        topology, optimizer, passes, marks=[] if (topology, optimizer, passes) in ALWAYS else [pytest.mark.slow]
    )
    for topology in TOPOLOGIES
    for optimizer in OPTIMIZERS
    for passes in (1, 2)
]


@pytest.mark.parametrize(("topology", "optimizer", "passes"), MATRIX)
def test_an_interrupted_run_equals_an_undisturbed_one(
    topology: str, optimizer: str, passes: int, tmp_path: Path
) -> None:
    config = configuration(topology, OPTIMIZERS[optimizer], passes)
    undisturbed, interrupted = make(tmp_path / "undisturbed"), make(tmp_path / "interrupted")
    on_four(undisturbed, config)
    on_four(interrupted, config, STEPS_PER_EPOCH + 2)  # in the midst of the second epoch
    assert read_manifest(steps_of(interrupted / "checkpoints")[0]).step == STEPS_PER_EPOCH + 2
    on_four(interrupted, config)
    assert assert_same(interrupted, undisturbed) == STEPS_PER_EPOCH * NUM_EPOCHS


def test_saving_and_stopping_at_any_step_changes_nothing(tmp_path: Path) -> None:
    config = configuration("ring", ADAM)
    undisturbed, interrupted = make(tmp_path / "undisturbed"), make(tmp_path / "interrupted")
    on_four(undisturbed, config)
    for step in (1, STEPS_PER_EPOCH, 2 * STEPS_PER_EPOCH - 1):
        on_four(interrupted, config, step, (step - 1, STEPS_PER_EPOCH))
    on_four(interrupted, config)
    assert assert_same(interrupted, undisturbed) == STEPS_PER_EPOCH * NUM_EPOCHS


def test_another_number_of_workers_starts_from_the_average(tmp_path: Path) -> None:
    config = configuration("ring", SGD)
    run_dir = make(tmp_path / "run")
    on_four(run_dir, config, STEPS_PER_EPOCH + 2)
    on_four(run_dir, config, workers=2)
    (said,) = read_json(run_dir / "run.json")["resumed"]
    assert "4 workers wrote it, 2 go on from their averaged model" in said
    rows = pd.read_csv(run_dir / "metrics.csv")
    assert rows["epoch"].tolist() == [1, 2, 3]
    seconds = 24 * STEPS_PER_EPOCH / rows["images_per_s"]
    assert rows["train_time_s"].tolist() == pytest.approx(seconds.cumsum().tolist())
    (best, *_) = (read_worker(folder, 0)["progress"]["best_acc1"] for folder in steps_of(run_dir / "checkpoints"))
    assert best == rows["val_acc1"].max()


def without_schedule(run_dir: Path, copy: Path) -> None:
    """The same checkpoints, as a run on a ring from its first step on would have written them."""
    shutil.copytree(run_dir, copy)
    for path in copy.glob("checkpoints/*/manifest.json"):
        manifest = read_json(path)
        manifest["trained"]["topology.schedule"] = []
        path.write_text(json.dumps(manifest))


def test_another_number_of_workers_goes_on_in_the_right_phase_of_the_schedule(tmp_path: Path) -> None:
    """From the second epoch on the schedule is a ring, and a ring is what the run must go on with."""
    switches = [SwitchConfig(after_epochs=0, topology="complete"), SwitchConfig(after_epochs=1, topology="ring")]
    ring = configuration("ring", SGD)
    scheduled = replace(ring, topology=DecentralizedConfig(name="ring", schedule=switches))
    found, wanted = make(tmp_path / "found"), tmp_path / "wanted"
    on_four(found, scheduled, STEPS_PER_EPOCH, workers=2)
    without_schedule(found, wanted)
    on_four(found, scheduled)
    on_four(wanted, ring)
    assert assert_same(found, wanted) == STEPS_PER_EPOCH * NUM_EPOCHS
    (said,) = read_json(found / "run.json")["resumed"]
    assert "at the beginning of epoch 2" in said


def test_other_settings_start_over_only_where_that_is_allowed(tmp_path: Path) -> None:
    config = configuration("ring", SGD)
    run_dir = make(tmp_path / "run")
    on_four(run_dir, config, STEPS_PER_EPOCH + 2, workers=2)
    other = replace(config, label_smoothing=0.1)
    with pytest.raises(AssertionError, match=r"step_0000000008 is of another run: label_smoothing=0\.0, not 0\.1\. "):
        on_four(run_dir, other, workers=2)
    allowed = replace(other, checkpoint=replace(other.checkpoint, allow_differences=True))
    on_four(run_dir, allowed, 2, workers=2)
    (said,) = read_json(run_dir / "run.json")["resumed"]
    assert said.endswith("its averaged model, from step 0, for the settings differ: label_smoothing=0.0, not 0.1")


def damage(folder: Path, how: str) -> None:
    victim = folder / "rank_2.safetensors"
    content = bytearray(victim.read_bytes())
    if how == "truncated":
        victim.write_bytes(content[:-100])
    elif how == "bit flipped":
        content[len(content) // 2] ^= 1
        victim.write_bytes(content)
    elif how == "foreign":
        (folder / "manifest.json").write_text('{"made": "elsewhere"}')
    elif how == "gone":
        victim.unlink()


@pytest.mark.parametrize(
    "how", ["bit flipped", *(pytest.param(how, marks=pytest.mark.slow) for how in ("truncated", "foreign", "gone"))]
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(how: str, tmp_path: Path) -> None:
    config = configuration("ring", SGD)
    undisturbed, run_dir = make(tmp_path / "undisturbed"), make(tmp_path / "run")
    on_four(undisturbed, config)
    on_four(run_dir, config, 2 * STEPS_PER_EPOCH)
    newest, before = steps_of(run_dir / "checkpoints")[:2]
    damage(newest, how)
    (run_dir / "checkpoints" / ".step_0000000099.partial").mkdir()
    on_four(run_dir, config)
    passed_over, resumed = read_json(run_dir / "run.json")["resumed"]
    assert passed_over.startswith(f"checkpoint passed over: {newest}")
    assert resumed.startswith(f"resumed from {before}, step {STEPS_PER_EPOCH}: every worker goes on exactly")
    assert not list((run_dir / "checkpoints").glob(".*"))
    assert assert_same(run_dir, undisturbed) == STEPS_PER_EPOCH * NUM_EPOCHS
