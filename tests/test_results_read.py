"""Reading run directories that are not as they should be: one line for each kind of thing, and the rest is there."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from imgnet.results.files import MOST_SETTINGS, Problems, Table, printable, read_end, read_rows, read_steps
from imgnet.results.read import Run, log_end, read_run, read_runs, traceback_of
from tests.run_directories import write_run


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    folder = tmp_path / "2026-03-01" / "10-00-00_study"
    for number, topology in enumerate(("allreduce", "ring", "exp")):
        write_run(folder / str(number), topology=topology, accuracies=(50.0, 75.5))
    return folder


def read(path: Path) -> tuple[list[Run], list[str]]:
    problems = Problems()
    runs = read_runs([path], problems)
    return runs, problems.lines()


def test_what_training_writes_is_read_whole(sweep: Path) -> None:
    runs, problems = read(sweep)
    assert problems == []
    assert [run.setting("topology") for run in runs] == ["allreduce", "ring", "exp"]
    first = runs[0]
    assert (first.seed, first.status, first.settings["optimizer.lr"], first.settings["workers"]) == (
        1,
        "completed",
        "0.001",
        "4",
    )
    assert first.epochs["val_acc1"].tolist() == [50.0, 75.5]


def test_runs_are_found_in_folders_of_sweeps_in_their_order_and_once(sweep: Path) -> None:
    for number in range(3, 11):
        write_run(sweep / str(number))
    problems = Problems()
    runs = read_runs([sweep.parents[1], sweep, sweep / "0"], problems)
    assert [run.path.name for run in runs] == [str(number) for number in range(11)]


def test_an_empty_directory_is_said_and_the_rest_is_read(sweep: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    empty, problems = tmp_path_factory.mktemp("empty"), Problems()
    assert len(read_runs([empty, sweep], problems)) == 3
    assert problems.lines() == [f"{empty}: no run directory here or below (there is no run.json)"]


def append(text: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(path.read_text() + text)


def put(data: bytes | str) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data if isinstance(data, bytes) else data.encode())


def without_column(name: str) -> Callable[[Path], object]:
    def drop(path: Path) -> None:
        rows = [line.split(",") for line in path.read_text().splitlines()]
        at = rows[0].index(name)
        path.write_text("".join(",".join(row[:at] + row[at + 1 :]) + "\n" for row in rows))

    return drop


LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefghijklmn", "bcdefghijklmno", strict=True)
)
DAMAGES = {
    "a row cut short": ("metrics.csv", append("3,60,0.5,0.4,9"), "the last line is cut short and left out"),
    "a row cut inside": ("metrics.csv", append("3,60,0.5\n"), "rows that have not 14 cells are left out"),
    "words for numbers": ("metrics.csv", append(",".join(["x"] * 14) + "\n"), "cells that are no numbers are left out"),
    "a missing column": ("metrics.csv", without_column("consensus_distance"), "no column consensus_distance"),
    "no metrics in metrics": (
        "metrics.csv",
        put('"' + "x\n" * 200_000),
        "no table of comma-separated values; left out",
    ),
    "bytes": ("metrics.csv", put(bytes(range(128, 256)) * 100 + b"\n"), "no column epoch"),
    "a summary cut short": ("summary.json", put('{"val_acc1": 7'), "half written, or not JSON; left out"),
    "a summary of another kind": ("summary.json", put("[1]"), "not a JSON object; left out"),
    "a deep summary": ("summary.json", put("[" * 100_000), "half written, or not JSON; left out"),
    "a configuration cut short": (
        ".hydra/config.yaml",
        put("a: [1"),
        "half written, or not YAML; the run is known by its overrides alone",
    ),
    "a deep configuration": (
        ".hydra/config.yaml",
        put("[" * 100_000),
        "nested more than 50 deep; the run is known by its overrides alone",
    ),
    "a configuration that explodes": (
        ".hydra/config.yaml",
        put(LAUGHS),
        "it has aliases, which no composed configuration has; the run is known by its overrides alone",
    ),
    "a configuration without end": (
        ".hydra/config.yaml",
        put("".join(f"k{number}: 1\n" for number in range(MOST_SETTINGS + 1))),
        f"more than {MOST_SETTINGS} settings; the run is known by its overrides alone",
    ),
    "no configuration": (
        ".hydra/config.yaml",
        Path.unlink,
        "no such file or directory; the run is known by its overrides alone",
    ),
}


@pytest.mark.parametrize(("file", "damage", "line"), DAMAGES.values(), ids=DAMAGES)
def test_damage_is_one_line_and_all_runs_are_still_there(
    file: str, damage: Callable[[Path], object], line: str, sweep: Path
) -> None:
    damage(sweep / "1" / file)
    runs, problems = read(sweep)
    assert f"{sweep / '1' / file}: {line}" in problems
    assert len(runs) == 3
    assert runs[1].setting("topology") == "ring"
    for whole in (runs[0], runs[2]):
        assert whole.epochs["val_acc1"].tolist() == [50.0, 75.5]


@pytest.mark.parametrize("data", ["", '{"status": "comp', "[]", "null", "{" * 10_000])
def test_a_run_whose_run_file_is_broken_is_left_out_with_a_line(data: str, sweep: Path) -> None:
    (sweep / "1" / "run.json").write_text(data)
    runs, problems = read(sweep)
    assert [run.path.name for run in runs] == ["0", "2"]
    assert len(problems) == 1
    assert problems[0].startswith(f"{sweep / '1' / 'run.json'}: ")


@pytest.mark.parametrize(
    "about", [{"overrides": 5}, {"overrides": [1, None]}, {"seed": "x"}, {"seed": [1]}, {"error": 3}, {"versions": 7}]
)
def test_values_of_a_foreign_kind_do_not_stop_the_reader(about: dict, tmp_path: Path) -> None:
    (run,), problems = read(write_run(tmp_path / "0", about=about))
    assert problems == []
    assert run.status == "completed"


def test_a_run_of_another_version_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    """Without configuration, with other names of columns, without most of ``run.json``."""
    old = tmp_path / "0"
    old.mkdir()
    (old / "run.json").write_text('{"status": "completed", "overrides": ["topology=ring", "seed=4"], "seed": 4}')
    (old / "metrics.csv").write_text("epoch,acc\n1,50.0\n")
    (run,), problems = read(old)
    assert (run.seed, run.setting("topology"), run.epochs["acc"].tolist()) == (4, "ring", [50.0])
    assert len(problems) == 6  # no configuration, and five columns


def test_the_same_damage_in_many_runs_is_one_line(sweep: Path) -> None:
    for number in range(3):
        append("3,6")(sweep / str(number) / "metrics.csv")
    _, problems = read(sweep)
    assert problems == [f"{sweep}/0/metrics.csv: the last line is cut short and left out (2 more like it)"]


def test_half_a_number_is_no_number(tmp_path: Path) -> None:
    """``9`` is how a row that was to end in ``99.4`` begins."""
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,val_acc1\n1,99.0\n2,9")
    assert read_rows(path, Problems())["val_acc1"].tolist() == [99.0]


def test_an_empty_cell_is_no_number(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,val_acc1\n1,\n")
    assert math.isnan(read_rows(path, Problems())["val_acc1"][0])


def test_the_end_of_the_steps_costs_no_more_than_their_end(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    path.write_text("".join(json.dumps({"step": step, "loss": 1.0}) + "\n" for step in range(100_000)))
    found: Table = read_steps(path, Problems(), last=50)
    assert found["step"].tolist() == list(range(99_950, 100_000))


def test_steps_that_are_none_are_left_out_with_a_line(tmp_path: Path) -> None:
    path, problems = tmp_path / "steps.jsonl", Problems()
    path.write_text('{"step": 1, "loss": 2.0}\n[]\nnonsense\n{"step": 2, "loss": "x"}\n{"step": 3, "lo')
    found = read_steps(path, problems)
    assert found["step"].tolist() == [1, 2]
    assert math.isnan(found["loss"][1])
    assert problems.lines() == [f"{path}: lines that are no JSON objects are left out"]


def test_nothing_that_a_terminal_obeys_is_shown() -> None:
    assert printable("\x1b[31mred\x1b[0m \x1b]0;title\x07ok\r\x00") == "red ok\ufffd\ufffd"
    assert printable("a\n\tb", keep="\n\t") == "a\n\tb"
    assert printable("größer 精度") == "größer 精度"


def test_the_end_of_a_log_begins_with_a_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("".join(f"line {number}\n" for number in range(1000)))
    assert read_end(path, 20) == "line 998\nline 999\n"
    assert read_end(tmp_path / "none", 20) == ""


def test_a_failed_run_shows_the_traceback_of_the_worker_that_failed_first(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "0", status="failed", error="rank 1 failed: ValueError: no\nmore")
    for rank, time, how in ((0, 2.0, "raised"), (1, 1.0, "raised"), (2, 0.5, "terminated")):
        record = {"rank": rank, "how": how, "time": time, "error": "", "traceback": f"of rank {rank}"}
        (run_dir / "logs" / f"rank_{rank}.exit.json").write_text(json.dumps(record))
    (run_dir / "logs" / "rank_3.exit.json").write_text('{"how": "raised", "time": {}}')
    run, problems = read_run(run_dir, Problems()), Problems()
    assert run is not None
    assert run.error == "rank 1 failed: ValueError: no"
    assert traceback_of(run, problems) == "of rank 1"


def test_the_log_of_a_job_is_shown_before_that_of_its_worker(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "0")
    run = read_run(run_dir, Problems())
    assert run is not None
    assert "epoch 3/3" in log_end(run, 1000)
    (run_dir / "submission.json").write_text("{}")
    (run_dir / "logs" / "slurm.log").write_text("of the job\n")
    assert log_end(run, 1000) == "of the job\n"
    shutil.rmtree(run_dir / "logs")
    assert log_end(run, 1000) == ""
