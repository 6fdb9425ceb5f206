"""Curves of one or several runs, from their ``metrics.csv``."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import pandas as pd

from imgnet.results.table import distinct_names

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

ERROR_LABEL = "top-1 error of the averaged model, %"
PANELS = (
    ("epoch", "val_error1", ERROR_LABEL),
    ("train_time_s", "val_error1", ERROR_LABEL),
    ("epoch", "consensus_distance", "distance of the workers from their average"),
)
PERCENT = FuncFormatter(lambda value, _: f"{value:g}")
X_LABELS = {"epoch": "epoch", "train_time_s": "training time, s"}


def plot_runs(run_dirs: Sequence[Path], path: Path) -> None:
    """Draw accuracy over epochs and over time, and the distance between workers, one curve for each run.

    Args:
        run_dirs: directories with a ``metrics.csv``.
        path: the picture; its ending says the format.
    """
    tables = [_metrics(run_dir) for run_dir in run_dirs]
    figure, axes = plt.subplots(1, len(PANELS), figsize=(5 * len(PANELS), 4), layout="constrained")
    for axis, (x, y, label) in zip(axes, PANELS, strict=True):
        for name, table in zip(distinct_names(run_dirs), tables, strict=True):
            evaluated = table.dropna(subset=[y])
            axis.plot(evaluated[x], evaluated[y], label=name, marker=".")
        axis.set_xlabel(X_LABELS[x])
        axis.set_ylabel(label)
        axis.grid(visible=True, which="both", alpha=0.3)
        if x == "epoch":
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        if y == "val_error1":  # the last percent is where runs differ
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter(PERCENT)
            axis.yaxis.set_minor_formatter(PERCENT if _ratio(tables, y) < 20 else NullFormatter())
    axes[0].legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _metrics(run_dir: Path) -> pd.DataFrame:
    table = pd.read_csv(run_dir / "metrics.csv")
    # No error at all has no place on a logarithmic axis; a hundredth of a percent stands for it.
    table["val_error1"] = (100 - table["val_acc1"]).clip(lower=0.01)
    return table


def _ratio(tables: Sequence[pd.DataFrame], column: str) -> float:
    values = pd.concat([table[column] for table in tables]).dropna().to_numpy()
    return float(values.max() / values.min())
