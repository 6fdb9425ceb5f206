"""``imgnet results``: on run directories whose answers are known, in every format."""

import csv
import json
import re
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy import stats
from typer.testing import CliRunner, Result

from imgnet.cli import app
from imgnet.results.files import Problems
from imgnet.results.formats import print_sheets, sheets, to_latex
from imgnet.results.groups import Choice, group_runs
from imgnet.results.measures import Results, results_of, sort_rows
from imgnet.results.read import read_runs
from imgnet.results.table import show_results
from tests.commands import ROOT
from tests.run_directories import NUM_VAL_IMAGES, write_run

ACCURACIES = {
    "allreduce": (75.8, 76.2, 75.9, 75.7, 76.1, 76.0),
    "ring": (76.1, 76.4, 75.9, 76.3, 76.2, 76.5),
    "exp": (75.1, 75.9, 75.2, 75.3, 75.6, 75.4),
}
EPOCH_S = {"allreduce": (20.0, 21.0, 19.5, 20.5, 20.0, 20.2), "ring": (14.0, 14.5, 15.0, 14.2, 14.8, 14.1)}
EPOCH_S["exp"] = EPOCH_S["ring"]


def write_study(folder: Path, num_seeds: int = 6) -> Path:
    """Three topologies; each run passes 60 % after its first epoch, and ends after its second."""
    for topology, of_seeds in ACCURACIES.items():
        for seed, accuracy in enumerate(of_seeds[:num_seeds], start=1):
            write_run(
                folder / f"{topology}{seed}",
                topology=topology,
                seed=seed,
                accuracies=(60.0, accuracy),
                epoch_s=EPOCH_S[topology][seed - 1],
            )
    return folder


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return write_study(tmp_path / "study")


def measured(folder: Path, target: float | None = None, baseline: str | None = None) -> Results:
    choices = [Choice.parse(baseline)] if baseline else []
    return results_of(group_runs(read_runs([folder], Problems())), target, choices)


def imgnet(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def described(*words: object) -> dict[str, Any]:
    done = imgnet("results", *words, "--json")
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def group(found: dict[str, Any], name: str) -> dict[str, Any]:
    return next(one for one in found["groups"] if one["name"] == name)


def test_means_and_intervals_are_scipys(study: Path) -> None:
    found = group(described(study), "topology=ring")["estimates"]["top1"]
    values = ACCURACIES["ring"]
    low, high = stats.t.interval(0.95, 5, np.mean(values), stats.sem(values))
    assert (found["mean"], found["low"], found["high"]) == pytest.approx((np.mean(values), low, high))
    assert (found["sd"], found["n"]) == (pytest.approx(np.std(values, ddof=1)), 6)


def test_the_last_epoch_counts_and_not_the_best(tmp_path: Path) -> None:
    write_run(tmp_path / "0", accuracies=(50.0, 77.0, 76.0))
    assert group(described(tmp_path), "all")["estimates"]["top1"]["mean"] == 76.0


def test_the_binomial_error_of_the_validation_set_stands_beside_the_spread(study: Path) -> None:
    found = group(described(study), "topology=ring")
    share = np.mean(ACCURACIES["ring"]) / 100
    assert found["top1_sd_images"] == pytest.approx(100 * np.sqrt(share * (1 - share) / NUM_VAL_IMAGES))


def test_a_failed_seed_changes_the_count_and_a_note_and_no_mean(study: Path) -> None:
    before = group(described(study), "topology=ring")
    write_run(study / "7", seed=7, accuracies=(1.0,), epochs=2, status="failed", error="rank 2 failed: ValueError: no")
    write_run(study / "8", seed=8, accuracies=(30.0,), epochs=2, status="running")
    after = group(described(study), "topology=ring")
    assert after["estimates"] == before["estimates"]
    assert [run["counted"] for run in after["runs"]] == [True] * 6 + [False] * 2
    shown = imgnet("results", study).stdout
    assert "6 of 8; 7 failed, 8 running" in shown
    assert "failed, not counted: topology=ring seed=7" in shown
    assert "rank 2 failed: ValueError: no" in shown
    assert "running, not counted: topology=ring seed=8" in shown
    assert "epoch 1 of 2" in shown


def test_a_run_that_only_evaluated_has_the_numbers_of_its_summary(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "0", accuracies=(), steps=0, settings={"mode": "evaluate"})
    (run_dir / "metrics.csv").unlink()
    (run_dir / "summary.json").write_text(
        '{"val_acc1": 76.1, "val_acc5": 93.0, "num_images": 10000, "status": "completed"}'
    )
    found = group(described(tmp_path), "all")
    assert (found["estimates"]["top1"]["mean"], found["estimates"]["time"]) == (76.1, None)
    assert found["top1_sd_images"] == pytest.approx(100 * np.sqrt(0.761 * 0.239 / 10_000))


def test_a_group_without_a_completed_run_is_still_a_row(tmp_path: Path) -> None:
    write_run(tmp_path / "0", topology="exp", status="failed", error="no")
    write_run(tmp_path / "1", topology="ring")
    found = group(described(tmp_path), "topology=exp")
    assert found["estimates"]["top1"] is None
    assert "exp" in imgnet("results", tmp_path).stdout


def test_differences_are_paired_by_seed_and_p_is_holms(study: Path) -> None:
    found = {one["name"]: one for one in described(study, "--baseline", "topology=allreduce")["comparisons"]}
    assert list(found) == ["topology=exp", "topology=ring"]
    tests = {name: stats.ttest_rel(ACCURACIES[name], ACCURACIES["allreduce"]) for name in ("ring", "exp")}
    smaller, larger = sorted(test.pvalue for test in tests.values())
    for name, test in tests.items():
        one, interval = found[f"topology={name}"], test.confidence_interval(0.95)
        difference = one["difference"]
        assert (difference["low"], difference["high"]) == pytest.approx((interval.low, interval.high))
        by_hand = 2 * smaller if test.pvalue == smaller else max(2 * smaller, larger)
        assert one["p_holm"] == pytest.approx(by_hand)


def test_speed_up_is_the_geometric_mean_of_pairs(study: Path) -> None:
    (_, ring) = described(study, "--baseline", "topology=allreduce")["comparisons"]
    logs = np.log(np.divide(EPOCH_S["allreduce"], EPOCH_S["ring"]))
    interval = np.exp(stats.t.interval(0.95, 5, logs.mean(), stats.sem(logs)))
    wanted = (np.exp(logs.mean()), *interval)
    assert tuple(ring["speed_up"][key] for key in ("mean", "low", "high")) == pytest.approx(wanted)


@pytest.mark.parametrize("num_seeds", [3, 5])
def test_no_p_is_claimed_below_six_seeds(num_seeds: int, tmp_path: Path) -> None:
    """Though the test's own would be small: every seed differs by the same two points and a little."""
    for seed in range(1, num_seeds + 1):
        write_run(tmp_path / f"a{seed}", topology="allreduce", seed=seed, accuracies=(70.0 + seed,))
        write_run(tmp_path / f"r{seed}", seed=seed, accuracies=(72.0 + 1.001 * seed,))
    (compared,) = described(tmp_path, "--baseline", "topology=allreduce")["comparisons"]
    assert compared["p_holm"] is None
    assert "No p for fewer than 6 pairs" in imgnet("results", tmp_path, "--baseline", "topology=allreduce").stdout


def test_a_seed_that_only_one_of_them_has_is_no_pair(study: Path) -> None:
    (study / "allreduce2" / "run.json").unlink()
    write_run(study / "7", topology="ring", seed=7, accuracies=(60.0, 99.0))
    (_, ring) = described(study, "--baseline", "topology=allreduce")["comparisons"]
    assert ring["seeds"] == [1, 3, 4, 5, 6]


def test_each_group_is_compared_with_the_baseline_that_shares_its_other_settings(tmp_path: Path) -> None:
    runs = [(topology, lr) for topology in ("allreduce", "ring") for lr in (0.1, 0.2)]
    for number, (topology, lr) in enumerate(runs):
        optimizer = {"optimizer": {"name": "adam", "lr": lr}}
        accuracies = (70.0 + 10 * lr + number,)
        typed = [f"optimizer.lr={lr}"]
        write_run(tmp_path / str(number), topology=topology, accuracies=accuracies, settings=optimizer, typed=typed)
    write_run(tmp_path / "4", typed=["optimizer.lr=0.3"], settings={"optimizer": {"name": "adam", "lr": 0.3}})
    found = described(tmp_path, "--baseline", "topology=allreduce")
    assert [(one["name"], one["baseline"]) for one in found["comparisons"]] == [
        ("topology=ring optimizer.lr=0.1", "topology=allreduce optimizer.lr=0.1"),
        ("topology=ring optimizer.lr=0.2", "topology=allreduce optimizer.lr=0.2"),
    ]
    assert "not compared: topology=ring optimizer.lr=0.3: no such baseline" in found["notes"]


def test_time_to_a_target_names_the_runs_that_never_came_there(tmp_path: Path) -> None:
    for seed, accuracies in enumerate([(60.0, 75.0, 76.0), (75.2, 74.0, 76.0), (60.0, 70.0, 74.9)], start=1):
        write_run(tmp_path / str(seed), seed=seed, accuracies=accuracies, epoch_s=10.0)
    found = group(described(tmp_path, "--target", "75"), "all")
    assert [run["target"] for run in found["runs"]] == [20.0, 10.0, None]
    shown = imgnet("results", tmp_path, "--target", "75").stdout
    assert "15.0 (2 of 3)" in shown  # and no interval: the third is not among them
    assert "never at 75 %: seed=3" in shown


def test_a_target_that_nobody_reaches(study: Path) -> None:
    shown = imgnet("results", study, "--target", "99").stdout
    assert shown.count("not reached") == 3


def test_long_times_are_shown_in_hours(tmp_path: Path) -> None:
    write_run(tmp_path / "0", accuracies=(70.0, 76.0), epoch_s=9360.0)
    shown = imgnet("results", tmp_path).stdout
    assert "training h" in shown
    assert "5.20" in shown


def order(*words: object) -> list[str]:
    return [one["name"].removeprefix("topology=") for one in described(*words)["groups"]]


def test_rows_are_sorted_the_best_first(study: Path) -> None:
    assert order(study, "--sort", "top1") == ["ring", "allreduce", "exp"]
    assert order(study, "--sort", "top1", "--reverse") == ["exp", "allreduce", "ring"]
    assert order(study, "--sort", "time")[-1] == "allreduce"
    assert order(study, "--sort", "topology") == ["allreduce", "exp", "ring"]
    assert order(study, "--sort", "target", "--target", "76")[-1] == "exp"


def test_what_has_no_number_stays_at_the_end(study: Path) -> None:
    write_run(study / "7", topology="star", status="failed")
    assert order(study, "--sort", "top1")[-1] == order(study, "--sort", "top1", "--reverse")[-1] == "star"


def test_a_filter_keeps_what_fits(study: Path) -> None:
    assert order(study, "--filter", "topology=ring,exp") == ["exp", "ring"]
    found = described(study, "-f", "topology=ring", "-f", "seed=2")
    assert [run["seed"] for one in found["groups"] for run in one["runs"]] == [2]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--sort", "topp1"], "--sort topp1: did you mean 'top1'?"),
        (
            ["--sort", "target"],
            "--sort target: known: distance, predicted, seeds, sent, speed, time, top1, top5, topology",
        ),
        (["--reverse"], "--reverse: of which order? Give --sort as well"),
        (["--filter", "topology=rng"], "topology=rng: no run has it; there are allreduce, exp, ring"),
        (["--baseline", "allreduce"], "allreduce: write key=value, such as topology=ring"),
        (["--csv", "--json"], "one of --csv, --json, --latex and --markdown at a time"),
    ],
)
def test_a_wrong_command_is_refused_in_one_line(words: list[str], line: str, study: Path) -> None:
    done = imgnet("results", study, *words)
    assert done.exit_code == 2
    assert done.stderr.strip() == line
    assert done.stdout == ""


def test_a_baseline_that_nothing_is_like_is_refused_with_what_there_is(study: Path) -> None:
    done = imgnet("results", study, "--baseline", "topology=star")
    assert done.exit_code == 2
    assert done.stderr.startswith("--baseline topology=star: no runs are so; there are topology=exp, ")


def test_an_empty_folder_is_refused_in_one_line_and_beside_others_said(study: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    line = f"{empty}: no run directory here or below (there is no run.json)"
    alone, beside = imgnet("results", empty), imgnet("results", empty, study)
    assert (alone.exit_code, alone.stderr.strip()) == (2, line)
    assert (beside.exit_code, beside.stderr.strip()) == (0, line)
    assert "ring" in beside.stdout


def test_csv_has_all_digits_and_nothing_but_rows(study: Path) -> None:
    done = imgnet("results", study, "--csv", "--baseline", "topology=allreduce", "--target", "76")
    rows = list(csv.DictReader(StringIO(done.stdout)))
    assert [row["topology"] for row in rows] == ["exp", "ring", "allreduce"]
    assert float(rows[1]["top1_mean"]) == pytest.approx(np.mean(ACCURACIES["ring"]), rel=1e-15)
    assert rows[2]["difference_mean"] == ""
    assert (rows[0]["target_not_reached"], rows[0]["target_mean"]) == ("6", "")
    assert "Student t" in done.stderr


def test_markdown_is_a_table_in_which_nothing_breaks_out(tmp_path: Path) -> None:
    write_run(tmp_path / "0", topology="a|b <b>*x*")
    write_run(tmp_path / "1", topology="ring")
    done = imgnet("results", tmp_path, "--markdown")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("| topology | status | top-1 % |")
    assert lines[1].startswith("| --- | --- | ---: |")
    assert lines[2].startswith(r"| a\|b \<b\>\*x\* | completed | 76.00 |")


def test_latex_escapes_what_it_would_obey(tmp_path: Path) -> None:
    write_run(tmp_path / "0", topology=r"\input{x}_50%&$~^#")
    write_run(tmp_path / "1", topology="ring")
    text = imgnet("results", tmp_path, "--latex").stdout
    assert r"\textbackslash{}input\{x\}\_50\%\&\$\textasciitilde{}\textasciicircum{}\#" in text
    assert r"\begin{tabular}{llrrrrrr}" in text
    assert text.count(r"\\") == 3


def test_latex_has_minus_signs_before_numbers_alone(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        write_run(tmp_path / f"a{seed}", topology="one-peer-2", seed=seed, accuracies=(70 - seed,), typed=["k=-.5"])
        write_run(tmp_path / f"b{seed}", topology="ring", seed=seed, accuracies=(72 + seed,), typed=["k=1e-05"])
    text = imgnet("results", tmp_path, "--latex", "--baseline", "k=1e-05").stdout
    assert "one-peer-2 & $-$.5 & 3 & $-$6.00 & $-$10.97 to $-$1.03 & - &" in text
    assert "ring & 1e-05 &" in text


def test_intervals_are_labelled_in_every_format(study: Path) -> None:
    for words in ([], ["--latex"], ["--markdown"], ["--json"]):
        assert "Student t" in imgnet("results", study, *words).stdout


def test_a_name_is_text_for_the_terminal(tmp_path: Path) -> None:
    write_run(tmp_path / "0", topology="[red]x[/red]\x1b[31m")
    write_run(tmp_path / "1", topology="ring", status="failed", error="[bold]no[/bold] \x1b]0;title\x07")
    shown = imgnet("results", tmp_path).stdout
    assert "[red]x[/red]" in shown
    assert "[bold]no[/bold]" in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_terminal_gets_what_it_has_room_for_and_is_told_of_the_rest(width: int, study: Path) -> None:
    console = Console(width=width, record=True, force_terminal=True)
    print_sheets(sheets(measured(study)), console)
    shown = console.export_text()
    assert re.search(r"^  ring +6 +76.23 ± 0.23 ", shown, re.MULTILINE)
    assert all(title in shown for title in ("top-5 %", "sd seeds", "images/s", "distance", "training s"))
    assert ("Not shown, for the terminal is narrow" in shown) == (width < 120)


def test_sorting_does_not_lose_rows(study: Path) -> None:
    results = measured(study, target=76.0)
    assert len(sort_rows(results, "target").rows) == len(results.rows)
    assert to_latex(sheets(results)) != to_latex(sheets(sort_rows(results, "top1")))


def test_a_sweep_ends_with_the_same_table(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show_results(sorted(path for path in study.iterdir()))
    shown = capsys.readouterr().out
    assert "76.23 ± 0.23" in shown
    assert shown.splitlines()[-1] == f"next: imgnet report {study}"


def test_results_wait_for_no_torch_and_help_for_nothing(study: Path) -> None:
    code = (
        "import sys\n"
        "from imgnet.cli import app\n"
        "heavy = {'torch', 'pandas', 'matplotlib', 'scipy', 'numpy', 'jinja2'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        f"app(['results', {str(study)!r}], standalone_mode=False)\n"
        "assert not {'torch', 'pandas', 'matplotlib', 'jinja2'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
