"""Runs and commands whose disk is full."""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors import SafetensorError
from typer.testing import CliRunner

from imgnet import rundir
from imgnet.checkpoint.export import export_tensors
from imgnet.checkpoint.folder import check_worker
from imgnet.checkpoint.manifest import read_manifest, steps_of
from imgnet.cli import app
from imgnet.launch.slurm import commands as slurm
from imgnet.launch.slurm.commands import JobState
from imgnet.launch.slurm.snapshot import take_snapshot
from tests.commands import imgnet, run_py, start_run_py
from tests.disks import mounted
from tests.test_launch_processes import only_run, quick, read, wait_until

NUM_EPOCHS = 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", megabytes=32) as folder:
        yield folder


def fill(path: Path) -> None:
    """Write a file that takes all that is left."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 8, 1):
            with suppress(OSError):
                while file.write(bytes(size)):
                    pass


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    """A folder with an sbatch that takes everything, and a scancel; both write down what they were told."""
    folder = tmp_path / "bin"
    folder.mkdir()
    told = f"echo \"$0 $*\" >> '{folder}/told'"
    answers = {
        "sbatch": f"{told}\necho Submitted batch job 7",
        "scancel": told,
        "scontrol": "echo 'ClusterName = here'",
        "squeue": "",
    }
    for name, text in answers.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    return folder


def submit(disk: Path, commands: Path) -> subprocess.CompletedProcess[str]:
    settings = ("seed=range(1,16)", "cluster=4xA40")
    return run_py("+experiments=quickstart", *settings, cwd=disk, PATH=f"{commands}:/usr/bin:/bin")


def told(commands: Path) -> list[str]:
    return [line.partition("bin/")[2] for line in (commands / "told").read_text().splitlines()]


@pytest.mark.parametrize("rooms", [0, 0.5, 1.05], ids=["nothing", "half the code", "the code and some runs"])
def test_what_a_full_disk_does_not_take_is_not_submitted(disk: Path, commands: Path, rooms: float) -> None:
    theirs = disk / "somebody else's"
    free = os.statvfs(disk).f_bavail
    take_snapshot(disk / "code")
    size = free - os.statvfs(disk).f_bavail
    shutil.rmtree(disk / "code")
    fill(theirs)
    os.truncate(theirs, theirs.stat().st_size - int(rooms * size) * os.statvfs(disk).f_frsize)
    done = submit(disk, commands)
    assert done.returncode == 2, done.stderr
    assert re.fullmatch(
        rf"nothing is submitted: {disk}/multirun_outputs/.*: No space left on device \(errno 28\)\n", done.stderr
    )
    assert told(commands) == ["sbatch --test-only"]
    assert list(disk.iterdir()) == [theirs]


def test_a_job_whose_number_cannot_be_kept_is_ended(disk: Path, commands: Path) -> None:
    filled = disk / "somebody else's"
    fills = f'case "$*" in *submission_file*) cat /dev/zero > "{filled}" 2>/dev/null;; esac'
    sbatch = commands / "sbatch"
    sbatch.write_text(sbatch.read_text().replace("echo Sub", f"{fills}\necho Sub"))
    done = submit(disk, commands)
    assert done.returncode == 2, done.stderr
    assert "No space left on device (errno 28)" in done.stderr
    assert done.stderr.count("\n") == 1
    assert [line.split()[0] for line in told(commands)] == ["sbatch", "sbatch", "scancel"]
    assert told(commands)[-1] == "scancel 7"
    assert list(disk.iterdir()) == [filled]


@pytest.mark.parametrize("room", [0, 64 << 10], ids=["nothing", "some of the code"])
def test_what_a_full_disk_does_not_take_is_not_submitted_again(disk: Path, commands: Path, room: int) -> None:
    assert submit(disk, commands).returncode == 0
    (folder,) = disk.glob("multirun_outputs/*/*")
    shutil.rmtree(folder / "code")
    theirs = disk / "somebody else's"
    fill(theirs)
    os.truncate(theirs, theirs.stat().st_size - room)
    done = imgnet("resubmit", str(folder), cwd=disk, PATH=f"{commands}:/usr/bin:/bin")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r".*: No space left on device \(errno 28\)\n", done.stderr)
    assert sum("submission_file" in line for line in told(commands)) == 1, "that of the first time"
    assert not [path for path in folder.iterdir() if "code" in path.name or path.name.startswith(".")]


def test_a_run_that_cannot_begin_says_so(disk: Path) -> None:
    theirs = disk / "somebody else's"
    fill(theirs)
    done = run_py("+experiments=quickstart", cwd=disk)
    assert done.returncode == 1
    assert re.fullmatch(r"not begun: .*: No space left on device \(errno 28\)\n", done.stderr)
    assert list(disk.iterdir()) == [theirs]


def test_status_needs_no_room(disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = disk / "sweep/0"
    rundir.create(run_dir, "{}\n", overrides=["seed=1"], seed=1, epochs=9, world_size=4, identity="", status="running")
    rundir.write_atomically(run_dir / "submission.json", '{"slurm_job_id": "7"}')
    fill(disk / "somebody else's")
    monkeypatch.setattr(slurm, "cluster_name", lambda: "here")
    monkeypatch.setattr(slurm, "job_states", lambda *_, **__: {"7": JobState("NODE_FAIL")})
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    shown = CliRunner().invoke(app, ["status", str(disk)])
    assert shown.exit_code == 0, shown.output
    assert "Slurm lost a node" in shown.output
    assert before == {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}


def test_nothing_is_left_of_what_does_not_fit(disk: Path) -> None:
    (disk / "run.json").write_text("{}")
    fill(disk / "somebody else's")
    before = set(disk.iterdir())
    with pytest.raises(OSError, match=rf"No space left on device: '{disk}/run.json'"):
        rundir.write_atomically(disk / "run.json", "x" * 9999)
    with pytest.raises((OSError, SafetensorError), match="No space left"):
        export_tensors(disk / "final.safetensors", {"weight": torch.zeros(99999)}, {})
    assert set(disk.iterdir()) == before
    assert (disk / "run.json").read_text() == "{}"


def test_training_goes_on_while_the_disk_is_full_and_no_row_is_lost(disk: Path, digits_root: Path) -> None:
    outside = disk.parent
    process = start_run_py(*quick(digits_root, f"epochs={NUM_EPOCHS}"), cwd=disk, out_in=outside)

    def printed(text: str) -> bool:
        return text in (outside / "out.txt").read_text()

    try:
        wait_until(lambda: bool(list(disk.glob("multirun_outputs/*/*/*/checkpoints/step_*"))), process, outside)
        run_dir, theirs = only_run(disk), disk / "somebody else's"
        before = steps_of(run_dir / "checkpoints")
        fill(theirs)
        for warning in ("summary.json not written for now: No space left", "warning: checkpoint of step "):
            wait_until(lambda warning=warning: printed(warning), process, outside)
        theirs.unlink()
        process.wait(timeout=90)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert process.returncode == 0, (outside / "out.txt").read_text()
    assert not printed("Traceback")
    assert before
    assert read(run_dir / "run.json")["status"] == "completed"
    assert pd.read_csv(run_dir / "metrics.csv")["epoch"].tolist() == list(range(1, NUM_EPOCHS + 1))
    newest = steps_of(run_dir / "checkpoints")[0]
    assert read_manifest(newest).epoch == NUM_EPOCHS
    check_worker(newest, 0)
