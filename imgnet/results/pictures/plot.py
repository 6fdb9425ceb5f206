"""Pictures of runs for papers and READMEs: the same runs give the same bytes."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from imgnet.results.files import Problems
from imgnet.results.groups import Group, UnknownChoiceError
from imgnet.results.pictures.curves import X_COLUMNS, columns_of
from imgnet.results.pictures.panels import (
    BAND,
    Panel,
    curves_panel,
    legend_handle,
    legend_label,
    pareto_panel,
    split_panel,
)
from imgnet.suggest import nearest

FORMATS = (".png", ".pdf", ".svg")
NO_DATES = {".png": {"Software": None}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "hatch.linewidth": 0.5,
    "pdf.fonttype": 42,  # journals refuse type 3
    "svg.hashsalt": "imgnet",
    "text.parse_math": False,  # a dollar in a name is a dollar
}
MOST_COLUMNS = 3
MOST_IN_LEGEND = 40


def overview(groups: Sequence[Group], problems: Problems, most_points: int = 256) -> list[Panel]:
    """What one looks at first: errors over epochs and over time, distance, a step's time, accuracy against time."""
    panels = [
        curves_panel(groups, "epoch", "val_error1", problems, most_points),
        curves_panel(groups, "time", "val_error1", problems, most_points),
        curves_panel(groups, "predicted_time", "val_error1", problems, most_points),
        curves_panel(groups, "epoch", "consensus_distance", problems, most_points),
        split_panel(groups, problems),
        pareto_panel(groups, "time"),
        pareto_panel(groups, "bytes"),
    ]
    return [panel for panel in panels if panel is not None]


def asked_for(
    groups: Sequence[Group], x: str, ys: Sequence[str], *, split: bool, pareto: str | None, problems: Problems
) -> list[Panel]:
    """The panels that a user names, or the overview where none is named; none where no run has what it takes.

    Raises:
        UnknownChoiceError: no run has such a column.
    """
    if not (ys or split or pareto):
        return overview(groups, problems)
    if x == "predicted_time" and not any(X_COLUMNS[x] in run.epochs for group in groups for run in group.runs):
        raise UnknownChoiceError("--x predicted_time: no run has it; cluster=simulated cluster.like=32xT4 predicts it")
    panels = [_of_column(groups, x, y, problems) for y in ys]
    panels += [split_panel(groups, problems)] if split else []
    panels += [pareto_panel(groups, pareto)] if pareto else []
    return [panel for panel in panels if panel is not None]


def _of_column(groups: Sequence[Group], x: str, y: str, problems: Problems) -> Panel | None:
    runs = [run for group in groups for run in group.runs]
    if y not in (known := columns_of(runs, problems)):
        raise UnknownChoiceError(f"--y {y}: no run has such a column; {nearest(y, known)}")
    return curves_panel(groups, x, y, problems)


def plot(groups: Sequence[Group], panels: Sequence[Panel], path: Path) -> None:
    """Draw panels side by side, with one legend for all.

    Args:
        groups: whose curves these are, in the order of their styles.
        panels: what to draw.
        path: the picture; its ending is one of :data:`FORMATS`.
    """
    with drawing():
        rows, columns = _shape(len(panels) + 1)
        figure = Figure(figsize=(4.3 * columns, 3.3 * rows), layout="constrained")
        places = figure.subplots(rows, columns, squeeze=False).flatten()
        for panel, axes in zip(panels, places, strict=False):
            panel.draw(axes)
            axes.set_title(panel.title)
        _draw_legend(places[len(panels)], groups)
        for axes in places[len(panels) + 1 :]:
            axes.axis("off")
        figure.savefig(path, dpi=150, metadata=NO_DATES[path.suffix])


def _shape(num_places: int) -> tuple[int, int]:
    """Rows and columns, as even as can be."""
    rows = -(-num_places // MOST_COLUMNS)
    return rows, -(-num_places // rows)


@contextmanager
def drawing(**changes: Any) -> Iterator[None]:
    """Our style, whatever the user's; a character that no font has is drawn as a box, without a warning."""
    with style.context(["default", STYLE | changes]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def _draw_legend(axes: Axes, groups: Sequence[Group]) -> None:
    axes.axis("off")
    shown = groups[:MOST_IN_LEGEND]
    handles = [legend_handle(index, is_finished=bool(group.completed)) for index, group in enumerate(shown)]
    size = 8 if len(shown) <= 14 else 5
    labels = [legend_label(group) for group in shown]
    title = ", ".join(groups[0].labels)
    place: Any = {"loc": "upper left", "frameon": False, "alignment": "left"}
    axes.legend(handles, labels, title=title, fontsize=size, ncols=1 + (len(shown) > 20), **place)
    notes = [f"and {len(groups) - len(shown)} more"] if len(groups) > len(shown) else []
    notes += [BAND] if any(len(group.completed) > 1 for group in groups) else []
    axes.text(0, 0, "\n".join(notes), fontsize=7, color="0.35", va="bottom", wrap=True, transform=axes.transAxes)
