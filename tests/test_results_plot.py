"""``imgnet plot``: what curves are made of, and that the same runs give the same picture."""

import json
import subprocess
import sys
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from PIL import Image
from scipy import stats
from typer.testing import CliRunner, Result

from imgnet.cli import app
from imgnet.results.files import Problems
from imgnet.results.groups import Group, group_runs
from imgnet.results.pictures.curves import Curve, columns_of, curve_of, least_error, points_of, split_of
from imgnet.results.pictures.panels import Style, curves_panel, pareto_panel, split_panel
from imgnet.results.read import read_runs
from tests.commands import ROOT, environment
from tests.run_directories import write_run


def groups_in(folder: Path) -> list[Group]:
    return group_runs(read_runs([folder], Problems()))


def curve_in(folder: Path, x: str, y: str) -> Curve:
    (group,) = groups_in(folder)
    curve = curve_of(group, x, y, Problems())
    assert curve is not None
    return curve


def imgnet(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def study(tmp_path: Path) -> Path:
    folder = tmp_path / "study"
    for place, topology in enumerate(("allreduce", "ring")):
        for seed in (1, 2, 3):
            accuracies = (50.0 + seed, 70.0, 76.0 - place + 0.1 * seed)
            write_run(
                folder / f"{topology}{seed}", topology=topology, seed=seed, accuracies=accuracies, epoch_s=9 + seed
            )
    return folder


def test_a_band_is_the_t_interval_of_each_epoch(tmp_path: Path) -> None:
    rows = [(50.0, 70.0), (54.0, 71.0), (55.0, 75.0)]
    for seed, accuracies in enumerate(rows, start=1):
        write_run(tmp_path / str(seed), seed=seed, accuracies=accuracies)
    curve = curve_in(tmp_path, "epoch", "val_acc1")
    assert curve.x.tolist() == [1, 2]
    for place, values in enumerate(np.transpose(rows)):
        low, high = stats.t.interval(0.95, 2, values.mean(), stats.sem(values))
        assert (curve.mean[place], curve.low[place], curve.high[place]) == pytest.approx((values.mean(), low, high))


def test_over_time_runs_are_interpolated_where_all_of_them_were(tmp_path: Path) -> None:
    """One has its epochs at 10, 20, 30 s, the other at 20, 40, 60 s: both were between 20 and 30 s alone."""
    write_run(tmp_path / "1", seed=1, accuracies=(40.0, 60.0, 70.0), epoch_s=10.0)
    write_run(tmp_path / "2", seed=2, accuracies=(50.0, 60.0, 70.0), epoch_s=20.0)
    curve = curve_in(tmp_path, "time", "val_acc1")
    assert curve.x.tolist() == [20, 30]
    assert curve.mean.tolist() == [(60 + 50) / 2, (70 + 55) / 2]


def test_a_failed_run_is_in_no_curve_of_completed_ones(tmp_path: Path) -> None:
    write_run(tmp_path / "1", seed=1, accuracies=(50.0, 70.0))
    write_run(tmp_path / "2", seed=2, accuracies=(1.0, 1.0), status="failed")
    curve = curve_in(tmp_path, "epoch", "val_acc1")
    assert (curve.mean.tolist(), curve.num_runs, curve.is_finished) == ([50, 70], 1, True)


def test_a_group_that_still_runs_is_drawn_as_far_as_it_is(tmp_path: Path) -> None:
    write_run(tmp_path / "1", accuracies=(50.0,), epochs=9, status="running")
    curve = curve_in(tmp_path, "epoch", "val_acc1")
    assert (curve.mean.tolist(), curve.is_finished) == ([50], False)


def test_epochs_without_an_evaluation_are_no_points(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "1", accuracies=(50.0, 60.0, 70.0))
    text = (run_dir / "metrics.csv").read_text().replace(",60.0,75.0,", ",,,")
    (run_dir / "metrics.csv").write_text(text)
    assert curve_in(tmp_path, "epoch", "val_acc1").x.tolist() == [1, 3]


def test_columns_of_steps_can_be_drawn_over_steps_and_time(tmp_path: Path) -> None:
    write_run(tmp_path / "1", epoch_s=20.0, steps=3)  # a second for each step, a row for every tenth
    over_steps, over_time = (curve_in(tmp_path, x, "loss") for x in ("step", "time"))
    assert over_steps.x.tolist() == [10, 20, 30]
    assert over_time.x.tolist() == pytest.approx([10.0, 20.0, 30.0])
    assert over_time.mean.tolist() == pytest.approx([4.0, 2.0, 4 / 3])


def test_a_row_that_came_again_counts_once(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "1", accuracies=(50.0, 60.0))
    lines = (run_dir / "metrics.csv").read_text().splitlines()
    (run_dir / "metrics.csv").write_text("\n".join([*lines, lines[1].replace("50.0", "51.0")]) + "\n")
    (group,) = groups_in(tmp_path)
    x, y = points_of(group.runs[0], "epoch", "val_acc1", Problems())
    assert (x.tolist(), y.tolist()) == ([1, 2], [51, 60])


def test_no_error_is_drawn_as_half_an_image(tmp_path: Path) -> None:
    write_run(tmp_path / "1", accuracies=(90.0, 100.0))
    groups = groups_in(tmp_path)
    assert least_error(groups) == 50 / 50_000
    panel, axes = curves_panel(groups, "epoch", "val_error1", Problems()), Figure().subplots()
    assert panel is not None
    panel.draw(axes)
    assert axes.get_yscale() == "log"
    assert axes.lines[0].get_ydata()[-1] == 50 / 50_000


def test_a_steps_time_is_split_in_milliseconds(study: Path) -> None:
    groups = groups_in(study)
    first = groups[0].runs[0]
    assert first.setting("topology") == "ring"
    assert split_of(first, Problems()) == pytest.approx([50.0, 300.0, 150.0])  # of 500 ms
    panel, axes = split_panel(groups, Problems()), Figure().subplots()
    assert panel is not None
    panel.draw(axes)
    bars = [container.patches[0].get_width() for container in axes.containers if isinstance(container, BarContainer)]
    mean = np.mean([10, 11, 12]) / 20 * 1000
    assert bars[:3] == pytest.approx([0.1 * mean, 0.6 * mean, 0.3 * mean])


def test_the_first_row_of_steps_holds_what_happens_but_once(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "1")
    rows = [
        {"step": step, "data_s": 9.0 if step == 1 else 0.5, "compute_s": 1.0, "communication_s": 0.0} for step in (1, 2)
    ]
    (run_dir / "steps.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (group,) = groups_in(tmp_path)
    assert split_of(group.runs[0], Problems()) == pytest.approx([500.0, 1000.0, 0.0])


def test_the_pareto_line_goes_through_what_nobody_beats(tmp_path: Path) -> None:
    for topology, accuracy, epoch_s in (("a", 76.0, 30.0), ("b", 75.0, 10.0), ("c", 74.0, 20.0)):
        write_run(tmp_path / topology, topology=topology, accuracies=(accuracy,), epoch_s=epoch_s)
    panel, axes = pareto_panel(groups_in(tmp_path), "time"), Figure().subplots()
    assert panel is not None
    panel.draw(axes)
    assert axes.lines[0].get_xydata().tolist() == [[10, 75], [30, 76]]


def test_bytes_are_left_out_where_no_run_counted_them(study: Path) -> None:
    assert pareto_panel(groups_in(study), "bytes") is None


def test_what_can_be_drawn_is_known(study: Path) -> None:
    known = columns_of([run for group in groups_in(study) for run in group.runs], Problems())
    assert {"val_acc1", "val_error1", "consensus_distance", "loss", "data_s"} <= set(known)
    assert not {"epoch", "step", "train_time_s"} & set(known)


def test_styles_can_be_told_apart_without_colour() -> None:
    styles = [Style.of(index) for index in range(36)]
    for one, other in combinations(styles, 2):
        assert (one.line, one.marker) != (other.line, other.marker)
    for one, other in pairwise(styles):
        assert len({one.colour, other.colour}) == len({one.marker, other.marker}) == 2


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["-o", "a.jpeg"], "--out a.jpeg: the picture must end in .png, .pdf, .svg"),
        (["--x", "hour"], "--x hour: it is one of epoch, step, time, predicted_time, sent"),
        (["--pareto", "money"], "--pareto money: it is time or bytes"),
    ],
)
def test_a_wrong_command_is_refused_in_one_line(words: list[str], line: str, study: Path) -> None:
    done = imgnet("plot", study, *words)
    assert (done.exit_code, done.stderr.strip()) == (2, line)


def test_an_unknown_column_is_refused_with_those_that_there_are(study: Path) -> None:
    near, far = imgnet("plot", study, "--y", "val_acc"), imgnet("plot", study, "--y", "joy")
    assert near.exit_code == far.exit_code == 2
    assert near.stderr == "--y val_acc: no run has such a column; did you mean 'val_acc5'?\n"
    assert far.stderr.startswith("--y joy: no run has such a column; known: communication_s, compute_s, ")


def test_nothing_to_draw_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "0", accuracies=(), status="running", steps=0)
    done = imgnet("plot", tmp_path, "-o", tmp_path / "a.png")
    assert done.exit_code == 2
    assert "nothing to draw" in done.stderr
    assert not (tmp_path / "a.png").exists()


def test_the_same_runs_give_the_same_bytes_in_another_process(study: Path, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    draw = (
        "import sys\n"
        "from imgnet.cli import app\n"
        "for name in ('a.png', 'a.pdf', 'a.svg'):\n"
        "    words = ['plot', sys.argv[1], '--y', 'val_error1', '--split', '-o', f'{sys.argv[2]}/{name}']\n"
        "    app(words, standalone_mode=False)\n"
    )
    for folder, seed in ((here, "1"), (there, "2")):
        folder.mkdir()
        command = [sys.executable, "-c", draw, str(study), str(folder)]
        subprocess.run(command, cwd=ROOT, env=environment(PYTHONHASHSEED=seed), check=True, capture_output=True)
    for name in ("a.png", "a.pdf", "a.svg"):
        assert (here / name).read_bytes() == (there / name).read_bytes()
    assert b"/CreationDate" not in (here / "a.pdf").read_bytes()


def test_panels_of_ones_own(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.png"
    words = ["--x", "time", "--y", "val_acc1", "--y", "loss", "--split", "--pareto", "time", "-f", "topology=ring"]
    done = imgnet("plot", study, *words, "-o", out)
    assert (done.exit_code, done.stdout) == (0, f"drawn: {out}\n")
    with Image.open(out) as picture:
        assert picture.width > picture.height > 500


def test_accuracy_over_what_was_sent(tmp_path: Path) -> None:
    """Of two groups of runs, one of which sends twice as much."""
    for topology, mb in (("ring", 10.0), ("complete", 20.0)):
        for seed in (1, 2):
            metrics = write_run(tmp_path / f"{topology}{seed}", topology=topology, seed=seed) / "metrics.csv"
            header, *rows = metrics.read_text().splitlines()
            sent = [f"{row},{mb * number}" for number, row in enumerate(rows, 1)]
            metrics.write_text("\n".join([f"{header},sent_mb", *sent]) + "\n")
    out = tmp_path / "a.svg"
    done = imgnet("plot", tmp_path, "--x", "sent", "--y", "val_acc1", "-o", out)
    assert (done.exit_code, done.output) == (0, f"drawn: {out}\n")
    assert "top-1 over MB sent by a worker" in out.read_text()


def test_names_are_drawn_as_they_are_written(tmp_path: Path) -> None:
    """A dollar begins no formula, an underscore hides no curve, and what no font has breaks nothing."""
    for number, topology in enumerate(["$x^{$", "_hidden", "精度\N{ROCKET}", "<script>"]):
        write_run(tmp_path / str(number), topology=topology)
    out = tmp_path / "a.svg"
    assert imgnet("plot", tmp_path, "-o", out).exit_code == 0
    assert "<script" not in out.read_text()
