"""A topology made readable: its rounds, its matrices, how fast it brings workers together, and what it sends."""

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

import numpy as np
from rich.console import Console
from rich.table import Table

from imgnet.parallel.averaging.rhythm import Rhythm
from imgnet.parallel.topology import (
    DirectedRound,
    Group,
    GroupRound,
    Round,
    Topology,
    mixing_matrix,
    rounds_to_consensus,
    spectral_gap,
)
from imgnet.results.pictures.traffic import Size, traffic_by_averaging, traffic_by_link

NUM_SHOWN_ROUNDS = 8
LARGEST_WRITTEN_MATRIX = 16
"""Workers up to which matrices are written out; larger ones are for the picture."""


def show_topology(
    topology: Topology, size: Size, rhythms: Mapping[str, Rhythm], console: Console | None = None
) -> None:
    """Print what a topology does in a period, and what each worker sends in a step; ``rhythms`` by way to average."""
    console = console or Console(width=None if Console().is_terminal else 160)
    nodes = f"{topology.num_nodes} node{'s' * (topology.num_nodes > 1)} of {topology.workers_per_node}"
    console.print(f"[bold]{topology.name}[/bold], {topology.world_size} workers on {nodes}", highlight=False)
    console.print(_numbers(topology))
    console.print(traffic_by_link(topology, size))
    console.print(traffic_by_averaging(topology, size, rhythms))
    for number, round_ in enumerate(topology.rounds[:NUM_SHOWN_ROUNDS]):
        console.print(f"[bold]round {number}[/bold]  {describe_round(round_)}", highlight=False)
        if not round_.is_idle and topology.world_size <= LARGEST_WRITTEN_MATRIX:
            _print_matrix(mixing_matrix(round_, topology.world_size), console)
    if len(topology.rounds) > NUM_SHOWN_ROUNDS:
        console.print(f"... and {len(topology.rounds) - NUM_SHOWN_ROUNDS} rounds more")
    if topology.world_size > LARGEST_WRITTEN_MATRIX:
        console.print(f"matrices of more than {LARGEST_WRITTEN_MATRIX} workers are in the picture: --png FILE")


def _numbers(topology: Topology) -> Table:
    gap = spectral_gap(topology.rounds, topology.world_size)
    exact = rounds_to_consensus(topology.rounds, topology.world_size)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_row("rounds in a period", str(len(topology.rounds)))
    table.add_row("matrices", _kind(topology))
    table.add_row("workers agree exactly after", "never; they only come closer" if exact is None else f"{exact} rounds")
    table.add_row("spectral gap", f"{gap.period:.4g} in a period, {gap.step:.4g} in a step")
    return table


def _kind(topology: Topology) -> str:
    if not topology.is_directed:
        return "symmetric and doubly stochastic"
    rows = [mixing_matrix(round_, topology.world_size).sum(axis=1) for round_ in topology.rounds]
    also_rows = np.allclose(rows, 1.0, rtol=0.0, atol=1e-12)
    return "directed, doubly stochastic" if also_rows else "directed, column-stochastic"


def describe_round(round_: Round, most: int = 12) -> str:
    """One line: the groups, or each worker's neighbours, with the weights that are not those of the plain mean."""
    if round_.is_idle:
        return "nobody communicates"
    parts = list(_parts(round_))
    return "  ".join(parts[:most]) + (f"  ... {len(parts) - most} more" if len(parts) > most else "")


def _parts(round_: Round) -> Iterator[str]:
    if isinstance(round_, GroupRound):
        yield from _groups(round_)
    elif isinstance(round_, DirectedRound):
        yield from _lists(round_.receivers, "to")
    else:
        yield from _lists(round_.neighbours, "of")


def _groups(round_: GroupRound) -> Iterator[str]:
    resting = [group.ranks[0] for group in round_.groups if len(group.ranks) == 1]
    for group in round_.groups:
        if len(group.ranks) > 1:
            keeps = "" if group.is_uniform else f" (each keeps {_fraction(group.weight)})"
            yield f"{_ranks(group)}{keeps}"
    if resting:
        yield f"resting: {', '.join(map(str, resting))}"


def _ranks(group: Group) -> str:
    first, last = group.ranks[0], group.ranks[-1]
    is_run = len(group.ranks) > 3 and last - first == len(group.ranks) - 1
    return f"{{{first}..{last}}}" if is_run else "{" + ",".join(map(str, group.ranks)) + "}"


def _lists(lists: Sequence[Sequence[tuple[int, float]]], word: str) -> Iterator[str]:
    for rank, peers in enumerate(lists):
        shown = ", ".join(f"{_fraction(weight)} {word} {peer}" for peer, weight in peers[:4])
        yield f"{rank}: {shown or 'rests'}{' ...' if len(peers) > 4 else ''}"


def _print_matrix(matrix: np.ndarray, console: Console) -> None:
    cells = [["." if weight == 0 else _fraction(weight) for weight in row] for row in matrix]
    width = max(len(cell) for row in cells for cell in row)
    for row in cells:
        console.print("    " + " ".join(cell.rjust(width) for cell in row), highlight=False, markup=False)
    console.print()


def _fraction(value: float) -> str:
    """As a fraction of small numbers where it is one, such as 1/3."""
    near = Fraction(value).limit_denominator(128)
    return str(near) if abs(float(near) - value) < 1e-12 else f"{value:.4g}"


def deviations(topology: Topology, num_steps: int) -> list[float]:
    """What is left of a disagreement at worst: ``|W_t ... W_1 - J|`` in the spectral norm, for t = 0, 1, ..."""
    left = np.eye(topology.world_size) - 1.0 / topology.world_size
    norms = [1.0]
    for step in range(num_steps):
        left = mixing_matrix(topology.round_at(step), topology.world_size) @ left
        norms.append(float(np.linalg.norm(left, ord=2)))
    return norms
