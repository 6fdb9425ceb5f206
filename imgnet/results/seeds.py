"""Runs that differ in their seed alone, taken together: mean and deviation."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from rich import box
from rich.console import Console
from rich.table import Table

from imgnet.rundir import read_json

COLUMNS = {
    "val_acc1": ("top-1 %", ".2f"),
    "best_acc1": ("best %", ".2f"),
    "consensus_distance": ("distance", ".3g"),
    "train_time_s": ("training s", ".1f"),
}


@dataclass(frozen=True)
class Spread:
    """Runs with the same overrides but for the seed. Only completed ones have values."""

    name: str
    num_runs: int
    values: dict[str, list[float]]

    def describe(self, key: str, form: str) -> str:
        """``mean ± deviation`` (of a sample), or the value alone where there is one."""
        values = self.values[key]
        if not values:
            return "-"
        mean = format(fmean(values), form)
        return f"{mean} ± {format(stdev(values), form)}" if len(values) > 1 else mean


def over_seeds(run_dirs: Sequence[Path]) -> list[Spread]:
    """Group runs by their overrides without ``seed``, in the order in which they come; overrides that all share go."""
    groups: dict[tuple[str, ...], list[Path]] = {}
    for run_dir in run_dirs:
        words = read_json(run_dir / "run.json").get("overrides", [])
        groups.setdefault(tuple(word for word in words if not word.startswith("seed=")), []).append(run_dir)
    shared = set.intersection(*(set(words) for words in groups)) if len(groups) > 1 else set()
    return [_spread([word for word in words if word not in shared], runs) for words, runs in groups.items()]


def _spread(words: Sequence[str], runs: Sequence[Path]) -> Spread:
    summaries = [read_json(run / "summary.json") for run in runs]
    done = [summary for summary in summaries if summary.get("status") == "completed"]
    values = {key: [summary[key] for summary in done if summary.get(key) is not None] for key in COLUMNS}
    return Spread(" ".join(words) or "all", len(done), values)


def show_over_seeds(run_dirs: Sequence[Path], *, markdown: bool, console: Console | None = None) -> None:
    """Print a row for each group of runs.

    Args:
        run_dirs: directories of runs.
        markdown: as a table for a README.
        console: where to.
    """
    table = Table(box=box.MARKDOWN if markdown else box.SIMPLE_HEAD)
    table.add_column("runs")
    for title in ("seeds", *(title for title, _ in COLUMNS.values())):
        table.add_column(title, justify="right")
    for spread in over_seeds(run_dirs):
        cells = (spread.describe(key, form) for key, (_, form) in COLUMNS.items())
        table.add_row(spread.name, str(spread.num_runs), *cells)
    (console or Console(width=None if Console().is_terminal else 160)).print(table)
