"""``imgnet diff``: how two runs differ, and where their numbers part."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from imgnet.cli import app
from imgnet.results.differences import parting
from tests.run_directories import write_run


def imgnet_diff(*words: object) -> Result:
    return CliRunner().invoke(app, ["diff", *map(str, words)])


def described(*words: object) -> dict[str, Any]:
    return json.loads(imgnet_diff(*words, "--json").stdout)


def pairs(found: list[dict[str, Any]]) -> dict[str, tuple[str, str]]:
    return {one["key"]: (one["first"], one["second"]) for one in found}


def change_loss(run_dir: Path, step: int, factor: float) -> None:
    path = run_dir / "steps.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    changed = [row | {"loss": row["loss"] * factor} if row["step"] >= step else row for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in changed))


def test_two_runs_of_the_same_command_are_the_same(tmp_path: Path) -> None:
    first, second = (write_run(tmp_path / name, epoch_s=s) for name, s in (("a", 10.0), ("b", 11.0)))
    done = imgnet_diff(first, second)
    assert done.exit_code == 0  # though times differ
    assert "configuration: the same" in done.stdout
    assert "steps.jsonl: equal at all 20 steps that both have, to step 200" in done.stdout
    assert "metrics.csv: equal at all 3 epochs that both have, to epoch 3" in done.stdout


def test_configuration_versions_commit_and_changes_are_told(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", about={"versions": {"torch": "2.14.1"}, "commit": "1" * 40})
    second = write_run(tmp_path / "b", topology="exp", settings={"label_smoothing": 0.1})
    (second / "code.diff").write_text("diff --git a/imgnet/train.py b/imgnet/train.py\n+x\n")
    found = described(first, second)
    assert pairs(found["configuration"]) == {"topology.name": ("ring", "exp"), "label_smoothing": (None, "0.1")}
    environment = pairs(found["environment"])
    assert environment["torch"] == ("2.14.1", "2.15.0")
    assert environment["commit"] == ("1" * 40, "0" * 40)
    assert environment["uncommitted changes"][0] == "none"
    assert environment["uncommitted changes"][1].startswith("imgnet/train.py (")


def test_the_first_step_and_epoch_where_numbers_part(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", accuracies=(50.0, 70.0, 76.0))
    second = write_run(tmp_path / "b", accuracies=(50.0, 70.0, 76.5))
    change_loss(second, 70, 1 + 2**-52)
    done = imgnet_diff(first, second)
    assert done.exit_code == 1
    assert "steps.jsonl: part at step 70, equal up to step 60" in done.stdout
    assert "metrics.csv: part at epoch 3, equal up to epoch 2" in done.stdout
    _, epochs = described(first, second)["partings"]
    assert pairs(epochs["numbers"]) == {"val_acc1": ("76.0", "76.5"), "val_acc5": ("91.0", "91.5")}


def test_a_tolerance_forgives_what_is_nearer(tmp_path: Path) -> None:
    first, second = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    change_loss(second, 70, 1 + 1e-7)
    change_loss(second, 90, 1 + 1e-3)
    steps = described(first, second, "--tolerance", "1e-5")["partings"][0]
    assert (steps["at"], steps["last_equal"]) == (90, 80)
    assert imgnet_diff(first, second, "--tolerance", "0.01").exit_code == 0


def test_runs_that_differ_from_the_start(tmp_path: Path) -> None:
    first, second = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    change_loss(second, 10, 2.0)
    assert "steps.jsonl: part at step 10, the first that both have" in imgnet_diff(first, second).stdout


def test_rows_are_matched_by_their_step_where_runs_logged_at_different_ones() -> None:
    first = {"step": np.array([10.0, 20, 30, 40]), "loss": np.array([4.0, 3, 2, 1])}
    second = {"step": np.array([20.0, 40, 60]), "loss": np.array([3.0, 1.5, 0])}
    found = parting(first, second, "steps.jsonl", "step")
    assert (found.num_common, found.at, found.last_equal) == (2, 40, 20)


def test_not_a_number_is_not_a_number_in_both() -> None:
    table = {"epoch": np.array([1.0, 2.0]), "val_acc1": np.array([np.nan, 50.0])}
    assert parting(table, table, "metrics.csv", "epoch").at is None
    other = table | {"val_acc1": np.array([1.0, 50.0])}
    assert parting(table, other, "metrics.csv", "epoch").at == 1


def test_runs_without_a_common_number_cannot_be_compared(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a")
    second = write_run(tmp_path / "b", accuracies=(), steps=0, status="queued")
    done = imgnet_diff(first, second)
    assert done.exit_code == 2
    assert "steps.jsonl: no step that both have" in done.stdout


@pytest.mark.parametrize("content", [None, "{"])
def test_what_is_no_run_is_refused(content: str | None, tmp_path: Path) -> None:
    first, second = write_run(tmp_path / "a"), tmp_path / "b"
    second.mkdir()
    if content is not None:
        (second / "run.json").write_text(content)
    done = imgnet_diff(first, second)
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1] == f"{second}: no run directory (there is no run.json that can be read)"
    assert done.stdout == ""


def test_words_of_a_run_are_text(tmp_path: Path) -> None:
    first, second = write_run(tmp_path / "a"), write_run(tmp_path / "b", topology="[red]x[/red]\x1b[31m")
    shown = imgnet_diff(first, second).stdout
    assert "[red]x[/red]" in shown
    assert "\x1b" not in shown
