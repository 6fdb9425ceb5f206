"""Predictions as a table, CSV or JSON. Every heading says that they are predicted."""

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict
from io import StringIO
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from imgnet.plan.against import Fit
from imgnet.plan.predict import Prediction
from imgnet.results.names import distinct_names

DERIVED = ("epoch_s", "run_h", "images_per_s", "hidden", "limited_by")
"""Properties that are written beside the fields."""
BOUND_NOTE = "≥: two rounds are on the links at once, for too many workers to replay each event; a bound from below"


def rows(predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    """Plain values, with ``predicted_`` before each that was not given."""
    return [_row(prediction) for prediction in predictions]


def _row(prediction: Prediction) -> dict[str, Any]:
    given = ("topology", "averaging", "cluster", "num_workers", "images_per_worker", "num_steps_of_epoch", "num_epochs")
    values = asdict(prediction) | {name: getattr(prediction, name) for name in DERIVED}
    return {key if key in given else f"predicted_{key}": value for key, value in values.items()}


def as_json(predictions: Sequence[Prediction], about: str) -> str:
    """One object: where the computation comes from, and the rows."""
    return json.dumps({"computation": about, "predictions": rows(predictions)}, indent=2)


def as_csv(predictions: Sequence[Prediction]) -> str:
    """A header and a line for each run."""
    text = StringIO(newline="")
    writer = csv.DictWriter(text, list(_row(predictions[0])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows(predictions))
    return text.getvalue()


def show(predictions: Sequence[Prediction], about: str, console: Console | None = None) -> None:
    """Print one row for each run.

    Args:
        predictions: at least one.
        about: where the computation comes from.
        console: the terminal.
    """
    console = console or Console(width=None if Console().is_terminal else 180)
    table = Table(box=box.SIMPLE_HEAD, title=f"predicted, not measured; computation: {about}", title_style="")
    names = _names(predictions)
    for name in names:
        table.add_column(name, no_wrap=True)
    for name in ("workers", "images each", "predicted s/step", "epoch", "run", "images/s"):
        table.add_column(name, justify="right")
    for name in ("computing ms", "latency", "bandwidth", "stragglers", "hidden %"):
        table.add_column(name, justify="right")
    table.add_column("limited by", no_wrap=True)
    for prediction in predictions:
        table.add_row(*(getattr(prediction, name) for name in names), *_cells(prediction))
    console.print(table)
    if any(prediction.is_bound for prediction in predictions):
        console.print(BOUND_NOTE, highlight=False)


def _names(predictions: Sequence[Prediction]) -> list[str]:
    """What tells the runs apart; how they average only where some do not in every step."""
    differ = any(prediction.averaging != "every_step" for prediction in predictions)
    return ["topology", *["averaging"] * differ, "cluster"]


def show_comparison(fit: Fit, console: Console | None = None) -> None:
    """Print prediction beside measurement, and what was fitted."""
    console = console or Console(width=None if Console().is_terminal else 160)
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("run")
    for name in ("workers", "measured s/step", "predicted s/step", "error %", "error % if left out of the fit"):
        table.add_column(name, justify="right")
    names = distinct_names([one.measured.run_dir for one in fit.comparisons])
    for name, one in zip(names, fit.comparisons, strict=True):
        measured = one.measured.step_s
        left_out = "-" if one.left_out_s is None else f"{100 * (one.left_out_s / measured - 1):+.1f}"
        table.add_row(
            name,
            str(one.measured.layout.world_size),
            f"{measured:.4g}",
            f"{one.predicted_s:.4g}",
            f"{100 * (one.predicted_s / measured - 1):+.1f}",
            left_out,
        )
    console.print(table)
    fitted = ", ".join(f"{name}={value:.4g}" for name, value in fit.fitted.items())
    console.print(f"fitted to these runs: {fitted or 'nothing'}", highlight=False)


def _cells(prediction: Prediction) -> list[str]:
    hidden = prediction.hidden
    parts = (prediction.computation_s, prediction.latency_s, prediction.bandwidth_s, prediction.stragglers_s)
    return [
        f"{prediction.num_workers:,}",
        f"{prediction.images_per_worker:,}",
        f"{'≥ ' * prediction.is_bound}{prediction.step_s:.4g}",
        duration(prediction.epoch_s),
        duration(3600 * prediction.run_h),
        f"{prediction.images_per_s:,.0f}",
        *(f"{1e3 * seconds:.1f}" for seconds in parts),
        "-" if hidden is None else f"{100 * hidden:.0f}",
        prediction.limited_by,
    ]


def duration(seconds: float) -> str:
    """``3.2 s``, ``12.5 min``, ``6.1 h``."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.1f} s"
