"""Single pictures of groups of runs, each drawn on the axes that it is given.

Colours are those of Okabe and Ito, which people with any colour vision tell apart; line styles and markers differ as
well, so that a print in grey can be read. Every artist of a group has ``group_<number>`` as its ``gid``.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.container import Container
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from imgnet.results.files import Problems
from imgnet.results.groups import Group
from imgnet.results.measures import SENT, TIME, TOP1, Measure, over
from imgnet.results.pictures.curves import ERRORS, Curve, curve_of, least_error, split_of
from imgnet.results.sheet import Unit
from imgnet.results.statistics import Estimate, estimate, pareto_front

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
Dashes = tuple[float, tuple[float, ...]]
LINES: tuple[Dashes, ...] = ((0, ()), (0, (5, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (1.5, 1.2)))
UNFINISHED: Dashes = (0, (1, 4))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
"""As many as have no divisor in common with the others: 252 styles."""
PART_COLOURS = (("data", "#E69F00", "//"), ("computation", "#56B4E9", ""), ("waiting", "#0072B2", ".."))
BAND = "bands and bars: 95 % Student t interval\nof the mean over seeds"
MOST_BARS = 40
MOST_WITH_MARKERS = 40
"""Curves; of more the markers would cover all."""
NAMES = {
    "val_error1": ("top-1 error", "%"),
    "val_error5": ("top-5 error", "%"),
    "val_acc1": ("top-1", "%"),
    "val_acc5": ("top-5", "%"),
    "val_loss": ("validation loss", ""),
    "train_loss": ("training loss", ""),
    "consensus_distance": ("distance of workers from their mean", ""),
    "neighbour_distance": ("distance between neighbours", ""),
    "images_per_s": ("images/s", ""),
    "lr": ("learning rate", ""),
    "sent_mb": ("sent by a worker", "MB"),
}
"""What a column is called, and its unit."""
OVER = {
    "epoch": "epochs",
    "step": "steps",
    "time": "time",
    "predicted_time": "predicted time",
    "sent": "MB sent by a worker",
}
TIMES = {"time": "training time", "predicted_time": "predicted training time"}
"""Of :data:`OVER`, those in seconds, and what their axes are called."""
Draw = Callable[[Axes], None]


@dataclass(frozen=True)
class Style:
    """How a group is drawn in every panel."""

    colour: str
    line: Dashes
    marker: str

    @classmethod
    def of(cls, index: int) -> "Style":
        """Of the group with this number."""
        return cls(COLOURS[index % len(COLOURS)], LINES[index % len(LINES)], MARKERS[index % len(MARKERS)])


GID = re.compile(r"group_(\d+)")


def gid(index: int) -> str:
    """The name of a group's artists in an SVG."""
    return f"group_{index}"


def _own(container: Container, index: int) -> None:
    """Put a group's name on all that bars of error are made of."""
    for artist in container.get_children():
        artist.set_gid(gid(index))


@dataclass(frozen=True)
class Panel:
    """A picture to be drawn.

    Attributes:
        title: in a few words.
        draw: onto axes.
    """

    title: str
    draw: Draw


def curves_panel(groups: Sequence[Group], x: str, y: str, problems: Problems, most_points: int = 256) -> Panel | None:
    """A column over epochs, steps or time; None where no run has it."""
    curves = [curve_of(group, x, y, problems, most_points) for group in groups]
    if not any(curves):
        return None
    floor = least_error(groups) if y in ERRORS else None
    name, unit = NAMES.get(y, (y, ""))
    label = f"{name}, {unit}" if unit else name
    return Panel(f"{name} over {OVER[x]}", lambda axes: _draw_curves(axes, curves, x, label, floor))


def _draw_curves(axes: Axes, curves: Sequence[Curve | None], x: str, label: str, floor: float | None) -> None:
    there = [(index, curve) for index, curve in enumerate(curves) if curve]
    unit = Unit.of([curve.x[-1] for _, curve in there]) if x in TIMES else Unit(x, 1, "")
    for index, curve in there:
        _draw_curve(axes, index, curve, unit.seconds, floor or -math.inf, is_one_of_few=len(there) <= MOST_WITH_MARKERS)
    axes.set_xlabel(f"{TIMES[x]}{_where(x, there)}, {unit.name}" if x in TIMES else OVER[x] if x == "sent" else x)
    axes.set_ylabel(label)
    if x not in TIMES:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    _scale_to([np.maximum(curve.mean, floor or -math.inf) for _, curve in there], axes, is_log=floor is not None)


def _where(x: str, curves: Sequence[tuple[int, Curve]]) -> str:
    """The cluster that all times are predicted for."""
    clusters = {run.settings.get("cluster.like") for _, curve in curves for run in curve.group.runs}
    return f" on {clusters.pop()}" if x == "predicted_time" and len(clusters) == 1 else ""


def _draw_curve(axes: Axes, index: int, curve: Curve, seconds: float, floor: float, *, is_one_of_few: bool) -> None:
    style, x = Style.of(index), curve.x / seconds
    # Markers stand apart from curve to curve, so that they do not cover each other.
    every = max(1, len(x) // 8)
    axes.plot(
        x,
        np.maximum(curve.mean, floor),
        color=style.colour,
        linestyle=style.line if curve.is_finished else UNFINISHED,
        linewidth=1.4 if is_one_of_few else 0.7,
        marker=style.marker if is_one_of_few else None,
        markersize=4,
        markevery=(index % every, every),
        gid=gid(index),
    )
    if not np.isnan(curve.low).any():
        low, high = np.maximum(curve.low, floor), np.maximum(curve.high, floor)
        axes.fill_between(x, low, high, color=style.colour, alpha=0.15, linewidth=0, gid=gid(index))


def _scale_to(means: Sequence[np.ndarray], axes: Axes, *, is_log: bool) -> None:
    """The vertical axis holds the means; a band of two seeds may reach far beyond."""
    values = np.concatenate(means)
    low, high = float(values.min()), float(values.max())
    if is_log:
        axes.set_yscale("log")
        margin = (high / low) ** 0.05 if high > low else 1.5
        axes.set_ylim(low / margin, high * margin)
        _label_logarithms(axes, high / low)
    else:
        margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
        axes.set_ylim(low - margin, high + margin)
    axes.grid(visible=True, which="both", alpha=0.25, linewidth=0.6)


def _label_logarithms(axes: Axes, ratio: float) -> None:
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(plain)
    axes.yaxis.set_minor_formatter(plain if ratio < 3 else NullFormatter())


def split_panel(groups: Sequence[Group], problems: Problems) -> Panel | None:
    """What a step's milliseconds go into; None where no run says."""
    found = [
        [s for run in group.completed if (s := split_of(run, problems)) is not None] for group in groups[:MOST_BARS]
    ]
    if not any(found):
        return None
    more = f" (the first {MOST_BARS})" if len(groups) > MOST_BARS else ""
    return Panel(f"time of a step{more}", lambda axes: _draw_split(axes, groups, found))


def _draw_split(axes: Axes, groups: Sequence[Group], found: Sequence[Sequence[np.ndarray]]) -> None:
    there = [(index, np.array(splits)) for index, splits in enumerate(found) if splits]
    for place, (index, splits) in enumerate(there):
        begin = 0.0
        for (_, colour, hatch), width in zip(PART_COLOURS, splits.mean(axis=0), strict=True):
            axes.barh(
                place, width, left=begin, color=colour, hatch=hatch, edgecolor="white", linewidth=0.5, gid=gid(index)
            )
            begin += width
        total = estimate(splits.sum(axis=1))
        if not math.isnan(total.low):
            bar = axes.errorbar(total.mean, place, xerr=total.half_width, color="black", capsize=2, linewidth=1)
            _own(bar, index)
    size = 8 if len(there) <= 12 else 5
    axes.set_yticks(range(len(there)), [_short(groups[index].short_name) for index, _ in there], fontsize=size)
    axes.invert_yaxis()
    axes.set_xlabel("ms of a step, rank 0")
    axes.set_xlim(left=0)
    handles = [Patch(facecolor=colour, hatch=hatch, edgecolor="white") for _, colour, hatch in PART_COLOURS]
    names = [name for name, _, _ in PART_COLOURS]
    axes.legend(handles, names, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False, fontsize=8)
    axes.grid(visible=True, axis="x", alpha=0.25, linewidth=0.6)


def _short(name: str, most: int = 28) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def pareto_panel(groups: Sequence[Group], cost: str) -> Panel | None:
    """Accuracy against ``time`` or ``bytes``, with the line of those that no other beats in both."""
    measure = {"time": TIME, "bytes": SENT}[cost]
    found = [(over(group.completed, measure.of), over(group.completed, TOP1.of)) for group in groups]
    there = {index: (spent, gained) for index, (spent, gained) in enumerate(found) if spent and gained}
    if not there:
        return None
    title = "training time" if cost == "time" else "MB sent"
    return Panel(f"accuracy against {title}", lambda axes: _draw_pareto(axes, there, measure))


def _draw_pareto(axes: Axes, points: dict[int, tuple[Estimate, Estimate]], measure: Measure) -> None:
    unit = Unit.of([spent.mean for spent, _ in points.values()]) if measure.is_time else Unit("MB", 1, "")
    costs = np.array([spent.mean / unit.seconds for spent, _ in points.values()])
    gains = np.array([gained.mean for _, gained in points.values()])
    front = pareto_front(costs, gains)
    axes.plot(costs[front], gains[front], drawstyle="steps-post", color="0.6", linewidth=1, linestyle="--", zorder=1)
    for (index, (spent, gained)), cost, gain in zip(points.items(), costs, gains, strict=True):
        style = Style.of(index)
        axes.plot(cost, gain, color=style.colour, marker=style.marker, markersize=6, gid=gid(index))
        if not math.isnan(spent.low) or not math.isnan(gained.low):
            arms: dict[str, Any] = {"xerr": _arm(spent, unit.seconds), "yerr": _arm(gained, 1)}
            _own(axes.errorbar(cost, gain, **arms, color=style.colour, elinewidth=1, capsize=2), index)
    axes.set_xlabel("training time, " + unit.name if measure.is_time else "MB sent by a worker")
    axes.set_ylabel("top-1, %")
    axes.grid(visible=True, alpha=0.25, linewidth=0.6)


def _arm(found: Estimate, scale: float) -> float | None:
    return None if math.isnan(found.low) else found.half_width / scale


def legend_handle(index: int, *, is_finished: bool) -> Line2D:
    """What stands beside a group's name."""
    style = Style.of(index)
    line = style.line if is_finished else UNFINISHED
    return Line2D([], [], color=style.colour, linestyle=line, marker=style.marker, markersize=4, linewidth=1.4)


def legend_label(group: Group) -> str:
    """A group's values, and how many seeds its curve is of."""
    counted, all_seeds = len(group.completed), len(group.runs)
    if not counted:
        return f"{group.short_name} (unfinished)"
    if all_seeds == 1:
        return group.short_name
    return f"{group.short_name} ({counted if counted == all_seeds else f'{counted} of {all_seeds}'} seeds)"
