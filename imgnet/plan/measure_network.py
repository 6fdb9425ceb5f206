"""Measure the links between real workers: pairs that exchange 1 KB to 64 MB, one pair and all pairs at once."""

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from scipy.optimize import nnls
from torch.multiprocessing import start_processes

from imgnet.plan.timeline.network import Link
from imgnet.rundir import write_atomically
from imgnet.runtime import Placement, Runtime, joined, prefer_loopback

SIZES = tuple(2**power for power in range(10, 27, 2))
"""Bytes: 1 KB, 4 KB, ... 64 MB."""
SMALL, LARGE = 2**14, 2**20
"""Up to and from here a message counts as small, and as large."""
LEAST_S = 0.2
"""Each size is repeated for about so long, and at least three times."""
MOST_REPETITIONS = 200


@dataclass(frozen=True)
class Point:
    """What a message of a size took; both directions at once, as in a round of averaging."""

    num_bytes: int
    seconds: float


@dataclass(frozen=True)
class Measured:
    """The links that were found. ``None`` where there are none of that kind."""

    within: Link | None
    between: Link | None
    num_flows: int
    """Pairs that exchanged at once between two nodes."""
    together: Link | None
    """Each of them, when all did."""
    points: dict[str, list[Point]]

    @property
    def nics_per_node(self) -> int:
        """Interfaces that would explain what all pairs got together."""
        if self.between is None or self.together is None:
            return 1
        return max(1, min(self.num_flows, round(self.num_flows * self.together.bytes_per_s / self.between.bytes_per_s)))


def measure_network(runtime: Runtime) -> Measured:
    """Exchange messages within the first node and between the first two. Collective over all workers."""
    per_node, size = runtime.local_world_size, runtime.world_size
    within = _exchange([(0, 1)], runtime) if per_node > 1 else []
    between = _exchange([(0, per_node)], runtime) if size > per_node else []
    pairs = [(rank, rank + per_node) for rank in range(per_node)]
    together = _exchange(pairs, runtime) if size > per_node > 1 else []
    points = {"within": within, "between": between, "together": together}
    links = {name: fit_link(found) if found else None for name, found in points.items()}
    return Measured(links["within"], links["between"], len(pairs), links["together"], points)


def _exchange(pairs: Sequence[tuple[int, int]], runtime: Runtime) -> list[Point]:
    """Every size, by all ``pairs`` at once; the slowest pair counts. Collective."""
    peers = dict(pairs) | {other: one for one, other in pairs}
    return [Point(size, _seconds(size, peers.get(runtime.rank), runtime)) for size in SIZES]


def _seconds(num_bytes: int, peer: int | None, runtime: Runtime) -> float:
    sent, received = (torch.zeros(num_bytes // 4, device=runtime.device) for _ in range(2))
    dist.barrier()
    first = _repeated(sent, received, peer, 3, runtime)
    repetitions = _agreed(min(MOST_REPETITIONS, max(3, round(LEAST_S / max(first, 1e-6)))) if peer is not None else 0)
    dist.barrier()
    return _largest(_repeated(sent, received, peer, repetitions, runtime), runtime)


def _repeated(sent: torch.Tensor, received: torch.Tensor, peer: int | None, times: int, runtime: Runtime) -> float:
    """The median of some exchanges; 0 for a worker that takes no part."""
    if peer is None:
        return 0.0
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        messages = [dist.P2POp(dist.irecv, received, peer), dist.P2POp(dist.isend, sent, peer)]
        for work in dist.batch_isend_irecv(messages):
            work.wait()
        if runtime.device.type == "cuda":
            torch.cuda.synchronize(runtime.device)
        seconds.append(time.perf_counter() - start)
    return median(seconds)


def _agreed(number: int) -> int:
    """The largest number of all workers, on every worker."""
    numbers = [0] * dist.get_world_size()
    dist.all_gather_object(numbers, number)
    return max(numbers)


def _largest(seconds: float, runtime: Runtime) -> float:
    value = torch.tensor(seconds, dtype=torch.float64, device=runtime.device)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return float(value)


def fit_link(points: Sequence[Point]) -> Link:
    """Bandwidth from the large messages, latency from the small ones.

    Those between are carried in part by what switches and sockets hold, and look faster than a link is for long. The
    bandwidth is the slope of a line through the large ones, by least squares of relative errors; the latency is the
    median of what the small ones take beside their size.
    """
    large = [point for point in points if point.num_bytes >= LARGE]
    sizes = np.array([point.num_bytes for point in large], dtype=np.float64)
    seconds = np.array([point.seconds for point in large])
    (_, per_byte), _ = nnls(np.stack([1 / seconds, sizes / seconds], axis=1), np.ones(len(large)))
    bytes_per_s = float(1 / per_byte) if per_byte > 0 else float(sizes[-1] / seconds[-1])
    small = [point.seconds - point.num_bytes / bytes_per_s for point in points if point.num_bytes <= SMALL]
    return Link(max(0.0, median(small)), bytes_per_s)


def measure_here(placement: Placement | None, num_workers: int, out: Path, *, use_gpu: bool) -> None:
    """Measure between the workers of this job, or between some of this machine; print and write what came out.

    Args:
        placement: of this process in a job of torchrun or srun; None: workers are started here.
        num_workers: that are started.
        out: a file, written by rank 0.
        use_gpu: one GPU for each worker and NCCL; the CPU and gloo where false.
    """
    if placement is not None:
        _take_part(placement, None, out, use_gpu=use_gpu)
        return
    prefer_loopback()
    with tempfile.TemporaryDirectory(prefix="imgnet-") as folder:
        arguments = (num_workers, Path(folder) / "store", out, use_gpu)
        start_processes(_worker, arguments, nprocs=num_workers, start_method="spawn")


def _worker(rank: int, num_workers: int, store: Path, out: Path, use_gpu: bool) -> None:
    _take_part(Placement(rank, num_workers, rank, num_workers), store, out, use_gpu=use_gpu)


def _take_part(placement: Placement, store: Path | None, out: Path, *, use_gpu: bool) -> None:
    with joined(placement, use_gpu, store) as runtime:
        measured = measure_network(runtime)
        if runtime.is_main:
            out.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(out, json.dumps(as_values(measured), indent=1) + "\n")
            print(f"{as_yaml(measured)}\nwritten: {out}", flush=True)


def as_yaml(measured: Measured) -> str:
    """What to write into ``conf/cluster/*.yaml``."""
    lines = ["network:"]
    for name, link in (("between", measured.between), ("within", measured.within)):
        if link is not None:
            lines.append(f"  {name}_gbit_s: {link.bytes_per_s * 8 / 1e9:.4g}")
            lines.append(f"  {name}_latency_us: {link.latency_s * 1e6:.3g}")
    if measured.between is not None:
        lines.append(f"  nics_per_node: {measured.nics_per_node}")
    return "\n".join(lines)


def as_values(measured: Measured) -> dict[str, Any]:
    """All of it, for a file."""
    return asdict(measured) | {"nics_per_node": measured.nics_per_node}
