"""Curves of one or several runs, from their ``metrics.csv``."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import pandas as pd

from imgnet.results.table import distinct_names

mpl.use("Agg")
from matplotlib import pyplot as plt

PANELS = (
    ("epoch", "val_acc1", "top-1 of the averaged model, %"),
    ("train_time_s", "val_acc1", "top-1 of the averaged model, %"),
    ("epoch", "consensus_distance", "distance between workers"),
)
X_LABELS = {"epoch": "epoch", "train_time_s": "training time, s"}


def plot_runs(run_dirs: Sequence[Path], path: Path) -> None:
    """Draw accuracy over epochs and over time, and the distance between workers, one curve for each run.

    Args:
        run_dirs: directories with a ``metrics.csv``.
        path: the picture; its ending says the format.

    Raises:
        ValueError: a directory without metrics.
    """
    tables = [_metrics(run_dir) for run_dir in run_dirs]
    figure, axes = plt.subplots(1, len(PANELS), figsize=(5 * len(PANELS), 4), layout="constrained")
    for axis, (x, y, label) in zip(axes, PANELS, strict=True):
        for name, table in zip(distinct_names(run_dirs), tables, strict=True):
            evaluated = table.dropna(subset=[y])
            axis.plot(evaluated[x], evaluated[y], label=name, marker=".")
        axis.set_xlabel(X_LABELS[x])
        axis.set_ylabel(label)
        axis.grid(visible=True, alpha=0.3)
    axes[0].legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _metrics(run_dir: Path) -> pd.DataFrame:
    file = run_dir / "metrics.csv"
    if not file.is_file():
        raise ValueError(
            f"{run_dir}: no metrics.csv there; a run directory looks like multirun_outputs/<date>/<time>/0"
        )
    return pd.read_csv(file)
