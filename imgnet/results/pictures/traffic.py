"""What each worker sends in a step, as tables: by link for a topology, and by the way in which workers average."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
from rich import box
from rich.table import Table

from imgnet.config import AllReduceConfig
from imgnet.parallel.averaging.rhythm import Rhythm
from imgnet.parallel.topology import Topology, Traffic, all_reduce_bytes, bytes_per_step

BYTES = {"fp32": 4, "bf16": 2}


@dataclass(frozen=True)
class Size:
    """How much there is to average: a number of parameters, and what has so many."""

    num_parameters: int
    of: str
    shapes: tuple[tuple[int, ...], ...] | None = None
    """Of the parameters, where they are known."""


def traffic_by_link(topology: Topology, size: Size) -> Table:
    """MB within and between nodes, where workers average in every step."""
    title = f"MB that a worker sends in a step: {size.num_parameters:,} parameters ({size.of})"
    table = _table(title, "wire", "within nodes: mean", "most", "between nodes: mean", "most", "both: mean")
    for wire in BYTES:
        sent = _traffic(topology, size, wire)
        both = sent.within_node + sent.between_nodes
        values = [f(kind) for kind in (sent.within_node, sent.between_nodes) for f in (np.mean, np.max)]
        table.add_row(wire, *(f"{value / 1e6:,.1f}" for value in [*values, both.mean()]))
    return table


def traffic_by_averaging(topology: Topology, size: Size, rhythms: Mapping[str, Rhythm]) -> Table:
    """MB, the mean over workers and steps, for each way to average, and for gradients that all workers average.

    Args:
        topology: whose rounds are averages.
        size: what is averaged.
        rhythms: when averages come, by the name of the way.
    """
    table = _table("MB that a worker sends in a step, by averaging", "averaging", "average every", "fp32", "bf16")
    for name, rhythm in rhythms.items():
        every = f"{rhythm.fragments.every} step{'s' * (rhythm.fragments.every > 1)}"
        table.add_row(name, every, *(f"{_mean(topology, size, rhythm, wire) / 1e6:,.2f}" for wire in BYTES))
    for name, values in _gradients(topology.world_size, size):
        table.add_row(name, "1 step", *values)
    return table


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="")
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table


def _traffic(topology: Topology, size: Size, wire: str) -> Traffic:
    return bytes_per_step(
        topology.rounds,
        topology.world_size,
        topology.workers_per_node,
        size.num_parameters,
        BYTES[wire],
        groups_exchange_directly=wire == "bf16",
    )


def _mean(topology: Topology, size: Size, rhythm: Rhythm, wire: str) -> float:
    sent = _traffic(topology, size, wire)
    of_a_round = float((sent.within_node + sent.between_nodes).mean())
    of_all = all_reduce_bytes(BYTES[wire] * size.num_parameters, topology.world_size)
    exact = 1 / rhythm.exact_every if rhythm.exact_every else 0.0
    return ((1 - exact) * of_a_round + exact * of_all) / rhythm.fragments.every


def _gradients(world_size: int, size: Size) -> Iterator[tuple[str, list[str]]]:
    def sent(num_values: int, width: int) -> str:
        return f"{all_reduce_bytes(num_values * width, world_size) / 1e6:,.2f}"

    yield "gradients (topology=allreduce)", [sent(size.num_parameters, width) for width in BYTES.values()]
    if size.shapes is not None:
        settings = AllReduceConfig(name="allreduce")
        values = sum(
            powersgd_values(shape, settings.powersgd_rank, settings.powersgd_min_compression_rate)
            for shape in size.shapes
        )
        yield f"gradients by PowerSGD of rank {settings.powersgd_rank}", [sent(values, BYTES["fp32"]), "-"]


def powersgd_values(shape: tuple[int, ...], rank: int, min_compression_rate: float) -> int:
    """Numbers that PowerSGD sums up for a gradient: of P and Q, or of itself where these are not so much smaller."""
    if len(shape) < 2:
        return prod(shape)
    num_rows, num_columns = shape[0], prod(shape[1:])
    low = (num_rows + num_columns) * min(rank, num_rows, num_columns)
    return low if low * min_compression_rate < num_rows * num_columns else prod(shape)
