"""The benchmark that wants a GPU runs on a CPU, and counts what it says."""

import json
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule
from typer.testing import CliRunner

from benchmarks import gpu
from benchmarks.network_worker import step_s_of_thirds
from benchmarks.spread import spread


def test_the_gpu_benchmark_on_a_cpu() -> None:
    options = "--device cpu --model small_cnn --px 32 --batch 16 --steps 5 --rounds 1 --no-compile"
    result = CliRunner().invoke(gpu.app, options.split())
    assert result.exit_code == 0, result.output
    rows = {row.pop("what"): row for row in map(json.loads, result.stdout.splitlines())}
    assert rows["throughput"]["ours_images_per_s"] > 0
    assert rows["trace, one worker"]["num_steps"] == 3
    assert rows["trace, one worker"]["synchronisations"] == 0
    assert rows["trace, 3 workers, gloo"]["communication_ms"] > 0
    assert rows["checkpoint"]["stall_ms"] > 0


def test_without_a_gpu_it_says_so(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = CliRunner().invoke(gpu.app, [])
    assert result.exit_code == 2
    assert "--device cpu" in result.output


def test_waits_for_the_device_are_counted_in_recorded_steps_alone(tmp_path: Path) -> None:
    value, path = torch.ones(3), tmp_path / "trace.json"
    with profile(activities=[ProfilerActivity.CPU], schedule=schedule(wait=1, warmup=1, active=2)) as profiler:
        for step in range(4):
            for _ in range(step):
                value.sum().item()
            profiler.step()
    profiler.export_chrome_trace(str(path))
    assert gpu.num_synchronisations(json.loads(path.read_text())["traceEvents"]) == 2 + 3


def test_idle_time_is_between_kernels() -> None:
    kernels = [{"cat": "kernel", "ts": start, "dur": 2.0} for start in (0.0, 1.0, 6.0)]
    assert gpu.idle_share(kernels) == 3 / 8
    assert gpu.idle_share([]) is None


def test_thirds_of_the_steps_are_whole_intervals() -> None:
    times = [float(step**2) for step in range(9)]
    assert step_s_of_thirds(times, interval=1) == [2.0, 7.0, 13.0]
    assert step_s_of_thirds(times, interval=4) == [4.0, 12.0]
    assert step_s_of_thirds(times, interval=8) == [8.0]
    assert step_s_of_thirds(times, interval=1_000_000) == [8.0]


def test_a_spread_has_the_median_the_least_and_the_most() -> None:
    assert spread([3.0, 1.0, 2.0]) == "2.00 (1.00 to 3.00)"
    assert spread([0.25], ".1%") == "25.0%"
