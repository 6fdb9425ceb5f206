"""The picture of a topology."""

from pathlib import Path

import matplotlib as mpl
import numpy as np

from imgnet.parallel.topology import (
    DirectedRound,
    GroupRound,
    Round,
    Topology,
    mixing_matrix,
    rounds_to_consensus,
    spectral_gap,
)
from imgnet.parallel.topology.rounds import edges_of
from imgnet.results.pictures.topologies import deviations

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.ticker import MaxNLocator

NUM_DRAWN_ROUNDS = 4
MOST_LABELLED = 32
"""Workers up to which each has its rank on it."""
NODE_COLOURS = [mpl.colormaps["tab10"](index) for index in range(10)]
WITHIN, BETWEEN, WORKER = "0.45", "tab:red", "tab:blue"


def draw(topology: Topology, path: Path) -> None:
    """Graphs of the first rounds over their matrices, and how fast a disagreement vanishes.

    Args:
        topology: what to draw.
        path: the picture; its ending says the format.
    """
    rounds = _drawn_rounds(topology)
    columns = len(rounds) + 1
    figure, axes = plt.subplots(2, columns, figsize=(3.3 * columns, 6.6), squeeze=False, layout="constrained")
    largest = max(mixing_matrix(round_, topology.world_size).max() for _, round_ in rounds)
    scale = ScalarMappable(Normalize(0, largest), cmap="Blues")
    for (number, round_), (above, below) in zip(rounds, axes.T, strict=False):
        _draw_graph(above, round_, topology)
        above.set_title(f"round {number}")
        below.imshow(mixing_matrix(round_, topology.world_size), cmap="Blues", vmin=0, vmax=largest)
        _label_workers(below, topology)
    figure.colorbar(scale, ax=axes[1, -2], shrink=0.75, label="weight")
    _draw_legend(axes[0, -1], topology, len(rounds))
    _draw_decay(axes[1, -1], topology)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _drawn_rounds(topology: Topology) -> list[tuple[int, Round]]:
    """The first distinct rounds in which somebody communicates, with their numbers."""
    seen: dict[Round, int] = {}
    for number, round_ in enumerate(topology.rounds):
        if not round_.is_idle:
            seen.setdefault(round_, number)
    found = [(number, round_) for round_, number in seen.items()] or [(0, topology.rounds[0])]
    return found[:NUM_DRAWN_ROUNDS]


def _positions(topology: Topology) -> np.ndarray:
    """Workers on a circle from the top, clockwise, with a gap between nodes; ``[world size, 2]``."""
    size, per_node = topology.world_size, topology.workers_per_node
    gap = 0.6 if topology.num_nodes > 1 and per_node > 1 else 0.0
    places = np.arange(size) + gap * (np.arange(size) // per_node)
    angles = np.pi / 2 - 2 * np.pi * places / (size + gap * topology.num_nodes)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _colour(rank: int, topology: Topology) -> tuple:
    return NODE_COLOURS[rank // topology.workers_per_node % len(NODE_COLOURS)]


def _draw_graph(axis: Axes, round_: Round, topology: Topology) -> None:
    points = _positions(topology)
    pairs = np.array([edge for edge in edges_of(round_) if isinstance(round_, DirectedRound) or edge[0] < edge[1]])
    pairs = pairs.reshape(-1, 2)
    crosses = pairs[:, 0] // topology.workers_per_node != pairs[:, 1] // topology.workers_per_node
    alpha = float(np.clip(60 / max(len(pairs), 1), 0.1, 1.0))
    if isinstance(round_, GroupRound):
        _shade_groups(axis, round_, points)
    bend = 0.0 if topology.world_size <= MOST_LABELLED else 0.45
    for between, colour in ((False, WITHIN), (True, BETWEEN)):
        lines = [_line(points[pair], bend) for pair in pairs[crosses == between]]
        axis.add_collection(LineCollection(lines, colors=colour, linewidths=1.4, alpha=alpha, zorder=2))
        if lines and isinstance(round_, DirectedRound):
            _draw_heads(axis, np.stack(lines), colour)
    dot = float(np.clip(3000 / topology.world_size, 20, 260))
    axis.scatter(*points.T, s=dot, c=[_colour(rank, topology) for rank in range(len(points))], zorder=3, lw=0)
    _label_points(axis, points, topology)
    axis.set(xlim=(-1.25, 1.25), ylim=(-1.25, 1.25), aspect="equal")
    axis.axis("off")


def _draw_heads(axis: Axes, lines: np.ndarray, colour: str) -> None:
    """A tip on each line, ``[lines, points, 2]``, nearer to its end, so that two opposite ones can be told apart."""
    place = lines.shape[1] * 6 // 10
    way = lines[:, place + 1] - lines[:, place]
    tips = 0.12 * way / np.linalg.norm(way, axis=1, keepdims=True)
    axis.quiver(
        *lines[:, place].T, *tips.T, color=colour, angles="xy", scale_units="xy", scale=1, pivot="mid",
        width=0.01, headwidth=4, headlength=5, headaxislength=5, minlength=0, zorder=2,
    )  # fmt: skip


def _line(ends: np.ndarray, bend: float) -> np.ndarray:
    """From one worker to another, bent inwards: on a full circle a straight line to a neighbour is hidden."""
    t = np.linspace(0, 1, 16)[:, None]
    control = (1 - bend) * ends.mean(axis=0)
    return (1 - t) ** 2 * ends[0] + 2 * t * (1 - t) * control + t**2 * ends[1]


def _label_points(axis: Axes, points: np.ndarray, topology: Topology) -> None:
    """Each worker's rank on its dot; of many workers only a node's first, beside the circle."""
    few = topology.world_size <= MOST_LABELLED
    step = 1 if few else max(topology.workers_per_node, topology.world_size // 8)
    for rank in range(0, topology.world_size, step):
        x, y = points[rank] * (1.0 if few else 1.14)
        axis.text(x, y, str(rank), color="white" if few else "0.3", ha="center", va="center", fontsize=8, zorder=4)


def _shade_groups(axis: Axes, round_: GroupRound, points: np.ndarray) -> None:
    for group in round_.groups:
        if len(group.ranks) > 2:
            axis.fill(*points[list(group.ranks)].T, color="0.5", alpha=0.08, lw=0, zorder=1)


def _label_workers(axis: Axes, topology: Topology) -> None:
    step = 1 if topology.world_size <= 16 else 8
    ticks = range(0, topology.world_size, step)
    axis.set_xticks(ticks, [str(tick) for tick in ticks], fontsize=7)
    axis.set_yticks(ticks, [str(tick) for tick in ticks], fontsize=7)
    for border in range(topology.workers_per_node, topology.world_size, topology.workers_per_node):
        if topology.workers_per_node > 1:
            axis.axhline(border - 0.5, color="0.6", lw=0.5)
            axis.axvline(border - 0.5, color="0.6", lw=0.5)
    axis.set_xlabel("takes from worker")
    axis.set_ylabel("worker")


def _draw_legend(axis: Axes, topology: Topology, num_drawn: int) -> None:
    axis.axis("off")
    rounds, nodes = len(topology.rounds), topology.num_nodes
    gap = spectral_gap(topology.rounds, topology.world_size)
    lines = [
        f"{topology.world_size} workers on {nodes} node{'s' * (nodes > 1)} of {topology.workers_per_node}",
        f"{rounds} round{'s' * (rounds > 1)} in a period" + (f", {num_drawn} shown" if num_drawn < rounds else ""),
        f"spectral gap {gap.step:.3g} in a step",
    ]
    axis.text(0.0, 0.95, topology.name, fontsize=14, weight="bold", va="top", transform=axis.transAxes)
    axis.text(0.0, 0.80, "\n".join(lines), va="top", linespacing=1.7, transform=axis.transAxes)
    axis.plot([], [], color=WITHIN, label="within a node")
    if nodes > 1:
        axis.plot([], [], color=BETWEEN, label="between nodes")
    axis.legend(loc="lower left", frameon=False, borderaxespad=0, borderpad=0)


def _draw_decay(axis: Axes, topology: Topology) -> None:
    left = deviations(topology, int(np.clip(3 * len(topology.rounds), 12, 60)))
    exact = rounds_to_consensus(topology.rounds, topology.world_size)
    exact = None if exact is None or exact >= len(left) else max(exact, 1)
    shown = left[:exact]
    axis.semilogy(range(len(shown)), shown, marker="o", ms=4, color=WORKER)
    if exact is not None:
        axis.plot([exact - 1, exact], [shown[-1], 0.1 * min(shown)], ls=":", color=WORKER)
        axis.plot(exact, 0.1 * min(shown), marker="v", color=WORKER)
        place = {"xytext": (-10, 0), "textcoords": "offset points", "ha": "right", "va": "center"}
        axis.annotate("exact", (exact, 0.1 * min(shown)), color=WORKER, fontsize=9, **place)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("steps")
    axis.set_title("worst disagreement left", fontsize=10)
    axis.set_box_aspect(1)
    axis.grid(visible=True, alpha=0.3)
