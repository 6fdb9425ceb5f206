"""What a run writes and shows."""

import json
import os
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from imgnet import rundir
from imgnet.cli import app
from imgnet.config import RunConfig, WandbMode
from imgnet.runtime import Runtime
from imgnet.tracking import send, wandb_file
from imgnet.tracking.display import describe_epoch
from imgnet.tracking.system import SystemMonitor
from imgnet.tracking.tracker import COLUMNS, Tracker
from tests.composing import composed

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
    "sent_mb": 12.5,
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


def test_other_ranks_write_their_own_steps_and_show_nothing(
    config: RunConfig, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = set(run_dir.rglob("*"))
    track(config, worker(1), run_dir)
    folder = run_dir / "workers"
    assert set(run_dir.rglob("*")) - before == {folder, folder / "steps_1.jsonl", folder / "system_1.jsonl"}
    (step,) = [json.loads(line) for line in (folder / "steps_1.jsonl").read_text().splitlines()]
    assert step["step"] == 10
    assert capsys.readouterr().out == ""


def test_a_worker_says_what_it_takes_of_its_machine(tmp_path: Path) -> None:
    monitors = [SystemMonitor(tmp_path, rank, torch.device("cpu"), every_s=3600) for rank in (1, 0)]
    held = bytearray(os.urandom(1)) * (64 * 2**20)
    for monitor in monitors:
        monitor.start()
    for monitor in monitors:
        monitor.stop()
    row = json.loads((tmp_path / "system_1.jsonl").read_text())
    assert row["memory_mb"] > len(held) / 2**20
    assert row["memory_peak_mb"] >= psutil.Process().memory_info().rss / 2**20 * 0.9 > len(held) / 2**20
    assert 0 <= row["cpu_cores"] <= (os.cpu_count() or 1) + 1
    newest = monitors[1].newest()
    assert newest["rank_1/memory_mb"] == row["memory_mb"]
    assert "rank_0/cpu_cores" in newest
    assert monitors[1].newest() == {}


def test_rows_of_an_earlier_attempt_are_not_taken_for_this_ones(tmp_path: Path) -> None:
    (tmp_path / "system_7.jsonl").write_text(json.dumps({"time": 1.0, "cpu_cores": 3.0}) + "\n")
    monitor = SystemMonitor(tmp_path, 0, torch.device("cpu"), every_s=3600)
    monitor.start()
    monitor.stop()
    assert {name.partition("/")[0] for name in monitor.newest()} == {"rank_0"}


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


def three_attempts(config: RunConfig, run_dir: Path) -> None:
    """A run that is requeued twice: once where it was saved at the end, once from a checkpoint two epochs back."""
    for done, epochs in ((0, (1, 2)), (40, (3, 4)), (40, (3, 4, 5))):
        with Tracker(config, worker(0), run_dir, steps_per_epoch=20, done_steps=done) as tracker:
            for epoch in epochs:
                for step in (20 * epoch - 10, 20 * epoch):
                    tracker.log_step(
                        epoch=epoch, step=step, loss=2.0 / step, lr=0.1, data_wait_s=0.0, communication_wait_s=0.0
                    )
                scores = {} if epoch == 2 else {key: 0.1 + epoch for key in ROW if key.startswith("val")}
                without = {key: value for key, value in ROW.items() if not key.startswith("val")}
                tracker.end_epoch(without | scores | {"epoch": epoch, "step": 20 * epoch, "train_loss": 1 / epoch})


@pytest.fixture
def quiet_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB__SERVICE_WAIT", "150")  # seconds that a busy machine may need to start its process


@pytest.mark.usefixtures("quiet_wandb")
def test_wandb_offline_holds_each_row_once_over_two_requeues_and_no_key(config: RunConfig, run_dir: Path) -> None:
    (run_dir / "code.diff").write_text("+width = 96\n")
    config.tracking.wandb = WandbMode.offline
    three_attempts(config, run_dir)
    pieces = wandb_file.pieces(run_dir)
    assert len(pieces) == 3
    rows = [row for piece in pieces for row in wandb_file.history(piece)]
    found = [{key: row[key] for key in COLUMNS if key in row} for row in rows if "epoch" in row]
    metrics = [
        {key: value for key, value in row.items() if value == value}
        for row in pd.read_csv(run_dir / "metrics.csv").to_dict("records")
    ]
    assert found == metrics
    assert [row["epoch"] for row in found] == [1, 2, 3, 4, 5]
    steps = [row["step/step"] for row in rows if "step/step" in row]
    assert steps == [json.loads(line)["step"] for line in (run_dir / "steps.jsonl").read_text().splitlines()]
    assert any("system/rank_0/memory_mb" in row for row in rows)
    assert (pieces[-1] / "files" / "code.diff").read_text() == "+width = 96\n"
    for file in run_dir.rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes(), file


@pytest.mark.usefixtures("quiet_wandb")
def test_wandb_is_told_configuration_commit_and_sweep(config: RunConfig, run_dir: Path) -> None:
    from wandb.proto import wandb_internal_pb2

    config.tracking.wandb = WandbMode.offline
    track(config, worker(0), run_dir)
    (piece,) = wandb_file.pieces(run_dir)
    records = [wandb_internal_pb2.Record.FromString(data) for data in wandb_file.records(piece)]
    run = next(record.run for record in records if record.WhichOneof("record_type") == "run")
    told = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert told["topology"]["name"] == "ring"
    assert told["optimizer"]["lr"] == config.optimizer.lr
    assert told["run"]["commit"] == run.git.commit == rundir.read_json(run_dir / "run.json")["commit"]
    assert run.run_group == f"{run_dir.parent.parent.name} {run_dir.parent.name}"
    assert run.run_id == rundir.read_json(run_dir / "run.json")["wandb_id"]


def cut_in_half(written: bytes) -> bytes:
    return written[: len(written) // 2]


def flip_a_bit(written: bytes) -> bytes:
    return written[:-20] + bytes([written[-20] ^ 1]) + written[-19:]


@pytest.mark.usefixtures("quiet_wandb")
@pytest.mark.parametrize("damage", [cut_in_half, flip_a_bit, lambda written: b""])
def test_a_damaged_piece_is_read_as_far_as_it_goes(
    config: RunConfig, run_dir: Path, damage: Callable[[bytes], bytes]
) -> None:
    config.tracking.wandb = WandbMode.offline
    three_attempts(config, run_dir)
    last = wandb_file.pieces(run_dir)[-1]
    whole = list(wandb_file.history(last))
    (file,) = last.glob("*.wandb")
    file.write_bytes(damage(file.read_bytes()))
    read = list(wandb_file.history(last))
    assert read == whole[: len(read)]


def test_tensorboard_reads_each_row_once_over_two_requeues(config: RunConfig, run_dir: Path) -> None:
    (run_dir / "code.diff").write_text("+width = 96\n")
    config.tracking.tensorboard = True
    three_attempts(config, run_dir)
    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    metrics = pd.read_csv(run_dir / "metrics.csv")
    for column in COLUMNS:
        written = metrics[metrics[column].notna()]
        read = [(event.step, event.value) for event in events.Scalars(f"epoch/{column}")]
        assert read == [
            (step, pytest.approx(value)) for step, value in zip(written["step"], written[column], strict=True)
        ]
    steps = [json.loads(line) for line in (run_dir / "steps.jsonl").read_text().splitlines()]
    read = [(event.step, event.value) for event in events.Scalars("step/loss")]
    assert read == [(row["step"], pytest.approx(row["loss"])) for row in steps]
    assert "system/rank_0/memory_mb" in events.Tags()["scalars"]
    (text, *_) = events.Tensors("configuration/text_summary")
    assert '"topology"' in text.tensor_proto.string_val[0].decode()
    assert events.Tensors("changes to the commit/text_summary")


def test_a_service_that_fails_ends_no_run(
    config: RunConfig, run_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    config.tracking.tensorboard = True
    with Tracker(config, worker(0), run_dir, steps_per_epoch=20) as tracker, monkeypatch.context() as patched:
        patched.setattr("tensorboard.summary.writer.event_file_writer.EventFileWriter.add_event", fail)
        tracker.end_epoch(ROW)
        tracker.end_epoch(ROW | {"epoch": 2, "step": 40})
    assert pd.read_csv(run_dir / "metrics.csv")["epoch"].tolist() == [1, 2]
    (said,) = [record.message for record in caplog.records if "takes no more rows" in record.message]
    assert said.startswith("TensorBoardEvents takes no more rows")


@pytest.mark.usefixtures("quiet_wandb")
def test_what_is_to_send_is_in_order_and_known_to_wandb(
    config: RunConfig, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.tracking.wandb = WandbMode.offline
    three_attempts(config, run_dir)
    first, second, third = wandb_file.pieces(run_dir)
    shown = CliRunner().invoke(app, ["sync", str(run_dir.parent), "--dry-run"])
    assert shown.output.splitlines() == [
        f"{run_dir}: 2 to send, the newest one when the run is over",
        f"  {first.name}",
        f"  {second.name}",
    ]
    rundir.finish(run_dir, "completed")
    (parcel,) = send.parcels(run_dir.parent)
    assert parcel.pieces == [first, second, third]
    command = send.command_for(parcel)
    known = subprocess.run([*command, "--dry-run"], capture_output=True, text=True, check=True)
    assert all(f"{piece.name}/" in known.stderr for piece in parcel.pieces)
    (first / f"{next(first.glob('*.wandb')).name}.synced").touch()
    (parcel,) = send.parcels(run_dir.parent)
    assert parcel.pieces == [second, third]


def test_a_folder_of_which_nobody_was_told_is_refused(run_dir: Path) -> None:
    done = CliRunner().invoke(app, ["sync", str(run_dir)])
    assert done.exit_code == 2
    assert "tracking.wandb=offline" in done.stderr


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
