"""The profile of four gloo workers, one of which is slow: its parts add up, and it is found."""

import gzip
import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from torch import nn

from imgnet import train
from imgnet.config import (
    AllReduceConfig,
    DecentralizedConfig,
    ProfileConfig,
    RunConfig,
    SimulatedConfig,
    WireDtype,
)
from imgnet.profile.activity import Activity
from imgnet.results.files import Problems
from imgnet.results.profile import Profile, profile_of
from imgnet.results.read import read_run
from imgnet.rundir import PROFILE, write_run
from imgnet.runtime import Runtime
from imgnet.tracking.tracker import steps_file
from tests.distributed.harness import NOBODY_WATCHES, on_workers
from tests.distributed.models import SGD
from tests.distributed.test_resume import STEPS_PER_EPOCH, assert_same, configuration, make

SLOW, DELAY_MS = 2, 150.0
"""Much beside what other tests on the same cores take from a worker in a step."""
ROWS_EVERY = STEPS_PER_EPOCH - 2
"""So that an epoch ends between two rows."""
CLOCK_US = 0.002
"""Times are written to the nanosecond."""
RECORDED = ProfileConfig(steps=STEPS_PER_EPOCH + 2, start_step=3)
"""The end of an epoch, and its evaluation, are among them."""
TOPOLOGIES = {
    "allreduce": AllReduceConfig(name="allreduce"),
    "complete": DecentralizedConfig(name="complete", wire_dtype=WireDtype.bf16),  # half of its messages start behind
}


build_model = train.build_model


def slow_model(*arguments: Any, **options: Any) -> nn.Module:
    model = build_model(*arguments, **options)
    model.register_forward_pre_hook(lambda *_: time.sleep(DELAY_MS / 1e3) if model.training else None)
    return model


def run_all(runtime: Runtime, runs: list[tuple[RunConfig, Path]]) -> None:
    torch.set_num_threads(1)
    train.build_model = slow_model if runtime.rank == SLOW else build_model  # type: ignore[assignment]
    run_here(runtime, runs)


def run_here(runtime: Runtime, runs: list[tuple[RunConfig, Path]]) -> None:
    for config, run_dir in runs:
        train.run(config, runtime, run_dir, threading.Event(), NOBODY_WATCHES)


def prepared(folder: Path, config: RunConfig, workers: int) -> tuple[RunConfig, Path]:
    write_run(make(folder), world_size=workers)
    return config, folder


def profile_in(run_dir: Path) -> Profile:
    problems = Problems()
    run = read_run(run_dir, problems)
    assert run is not None
    return profile_of(run, problems)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each topology recorded, and one of them not."""
    folder = tmp_path_factory.mktemp("profiles")
    config = replace(configuration("ring", SGD), epochs=2, log_every_steps=1)
    made = [
        prepared(folder / name, replace(config, topology=topology, profile=RECORDED), 4)
        for name, topology in TOPOLOGIES.items()
    ]
    plain = prepared(folder / "plain", replace(config, topology=TOPOLOGIES["complete"], log_every_steps=ROWS_EVERY), 4)
    on_workers(run_all, 4, folder, [*made, plain])
    return folder


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_parts_add_up_to_the_step_that_the_clock_shows(runs: Path, name: str) -> None:
    first, number = RECORDED.start_step, RECORDED.steps
    profile = profile_in(runs / name)
    assert [worker.rank for worker in profile.workers] == [0, 1, 2, 3]
    missing = []
    for worker in profile.workers:
        rows = [json.loads(line) for line in steps_file(runs / name, worker.rank).read_text().splitlines()]
        measured = sum(row["step_s"] for row in rows if first < row["step"] <= first + number) / number * 1e3
        parts = [worker.data_ms, worker.forward_ms, worker.backward_ms, worker.update_ms, worker.exposed_ms]
        missing.append(1 - (sum(parts) + worker.other_ms) / measured)
        assert min(parts) >= 0
        assert worker.num_steps == number
        assert worker.memory_peak_mb > 100
    # A busy machine takes the processor from a worker between two readings of the clock; a part that is forgotten is so
    # on all workers.
    assert median(map(abs, missing)) < 0.03
    slow, other = profile.workers[SLOW], profile.workers[0]
    assert slow.forward_ms > max(DELAY_MS, other.forward_ms + 0.8 * DELAY_MS)


def test_rows_of_every_worker_hold_steps_alone(runs: Path) -> None:
    for rank in range(4):
        for line in steps_file(runs / "plain", rank).read_text().splitlines():
            row = json.loads(line)
            assert row["compute_s"] > 0, f"rank {rank} waited longer than its steps took: {row}"


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_a_slow_worker_shows_as_skew_of_its_own(runs: Path, name: str) -> None:
    profile = profile_in(runs / name)
    assert profile.slowest.rank == SLOW
    assert profile.skew_ms(profile.slowest) > 0.7 * DELAY_MS
    waiting = [worker.exposed_ms for worker in profile.workers]
    assert min(waiting[:SLOW] + waiting[SLOW + 1 :]) > waiting[SLOW] + 0.3 * DELAY_MS
    for worker in profile.workers:
        assert worker.communication_ms > 0
        assert worker.overlap is not None
        assert 0 <= worker.overlap <= 1


def assert_nested(events: list[dict[str, Any]]) -> None:
    """What Perfetto draws: on each track an event lies in another or beside it."""
    tracks: dict[Any, list[tuple[float, float, str]]] = {}
    for event in events:
        end = event["ts"] + event["dur"]
        tracks.setdefault((event["pid"], event["tid"]), []).append((event["ts"], -end, event["name"]))
    for track in tracks.values():
        around: list[float] = []
        for start, minus_end, name in sorted(track):
            while around and around[-1] <= start:
                around.pop()
            assert not around or -minus_end <= around[-1] + CLOCK_US, name
            around.append(-minus_end)


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_traces_hold_every_span_and_messages_in_lanes(runs: Path, name: str) -> None:
    for rank in range(4):
        with gzip.open(runs / name / PROFILE / f"rank_{rank}.trace.json.gz") as file:
            events = [event for event in json.load(file)["traceEvents"] if event["ph"] == "X"]
        names = {event["name"] for event in events}
        spans = {activity.value for activity in Activity}
        missing = {Activity.exposed.value} if name == "allreduce" else set()  # it waits inside its backward pass
        assert spans - names == missing
        assert len([name for name in names if name.startswith("ProfilerStep#")]) == RECORDED.steps
        assert {event["tid"] for event in events if event["name"].startswith("gloo:")} <= set(range(1, 100))  # lanes
        assert_nested(events)


def test_recording_changes_no_bit_and_leaves_nothing_where_it_is_off(runs: Path) -> None:
    assert_same(runs / "complete", runs / "plain")
    assert not (runs / "plain" / PROFILE).exists()


def test_one_worker_and_simulated_ones_are_recorded(tmp_path: Path) -> None:
    config = replace(configuration("ring", SGD), profile=RECORDED, epochs=2)
    alone = replace(config, topology=TOPOLOGIES["allreduce"])
    simulated = replace(config, cluster=SimulatedConfig(name="simulated", num_workers=4))
    made = [prepared(tmp_path / "alone", alone, 1), prepared(tmp_path / "simulated", simulated, 4)]
    on_workers(run_here, 1, tmp_path, made)
    for _, run_dir in made:
        (worker,) = profile_in(run_dir).workers
        assert worker.step_ms >= worker.forward_ms + worker.backward_ms > 0
    assert profile_in(tmp_path / "simulated").workers[0].overlap is None
