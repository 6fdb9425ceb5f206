"""What a command prints of runs that it has made."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from imgnet.results.names import display_path, typed_path
from imgnet.rundir import read_json


def show_run(run_dir: Path, console: Console | None = None) -> None:
    """Print how a run ended, where its results lie, and what to type next."""
    console = console or _console()
    summary = read_json(run_dir / "summary.json")
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("epochs", "top-1 %", "top-5 %", "distance between workers", "training s", "images/s"):
        table.add_column(column, justify="right")
    table.add_row(
        _number(summary, "epoch", ".0f"),
        _number(summary, "val_acc1", ".2f"),
        _number(summary, "val_acc5", ".2f"),
        _number(summary, "consensus_distance", ".3g"),
        _number(summary, "train_time_s", ".1f"),
        _number(summary, "images_per_s", ",.0f"),
    )
    console.print(table)
    console.print(f"results: {display_path(run_dir)}", markup=False, highlight=False, soft_wrap=True)
    if (run_dir / "checkpoints" / "final.safetensors").is_file():
        console.print(f"next:    imgnet plot {typed_path(run_dir)}", markup=False, highlight=False, soft_wrap=True)


def show_results(run_dirs: Sequence[Path]) -> None:
    """Print what came out of the runs of one command, as ``imgnet results`` does."""
    from imgnet.results.files import Problems  # scipy takes half a second, which no start of a run has to wait for
    from imgnet.results.formats import print_sheets, sheets
    from imgnet.results.groups import group_runs
    from imgnet.results.measures import results_of
    from imgnet.results.read import read_run

    problems = Problems()
    runs = [run for run_dir in run_dirs if (run := read_run(run_dir, problems)) is not None]
    print_sheets(sheets(results_of(group_runs(runs))))
    sys.stderr.writelines(f"{line}\n" for line in problems.lines())
    folders = sorted({path.parent for path in run_dirs})
    shown = " ".join(typed_path(path) for path in (folders if len(folders) == 1 else run_dirs))
    print(f"next: imgnet report {shown}")


def _console() -> Console:
    console = Console()
    # Without a terminal rich assumes 80 columns and cuts words; a log or a pipe has no width.
    return console if console.is_terminal else Console(width=160)


def _number(values: dict[str, Any], key: str, form: str) -> str:
    value = values.get(key)
    return "-" if value is None else format(value, form)
