"""Prediction beside measurement on slow links, both of the same session: four hosts of one machine.

    sudo nice -n -10 python -m benchmarks.prediction      # about 30 minutes; --help for less

For each rate two things are measured on the hosts before the cases of ``benchmarks.network``: one bandwidth curve
(a pair that exchanges 1 KB to 64 MB), and a step of all workers without messages (when each gradient is there, updates,
the arithmetic of averaging). From these alone each case is predicted. Nothing is fitted to the cases.
"""

import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.network import HOSTS, METHODS, Case, Network, Result, cases_of, result_of, run_on_hosts
from benchmarks.network_worker import WARM_UP_STEPS, WIDTHS, WORKERS_PER_NODE, bucket_mb_of, slow_ranks
from imgnet.config import GroupAlgorithm
from imgnet.parallel.topology import Schedule, build_topology
from imgnet.plan.computation import Computation
from imgnet.plan.timeline import buckets
from imgnet.plan.timeline.buckets import Gradient
from imgnet.plan.timeline.method import AllReduceMethod, GossipMethod, Method
from imgnet.plan.timeline.network import Link
from imgnet.plan.timeline.network import Network as Links
from imgnet.plan.timeline.replay import replay_each
from imgnet.plan.timeline.script import Work

SLOW_FACTOR = 2.0

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class Compared:
    """A case that was measured, and what was predicted for it; seconds per step."""

    result: Result
    predicted_s: float

    @property
    def error(self) -> float:
        """Of the prediction, relative to what was measured."""
        return self.predicted_s / self.result.step_s - 1


@app.command()
def main(
    rates: Annotated[list[int], typer.Option("--rate", help="Mbit/s of each link.")] = [1000, 400, 200],  # noqa: B006
    steps: Annotated[int, typer.Option(help="Measured steps of each case, after two that are not.")] = 6,
    compute_s: Annotated[float, typer.Option(help="Time of a forward and a backward pass.")] = 2.3,
    bucket_mb: Annotated[int | None, typer.Option(help="Of all methods; as in a run where it is not given.")] = None,
    methods: Annotated[str, typer.Option(help="Which, with commas.")] = ",".join(METHODS),
    out: Annotated[Path | None, typer.Option(help="Results as JSON lines.")] = None,
) -> None:
    """Measure and predict every method at every rate, and print the table and the errors."""
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))  # the network is removed then, too
    if os.geteuid() != 0:
        raise typer.BadParameter("network namespaces need root")
    compared: list[Compared] = []
    with Network() as network:
        for rate in rates:
            network.limit(rate)
            task = {"rate_mbit": rate, "steps": steps, "compute_s": compute_s, "bucket_mb": bucket_mb}
            parts, *rows = run_on_hosts(network, cases_of(methods.split(",")), task | {"measures_parts": True})
            compared += [Compared(result, predict(result, parts, task)) for result in map(result_of, rows)]
            _say_parts(rate, parts)
    _print_table(compared, f"{compute_s} s of computation, TCP {network.congestion_control}")
    if out is not None:
        out.write_text("".join(json.dumps(asdict(one) | {"error": one.error}) + "\n" for one in compared), "utf-8")


def predict(result: Result, parts: dict[str, Any], task: dict[str, Any]) -> float:
    """Seconds per step of the steps that were measured, from the link and the computation alone."""
    case, link = result.case, Link(**parts["link"])
    links = Links(HOSTS, 1, link, link, all_reduce=GroupAlgorithm.ring, kinds_take_turns=True)
    method, work = _method_and_work(case, _computation(parts), links, bucket_mb_of(case.method, task))
    factors = _factors(case, WARM_UP_STEPS + task["steps"])
    return replay_each(method, work, factors, kinds_take_turns=True).step_s(WARM_UP_STEPS)


def _computation(parts: dict[str, Any]) -> Computation:
    values = dict(parts["computation"])
    gradients = tuple(Gradient(*one) for one in values.pop("gradients"))
    return Computation(gradients=gradients, **values)


def _method_and_work(case: Case, computation: Computation, links: Links, bucket_mb: int) -> tuple[Method, Work]:
    width = WIDTHS[case.wire]
    if case.method == "allreduce":
        split = buckets.by_gradient(computation.gradients, bucket_mb)
        sizes = [float(width * bucket.num_values) for bucket in split]
        return AllReduceMethod(sizes, links), computation.work(split, 1, 1, updated_at_once=True)
    split = buckets.by_registration(computation.gradients, bucket_mb)
    method = GossipMethod(
        [float(width * bucket.num_values) for bucket in split],
        computation.mixing_of(split, case.wire),
        Schedule.constant(build_topology(case.method, HOSTS, WORKERS_PER_NODE)),
        links,
        groups_exchange_directly=case.wire == "bf16",
    )
    return method, computation.work(split, 1, 1, updated_at_once=False)


def _factors(case: Case, num_steps: int) -> np.ndarray:
    factors = np.ones((num_steps, HOSTS))
    if case.straggler:
        factors[np.arange(num_steps), list(islice(slow_ranks(), num_steps))] = SLOW_FACTOR
    return factors


def _say_parts(rate: int, parts: dict[str, Any]) -> None:
    link, computation = Link(**parts["link"]), _computation(parts)
    mixing = ", ".join(f"averaging {wire} {seconds:.3f} s" for wire, seconds in computation.mixing_s.items())
    print(
        f"{rate} Mbit/s: {link.bytes_per_s * 8e-6:.0f} Mbit/s of values, {1e3 * link.latency_s:.2f} ms; "
        f"pass {computation.pass_s(1):.3f} s, update {computation.update_s:.3f} s, {mixing}",
        flush=True,
    )


def _print_table(compared: Sequence[Compared], title: str) -> None:
    table = Table(box=box.SIMPLE_HEAD, title=title, title_style="")
    for column in ("Mbit/s", "method", "wire", "slow worker", "measured s/step", "predicted s/step", "error %"):
        table.add_column(column, justify="left" if column in ("method", "wire") else "right")
    for one in compared:
        case = one.result.case
        table.add_row(
            str(one.result.rate_mbit),
            "DDP" if case.method == "allreduce" else case.method,
            case.wire,
            "yes" if case.straggler else "",
            f"{one.result.step_s:.3f}",
            f"{one.predicted_s:.3f}",
            f"{100 * one.error:+.1f}",
        )
    console = Console(width=110)
    console.print(table)
    errors = [abs(one.error) for one in compared]
    console.print(f"error of {len(errors)} cases: median {100 * median(errors):.1f} %, worst {100 * max(errors):.1f} %")


if __name__ == "__main__":
    app()
