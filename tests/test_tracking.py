"""What a run writes and shows."""

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest
import torch

from imgnet import rundir
from imgnet.config import RunConfig, WandbMode
from imgnet.runtime import Runtime
from imgnet.tracking import Tracker, describe_epoch
from tests.test_conf import composed

KEY = "0123456789abcdef0123456789abcdef01234567"
ROW = {
    "epoch": 1,
    "step": 20,
    "train_loss": 1.5,
    "val_loss": 1.25,
    "val_acc1": 50.0,
    "val_acc5": 90.0,
    "train_time_s": 3.0,
    "images_per_s": 1234.5,
    "consensus_distance": 0.125,
    "neighbour_distance": 0.25,
    "lr": 0.1,
    "eval_time_s": 0.5,
    "num_val_images": 360,
}


@pytest.fixture
def config() -> RunConfig:
    return composed("+experiments=quickstart", "epochs=3", "optimizer.warmup_epochs=1")


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    rundir.create(tmp_path / "run", "a: 1\n", overrides=["a=1"], seed=1, epochs=2, world_size=4, identity="0")
    return tmp_path / "run"


def worker(rank: int) -> Runtime:
    return Runtime(rank, 4, rank, 4, torch.device("cpu"), 1)


def track(config: RunConfig, runtime: Runtime, run_dir: Path) -> None:
    with Tracker(config, runtime, run_dir, steps_per_epoch=20) as tracker:
        tracker.advance()
        tracker.log_step(epoch=1, step=10, loss=2.0, lr=0.1, data_wait_s=0.0, communication_wait_s=0.0)
        tracker.end_epoch(ROW)
        tracker.end_epoch({key: value for key, value in ROW.items() if not key.startswith("val")} | {"epoch": 2})


def test_rank_0_writes_rows_and_a_line_for_each_epoch(
    config: RunConfig, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    track(config, worker(0), run_dir)
    metrics = pd.read_csv(run_dir / "metrics.csv")
    assert metrics["epoch"].tolist() == [1, 2]
    assert metrics.iloc[0].to_dict() == pytest.approx(ROW)
    assert metrics["val_acc1"].isna().tolist() == [False, True]
    (step,) = [json.loads(line) for line in (run_dir / "steps.jsonl").read_text().splitlines()]
    assert step["loss"] == 2.0
    summary = rundir.read_json(run_dir / "summary.json")
    assert summary["best_acc1"] == summary["val_acc1"] == 50.0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == describe_epoch(ROW, 3)
    assert "val_acc1 50.00 %" in lines[0]
    assert "val_acc1" not in lines[1]


def test_other_ranks_write_nothing(config: RunConfig, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(run_dir.rglob("*"))
    track(config, worker(1), run_dir)
    assert sorted(run_dir.rglob("*")) == before
    assert capsys.readouterr().out == ""


def read_all(terminal: int) -> str:
    """What is shown on a terminal until its last writer closes it."""
    shown = b""
    with suppress(OSError):  # how Linux says that nobody has the other end open any more
        while piece := os.read(terminal, 4096):
            shown += piece
    return shown.decode()


def test_a_terminal_gets_a_bar(config: RunConfig, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    ours, theirs = os.openpty()
    with ThreadPoolExecutor(1) as reader:
        reading = reader.submit(read_all, ours)
        with os.fdopen(theirs, "w") as terminal, monkeypatch.context() as patched:
            patched.setattr("sys.stdout", terminal)
            track(config, worker(0), run_dir)
        shown = reading.result(timeout=60)
    os.close(ours)
    assert "steps" in shown
    assert "loss 2.000" in shown
    assert "images/s" in shown


def test_wandb_offline_keeps_the_curves_and_leaks_no_key(
    config: RunConfig, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_SILENT", "true")
    config.tracking.wandb = WandbMode.offline
    track(config, worker(0), run_dir)
    (written,) = run_dir.glob("wandb/offline-run-*/run-*.wandb")
    end = time.monotonic() + 60
    while b"consensus_distance" not in written.read_bytes():  # another process writes it
        assert time.monotonic() < end
        time.sleep(0.05)
    for file in run_dir.rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes(), file


def test_the_run_file_says_what_was_run(run_dir: Path) -> None:
    run = rundir.read_json(run_dir / "run.json")
    assert run["status"] == "running"
    assert run["overrides"] == ["a=1"]
    assert run["world_size"] == 4
    assert "torch" in run["versions"]
    rundir.finish(run_dir, "failed", "rank 1 failed: for a reason")
    run = rundir.read_json(run_dir / "run.json")
    assert (run["status"], run["error"]) == ("failed", "rank 1 failed: for a reason")
    assert run["end"] >= run["start"]
    assert rundir.read_json(run_dir / "summary.json") == {"status": "failed"}


def test_exit_records_are_read_back_by_rank(run_dir: Path) -> None:
    for rank in (2, 0):
        rundir.write_exit_record(run_dir, rundir.ExitRecord(rank, "raised", 1.0, "ValueError: no", "Traceback"))
    records = rundir.read_exit_records(run_dir)
    assert list(records) == [0, 2]
    assert records[2].error == "ValueError: no"
