"""What ``imgnet predict`` and ``imgnet measure`` print, write and refuse."""

import csv
import io
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from imgnet.cli import app

PUBLISHED = ("topology=allreduce,ring", "cluster=8xA40,32xT4", "data=synthetic", "--num-train", "1281167")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder of the test's own, as somebody at a terminal."""
    monkeypatch.chdir(tmp_path)


def imgnet(*arguments: str, **changes: str) -> Result:
    """``imgnet <arguments>``, in this process."""
    return CliRunner().invoke(app, arguments, env=changes)


def test_one_table_for_all_that_the_words_describe(tmp_path: Path) -> None:
    shown = imgnet("predict", *PUBLISHED, "--num-steps", "20", COLUMNS="200")
    assert shown.exit_code == 0, shown.stderr
    assert "predicted, not measured" in shown.stdout
    found = list(csv.DictReader(io.StringIO(imgnet("predict", *PUBLISHED, "--csv").stdout)))
    assert [(row["topology"], row["cluster"]) for row in found] == [
        ("allreduce", "8xA40"), ("allreduce", "32xT4"), ("ring", "8xA40"), ("ring", "32xT4"),
    ]  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_how_runs_average_is_a_column_where_some_do_not_in_every_step() -> None:
    words = ("topology=complete", "averaging=every_step,streaming_diloco", *PUBLISHED[1:], "--num-steps", "20")
    shown = imgnet("predict", *words)
    rows = [line.split() for line in shown.stdout.splitlines() if line.startswith("  complete ")]
    assert [row[1:3] for row in rows] == [
        [averaging, cluster] for averaging in ("every_step", "streaming_diloco") for cluster in ("8xA40", "32xT4")
    ]
    assert {row[-1] for row in rows} <= {"computation", "bandwidth", "latency", "stragglers"}


def test_given_images_per_second_bound_what_is_predicted() -> None:
    words = ("topology=ring", "cluster=8xA40", "data=synthetic", "--num-train", "1281167", "--images-per-s", "100")
    done = imgnet("predict", *words, "--json")
    assert done.exit_code == 0, done.stderr
    (row,) = json.loads(done.stdout)["predictions"]
    assert row["predicted_images_per_s"] == pytest.approx(8 * 100, rel=0.01)  # nothing but computation


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["cluster=8xA40", "cluster.network.between_gbit_s=0"], "cluster.network.between_gbit_s=0.0 must be above 0"),
        (["cluster=local", "cluster.cpu_workers_per_node=2"], "cluster.network.within_gbit_s"),
        (["cluster=64xT4", "global_batch_size=32"], "global_batch_size=32 has fewer images than there are workers, 64"),
        (["cluster=8xA40", "--slow", "1"], "--slow 1: write RANK:FACTOR"),
        (["cluster=8xA40", "--step-spread", "nan"], "--step-spread nan: must be from 0 to below 1"),
        (["cluster=8xA40", "--images-per-s", "inf"], "--images-per-s inf: must be a number above 0"),
        (["cluster=8xA40", "topology=rign"], "topology=rign: there is no such topology; did you mean 'ring'?"),
        (["--against", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_predicted_is_refused_in_one_line(words: list[str], line: str) -> None:
    done = imgnet("predict", "data=synthetic", *words)
    assert (done.exit_code, done.stdout) == (2, "")
    assert line in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


def test_what_is_measured_here_is_predicted_with(tmp_path: Path) -> None:
    run = ("model=small_cnn", "data=synthetic", "data.train_px=32", "global_batch_size=16", "precision=fp32")
    cluster = ("cluster=local", "cluster.accelerator=cpu", "cluster.cpu_workers_per_node=2", "topology=ring")
    network = "cluster.network.within_gbit_s=10"
    measured = imgnet("measure", *run, *cluster, "--num-steps", "3", "--batch-size", "8")
    assert measured.exit_code == 0, measured.stderr
    (path,) = (tmp_path / "measurements").rglob("*.json")
    assert f"written: {path.relative_to(tmp_path)}" in measured.stdout
    predicted = imgnet("predict", *run, *cluster, network, "--json", "--num-train", "1000")
    assert predicted.exit_code == 0, predicted.stderr
    (row,) = json.loads(predicted.stdout)["predictions"]
    assert row["num_workers"] == 2
    assert row["predicted_step_s"] > 0
