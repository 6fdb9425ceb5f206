"""Runs that differ in their seed alone."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from imgnet.results.seeds import over_seeds, show_over_seeds


def write_run(folder: Path, overrides: list[str], acc1: float, status: str = "completed") -> Path:
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"overrides": overrides}))
    summary = {"status": status, "val_acc1": acc1, "best_acc1": acc1, "consensus_distance": 0.5, "train_time_s": 2.0}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_mean_and_deviation_of_completed_runs(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "0", ["+experiments=a", "topology=ring", "seed=1"], 96.0),
        write_run(tmp_path / "1", ["+experiments=a", "topology=ring", "seed=2"], 98.0),
        write_run(tmp_path / "2", ["+experiments=a", "topology=exp", "seed=1"], 97.0),
        write_run(tmp_path / "3", ["+experiments=a", "topology=exp", "seed=2"], 10.0, status="failed"),
    ]
    ring, exp = over_seeds(runs)
    assert (ring.name, ring.num_runs, exp.name, exp.num_runs) == ("topology=ring", 2, "topology=exp", 1)
    assert ring.describe("val_acc1", ".2f") == "97.00 ± 1.41"
    assert exp.describe("val_acc1", ".2f") == "97.00"


@pytest.mark.parametrize("markdown", [False, True])
def test_a_table_of_one_group(markdown: bool, tmp_path: Path) -> None:
    console = Console(width=120, record=True)
    show_over_seeds([write_run(tmp_path / "0", ["seed=1"], 0.0, "failed")], markdown=markdown, console=console)
    text = console.export_text()
    assert "all" in text
    assert "-" in text
    assert ("|" in text) == markdown
