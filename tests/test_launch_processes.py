"""Whole commands with real workers: how they train, how they fail, how they are stopped."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest

from tests.commands import ROOT, environment, run_py, start_run_py

DEADLINE_S = 90


def quick(digits_root: Path, *more: str) -> list[str]:
    return ["+experiments=quickstart", f"data.root={digits_root}", *more]


def only_run(cwd: Path) -> Path:
    (found,) = cwd.glob("multirun_outputs/*/*/*/run.json")
    return found.parent


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str], cwd: Path) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert process.poll() is None, (cwd / "out.txt").read_text()
        assert time.monotonic() < end, (cwd / "out.txt").read_text()
        time.sleep(0.05)


def children_of(pid: int) -> list[int]:
    done = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    direct = [int(line) for line in done.stdout.split()]
    return direct + [grandchild for child in direct for grandchild in children_of(child)]


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.fixture
def training(tmp_path: Path, digits_root: Path) -> tuple[subprocess.Popen[str], Path, list[int]]:
    """A run of four workers in the midst of its epochs: the command, its run directory, all its processes."""
    process = start_run_py(*quick(digits_root, "epochs=100000"), cwd=tmp_path)

    wait_until(lambda: has_rows(tmp_path, 2), process, tmp_path)
    return process, only_run(tmp_path), children_of(process.pid)


def worker_pids(processes: list[int]) -> list[int]:
    """The processes that write a worker's log."""
    found = []
    for pid in processes:
        with suppress(FileNotFoundError):  # it may just have ended
            files = [link.resolve() for link in Path(f"/proc/{pid}/fd").iterdir()]
            if any(file.suffix == ".log" for file in files):
                found.append(pid)
    return found


def test_a_killed_worker_ends_the_command(
    training: tuple[subprocess.Popen[str], Path, list[int]], tmp_path: Path
) -> None:
    process, run_dir, processes = training
    workers = worker_pids(processes)
    assert len(workers) == 4
    os.kill(workers[2], signal.SIGKILL)
    assert process.wait(timeout=15) == 1
    said = (tmp_path / "out.txt").read_text()
    assert "failed: killed" in said
    assert "Traceback" not in said, "no error of another rank may pose as the cause"
    run = read(run_dir / "run.json")
    assert run["status"] == "failed"
    assert run["error"].startswith("rank ")
    assert read(run_dir / "summary.json")["status"] == "failed"
    wait_until_gone(processes)


def test_a_worker_that_stops_is_named(tmp_path: Path, digits_root: Path) -> None:
    command = quick(digits_root, "epochs=100000", "hang_timeout_min=0.1")
    process = start_run_py(*command, cwd=tmp_path, measured=True)
    wait_until(lambda: has_rows(tmp_path, 2), process, tmp_path)
    processes = children_of(process.pid)
    stopped = next(pid for pid in worker_pids(processes) if log_of(pid) == "rank_2.log")
    os.kill(stopped, signal.SIGSTOP)
    wait_until((only_run(tmp_path) / "logs" / "rank_0.exit.json").exists, process, tmp_path)
    os.kill(stopped, signal.SIGCONT)  # else the launcher waits half a minute before it kills what does not hear
    assert process.wait(timeout=60) == 1
    error = read(only_run(tmp_path) / "run.json")["error"]
    assert re.fullmatch(r"no step for \S+ min, because of rank 2 on (\S+): rank 2 on \1 is stopped \(SIGSTOP\)", error)
    assert error in (tmp_path / "out.txt").read_text()
    wait_until_gone(processes)


def log_of(pid: int) -> str:
    """The log that a worker writes."""
    return next(link.resolve().name for link in Path(f"/proc/{pid}/fd").iterdir() if link.resolve().suffix == ".log")


def test_a_second_ctrl_c_ends_all_workers_at_once(
    training: tuple[subprocess.Popen[str], Path, list[int]], tmp_path: Path
) -> None:
    process, run_dir, processes = training
    os.kill(worker_pids(processes)[1], signal.SIGSTOP)  # nobody can save without it
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    wait_until(lambda: "Ctrl-C again" in (tmp_path / "out.txt").read_text(), process, tmp_path)
    os.killpg(process.pid, signal.SIGINT)
    os.kill(worker_pids(processes)[1], signal.SIGCONT)
    assert process.wait(timeout=20) == 130  # what saves has half a minute
    assert "Traceback" not in (tmp_path / "out.txt").read_text()
    assert read(run_dir / "run.json")["status"] == "failed"
    assert read(run_dir / "run.json")["error"] == "interrupted"
    wait_until_gone(processes)


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_ctrl_c_and_term_save_and_the_same_command_goes_on(
    number: signal.Signals, tmp_path: Path, digits_root: Path
) -> None:
    command = quick(digits_root, "epochs=20", "optimizer.warmup_epochs=1", "cluster.cpu_workers_per_node=2")
    process = start_run_py(*command, cwd=tmp_path)
    wait_until(lambda: has_rows(tmp_path, 2), process, tmp_path)
    processes = children_of(process.pid)
    if number is signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    assert process.wait(timeout=DEADLINE_S) == 130
    wait_until_gone(processes)
    run_dir = only_run(tmp_path)
    assert read(run_dir / "run.json")["status"] == "preempted"
    done = run_py(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "every worker goes on exactly" in done.stdout
    assert only_run(tmp_path) == run_dir, "it goes on in the same directory"
    assert pd.read_csv(run_dir / "metrics.csv")["epoch"].tolist() == list(range(1, 21))
    run = read(run_dir / "run.json")
    assert run["status"] == "completed"
    assert run["earlier"][0]["status"] == "preempted"


def has_rows(cwd: Path, count: int) -> bool:
    files = list(cwd.glob("multirun_outputs/*/*/*/metrics.csv"))
    return bool(files) and len(files[0].read_text().splitlines()) > count


def test_a_killed_launcher_leaves_no_worker_behind(
    training: tuple[subprocess.Popen[str], Path, list[int]],
) -> None:
    process, run_dir, processes = training
    process.kill()
    process.wait()
    wait_until_gone(processes)
    assert read(run_dir / "run.json")["status"] == "failed"
    assert read(run_dir / "run.json")["error"] == "the launcher was killed"


def wait_until_gone(processes: list[int]) -> None:
    end = time.monotonic() + 15
    while any(is_alive(pid) for pid in processes):
        assert time.monotonic() < end, f"still alive: {[pid for pid in processes if is_alive(pid)]}"
        time.sleep(0.05)


def test_a_worker_that_raises_is_named_with_its_one_traceback(tmp_path: Path, digits_root: Path) -> None:
    broken = tmp_path / "digits"
    subprocess.run(["cp", "-r", str(digits_root), str(broken)], check=True)
    image = sorted((broken / "train" / "3").iterdir())[0]
    image.write_bytes(image.read_bytes()[:100])
    folder_data = ["data.kind=folder", f"data.root={broken}"]
    done = run_py("-m", *quick(broken, *folder_data, "seed=1,2"), cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("Traceback (most recent call last)") == 2, "one for each of two runs"
    assert "failed: " in done.stderr
    assert image.name in done.stderr
    assert "2 of 2 runs failed" in done.stderr
    for file in tmp_path.glob("multirun_outputs/*/*/*/run.json"):
        assert read(file)["status"] == "failed"
        assert image.name in read(file)["error"]


def test_a_sweep_compares_its_runs_and_its_models_can_be_scored_again(tmp_path: Path, digits_root: Path) -> None:
    short = ["epochs=4", "optimizer.warmup_epochs=1", "cluster.cpu_workers_per_node=2"]
    done = run_py("-m", *quick(digits_root, *short, "topology=allreduce,ring"), cwd=tmp_path, measured=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert re.search(r"^ +allreduce +completed +\d", done.stdout, re.MULTILINE)
    assert re.search(r"^ +ring +completed +\d", done.stdout, re.MULTILINE)
    runs = sorted(file.parent for file in tmp_path.glob("multirun_outputs/*/*/*/run.json"))
    assert [run.name for run in runs] == ["0", "1"]
    for run in runs:
        check_run_directory(run, epochs=4, workers=2)
    distances = [read(run / "summary.json")["consensus_distance"] for run in runs]
    assert distances[0] == 0
    assert distances[1] > 0
    score_again(runs[1], tmp_path, digits_root)
    plot(runs, tmp_path)


def check_run_directory(run: Path, epochs: int, workers: int) -> None:
    metrics = pd.read_csv(run / "metrics.csv")
    assert list(metrics["epoch"]) == list(range(1, epochs + 1))
    assert metrics["val_acc1"].between(0, 100).all()
    assert (metrics["num_val_images"] == 360).all()
    assert metrics["train_time_s"].is_monotonic_increasing
    steps = [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()]
    assert [row["step"] for row in steps] == list(range(10, 22 * epochs + 1, 10))
    for row in steps:
        parts = row["data_s"] + row["compute_s"] + row["communication_s"]
        assert row["step_s"] == pytest.approx(parts)
    summary, about = read(run / "summary.json"), read(run / "run.json")
    assert summary["status"] == about["status"] == "completed"
    assert summary["val_acc1"] == pytest.approx(metrics["val_acc1"].iloc[-1])
    assert summary["best_acc1"] == pytest.approx(metrics["val_acc1"].max())
    assert about["world_size"] == workers
    assert {file.name for file in (run / "logs").glob("*.log")} == {f"rank_{rank}.log" for rank in range(workers)}
    assert {file.name for file in (run / ".hydra").iterdir()} == {"config.yaml", "overrides.yaml", "hydra.yaml"}
    assert {file.name for file in (run / "checkpoints").iterdir()} >= {"best.safetensors", "final.safetensors"}


def score_again(run: Path, cwd: Path, digits_root: Path) -> None:
    model = run / "checkpoints" / "final.safetensors"
    done = run_py(
        *quick(digits_root, "mode=evaluate", f"model.weights={model}", "cluster.cpu_workers_per_node=3", "name=again"),
        cwd=cwd,
    )
    assert done.returncode == 0, done.stderr
    (found,) = cwd.glob("multirun_outputs/*/*_again/0/summary.json")
    assert read(found)["val_acc1"] == read(run / "summary.json")["val_acc1"]
    assert read(found)["num_images"] == 360


def plot(runs: list[Path], cwd: Path) -> None:
    picture = cwd / "curves.png"
    command = [sys.executable, "-m", "imgnet", "plot", str(runs[0].parent), "--out", str(picture)]
    done = subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_same_command_is_a_worker_under_torchrun(tmp_path: Path, digits_root: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = quick(digits_root, "topology=exp", "epochs=3", "name=inside")
    done = subprocess.run(
        [*command, str(ROOT / "run.py"), *arguments],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path)
    assert read(run / "run.json")["status"] == "completed"
    assert read(run / "run.json")["world_size"] == 2
    assert len(pd.read_csv(run / "metrics.csv")) == 3


def test_a_failure_under_another_launcher_is_seen(tmp_path: Path, digits_root: Path) -> None:
    settings = ("topology=allreduce", "cluster.cpu_workers_per_node=1", "epochs=3", "optimizer.lr=1e30")
    done = run_py(*quick(digits_root, *settings), "hydra/launcher=basic", cwd=tmp_path)
    assert done.returncode == 1, done.stdout
    assert "the training loss is nan" in done.stderr
    assert read(only_run(tmp_path) / "run.json")["status"] == "failed"


def test_the_published_launcher_runs_on_this_machine(tmp_path: Path, digits_root: Path) -> None:
    small = ("max_steps=2", "cluster.cpu_workers_per_node=2")
    done = run_py(*quick(digits_root, *small, "hydra/launcher=submitit_local"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = read(only_run(tmp_path) / "run.json")
    assert (run["status"], run["world_size"]) == ("completed", 2)
