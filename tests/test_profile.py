"""What a trace says, on traces that are written by hand; what is refused; and the table of a run."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from imgnet.cli import app
from imgnet.config import Mode, ProfileConfig
from imgnet.profile.activity import Activity
from imgnet.profile.checks import problems
from imgnet.profile.intervals import Intervals, difference, intersection, length, union
from imgnet.profile.recorder import Recorder
from imgnet.profile.spans import span
from imgnet.profile.trace import Times, Worker, times_of, with_lanes
from imgnet.rundir import PROFILE
from imgnet.runtime import Runtime
from tests.distributed.models import SGD
from tests.distributed.test_resume import configuration
from tests.run_directories import write_run

some_intervals = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)).map(sorted).map(tuple), max_size=8)


def moments(intervals: Intervals) -> set[int]:
    return {moment for start, end in intervals for moment in range(int(start), int(end))}


@given(some_intervals, some_intervals)
def test_intervals_are_sets(some: Intervals, others: Intervals) -> None:
    one, other = union(some), union(others)
    assert moments(one) == moments(some)
    assert moments(intersection(one, other)) == moments(some) & moments(others)
    assert moments(difference(one, other)) == moments(some) - moments(others)
    assert length(one) == len(moments(some))
    for made in (one, intersection(one, other), difference(one, other)):
        assert all(start < end for start, end in made)
        assert made == sorted(made)


def event(name: str, start_ms: float, end_ms: float, kind: str = "user_annotation", tid: int = 7) -> dict[str, Any]:
    return {
        "ph": "X", "cat": kind, "name": name, "pid": 1, "tid": tid, "ts": 1e3 * start_ms,
        "dur": 1e3 * (end_ms - start_ms),
    }  # fmt: skip


def test_a_wait_inside_the_backward_pass_is_exposed() -> None:
    """Two steps of DistributedDataParallel on a CPU; the second holds an evaluation, which is none of its time."""
    events = [
        event("ProfilerStep#1", 0, 100), event("data", 0, 10), event("forward", 10, 40),
        event("aten::conv", 10, 40, "cpu_op"), event("backward", 40, 90),
        event("autograd::engine::evaluate_function: Conv", 40, 70, "cpu_op"), event("aten::conv", 40, 70, "cpu_op"),
        event("gloo:all_reduce", 60, 88), event("update", 90, 96),
        event("ProfilerStep#2", 100, 200), event("between steps", 100, 150), event("gloo:all_reduce", 110, 130),
        event("forward", 150, 160), event("Optimizer.step#Adam.step", 180, 184),
        {"ph": "M", "name": "process_name", "pid": 1, "args": {"name": "python"}},
    ]  # fmt: skip
    assert times_of(events) == Times(
        num_steps=2, step_ms=75, data_ms=5, forward_ms=20, backward_ms=16, update_ms=5, exposed_ms=9, other_ms=20,
        communication_ms=14, hidden_ms=5,
    )  # fmt: skip


def test_spans_of_waits_say_what_is_exposed_where_there_are_some() -> None:
    """Gossip: messages from before the step to a hook in its backward pass, which waits and then updates."""
    events = [
        event("ProfilerStep#4", 0, 100), event("gloo:recv", -20, 65), event("gloo:send", 95, 120),
        event("forward", 0, 40), event("backward", 40, 90), event("update", 60, 80),
        event("wait for communication", 60, 66),
    ]  # fmt: skip
    found = times_of(events)
    assert (found.backward_ms, found.update_ms, found.exposed_ms, found.other_ms) == (30, 14, 6, 10)
    assert (found.communication_ms, found.hidden_ms) == (70, 60)
    assert found.overlap == pytest.approx(60 / 70)
    assert found.own_ms == 94


def test_on_a_gpu_kernels_count_and_not_the_host_that_runs_ahead() -> None:
    events = [
        event("ProfilerStep#1", 0, 10), event("forward", 0, 1), event("backward", 1, 2), event("data", 90, 100),
        event("ProfilerStep#1", 20, 100, "gpu_user_annotation"), event("forward", 20, 50, "gpu_user_annotation"),
        event("backward", 50, 90, "gpu_user_annotation"), event("gemm", 20, 50, "kernel"),
        event("gemm", 50, 70, "kernel"), event("ncclDevKernel_AllReduce", 60, 90, "kernel", tid=8),
        event("ProfilerStep#2", 100, 120, "gpu_user_annotation"), event("update", 100, 120, "gpu_user_annotation"),
    ]  # fmt: skip
    assert times_of(events) == Times(
        num_steps=2, step_ms=50, data_ms=5, forward_ms=15, backward_ms=10, update_ms=10, exposed_ms=10, other_ms=0,
        communication_ms=15, hidden_ms=5,
    )  # fmt: skip


def test_messages_get_lanes_in_which_none_overlap() -> None:
    events = [event("gloo:send", start, start + 25) for start in (0, 10, 30, 35)] + [event("forward", 0, 50)]
    trace = with_lanes({"schemaVersion": 1, "traceEvents": events}, rank=3)
    assert trace["schemaVersion"] == 1
    lanes = [event["tid"] for event in trace["traceEvents"] if event["name"] == "gloo:send"]
    assert lanes == [1, 2, 1, 2]
    assert [event["tid"] for event in events] == [7] * 5, "what came in stays as it was"


def test_steps_that_a_run_does_not_have_are_refused() -> None:
    def said(steps: int, start_step: int = 10, steps_per_epoch: int | None = None, **changes: Any) -> list[str]:
        profile = ProfileConfig(steps=steps, start_step=start_step)
        return [*problems(configuration("ring", SGD, profile=profile, **changes), steps_per_epoch)]

    assert said(0, mode=Mode.evaluate) == []
    assert said(8) == []  # three epochs of six steps
    assert said(9) == ["profile.steps=9 after profile.start_step=10 needs a run of 19 steps; this one has 18"]
    assert said(9, steps_per_epoch=7) == []
    assert said(5, max_steps=12) == [
        "profile.steps=5 after profile.start_step=10 needs a run of 15 steps; this one has 12"
    ]
    assert said(5, mode=Mode.evaluate) == ["profile.steps=5 records steps of training, and mode=evaluate makes none"]


def recorded(folder: Path, made: range, **config: int) -> str | None:
    """A worker that makes these steps; what it has written, or None."""
    runtime = Runtime(0, 1, 0, 1, torch.device("cpu"), 1)
    recorder = Recorder(ProfileConfig(**config), runtime, folder, made.start)
    recorder.start()
    for _ in made:
        with span(Activity.forward):
            torch.ones(8).sum()
        recorder.advance()
    recorder.close()
    written = folder / "rank_0.json"
    return json.loads(written.read_text())["first_step"] if written.is_file() else None


def test_the_steps_that_are_asked_for_are_recorded_once(tmp_path: Path) -> None:
    assert recorded(tmp_path / "from 1", range(3), steps=2, start_step=1) == 1
    assert recorded(tmp_path / "from 3", range(6), steps=2, start_step=3) == 3
    assert recorded(tmp_path / "later", range(50, 53), steps=2, start_step=3) == 51  # a run that goes on behind it
    before = (tmp_path / "later" / "rank_0.json").stat().st_mtime_ns
    assert recorded(tmp_path / "later", range(70, 73), steps=2, start_step=3) == 51
    assert (tmp_path / "later" / "rank_0.json").stat().st_mtime_ns == before
    assert recorded(tmp_path / "off", range(9), steps=0, start_step=3) is None
    assert not (tmp_path / "off").exists()


def test_a_run_that_ends_too_early_has_no_profile_and_says_so(tmp_path: Path, caplog: Any) -> None:
    assert recorded(tmp_path / "early", range(4), steps=2, start_step=3) is None
    assert caplog.messages == ["no profile: the run ended after 1 of 2 recorded steps"]


def test_a_profile_that_cannot_be_written_ends_no_run(tmp_path: Path, caplog: Any) -> None:
    (tmp_path / "taken").write_text("")
    assert recorded(tmp_path / "taken", range(6), steps=2, start_step=3) is None
    assert "profile not written: FileExistsError: " in caplog.text
    assert "training goes on" in caplog.text


def worker(rank: int, forward_ms: float, exposed_ms: float, node: str = "node1") -> Worker:
    return Worker(
        num_steps=20, step_ms=forward_ms + exposed_ms, data_ms=0, forward_ms=forward_ms, backward_ms=0, update_ms=0,
        exposed_ms=exposed_ms, other_ms=0, communication_ms=10, hidden_ms=4, rank=rank, node=node, first_step=10,
        memory_peak_mb=1234.5,
    )  # fmt: skip


def with_profile(run_dir: Path, *workers: Worker) -> Path:
    write_run(run_dir)
    (run_dir / PROFILE).mkdir()
    for one in workers:
        (run_dir / PROFILE / f"rank_{one.rank}.json").write_text(json.dumps(asdict(one)))
    return run_dir


def shown(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["profile", *map(str, arguments)])


def test_the_table_names_who_holds_up_the_others(tmp_path: Path) -> None:
    run_dir = with_profile(tmp_path / "run", worker(0, 50, 30), worker(1, 80, 0, "node2"), worker(2, 50, 30))
    table = shown(run_dir)
    assert table.exit_code == 0
    assert "Slowest by itself: rank 1 on node2, 30.0 ms (60 %) behind the median." in table.output
    assert "1 of 4 workers have written none." in table.output
    found = json.loads(shown(run_dir, "--json").output)
    assert found["slowest"] == 1
    assert [one["skew_ms"] for one in found["workers"]] == [0, 30, 0]
    assert [one["overlap"] for one in found["workers"]] == [0.4, 0.4, 0.4]


def test_what_is_damaged_is_left_out_and_named(tmp_path: Path) -> None:
    run_dir = with_profile(tmp_path / "run", worker(0, 50, 30), worker(1, 80, 0, "\x1b[31mnode"))
    (run_dir / PROFILE / "rank_2.json").write_text('{"rank": 2, "node": "a", "step_ms": NaN}')
    (run_dir / PROFILE / "rank_3.json").write_text('{"rank": 3')
    found = shown(run_dir)
    assert found.exit_code == 0
    assert "rank_2.json: another version's, or damaged; left out" in found.output
    assert "rank_3.json: half written, or not JSON; left out" in found.output
    assert "\x1b" not in found.output


def test_a_run_without_a_profile_is_refused_in_one_line(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    found = shown(tmp_path / "run")
    assert found.exit_code == 2
    assert found.output.endswith("run: no profile; profile.steps=20 records one while a run trains\n")
    assert len(found.output.splitlines()) == 1
