"""Loaders beside other work, in several ranks of a node, and from files that are not in memory.

    python -m benchmarks.data --contention 1 4 8

A rank is a process with its share of the cores and of each batch; all of them read at the same time, each its own part.
The other work is processes that only compute, at the same priority. What counts is the images of all ranks in a second,
of several rounds the median.
"""

import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.data import CPU, Epoch, Images, ours, plain_dali
from benchmarks.spread import spread
from imgnet.config import DataBackend
from imgnet.data.checks import dali_is_installed
from imgnet.runtime import Runtime

LOADS = (1, 3, 5)
MEASURED_S = 2.0
PATIENCE_S = 120
PEER, DALI, TORCHVISION = "plain DALI", "ours: DALI", "ours: torchvision"


@dataclass(frozen=True)
class Place:
    """One rank of so many on a node, and what is read there."""

    images: Images
    name: str
    rank: int
    num_ranks: int
    is_cold: bool

    def epoch(self) -> Epoch:
        """The loader, with this rank's share of the cores."""
        share = Images(self.images.root, max(1, self.images.num_threads // self.num_ranks))
        worker = Runtime(self.rank, self.num_ranks, self.rank, self.num_ranks, CPU, share.num_threads)
        torch.set_num_threads(share.num_threads)
        if self.name == PEER:
            # What a process has mapped, the system does not forget.
            return plain_dali(share, "full", from_shards=True, worker=worker, is_mapped=not self.is_cold)
        backend = DataBackend.dali if self.name == DALI else DataBackend.torchvision
        return ours(share, backend, self.images.shards("full"), worker=worker)


def show_contention(images: Images, nodes: Sequence[int], rounds: int) -> None:
    """A table of images per second for each number of ranks, and of ours over plain DALI in the same round."""
    names = [PEER, DALI, TORCHVISION] if dali_is_installed() else [TORCHVISION]
    print("\n| ranks | busy processes beside | files | " + " | ".join(names) + " | ours: DALI / plain DALI |")
    print("| ---: | ---: | --- |" + " ---: |" * (len(names) + 1))
    cases = [case for ranks in nodes for case in ((ranks, 0, True), *((ranks, load, False) for load in LOADS))]
    for num_ranks, load, is_cold in cases:
        rates: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(rounds):
            for name, found in rates.items():
                found.append(images_per_s(images, name, num_ranks, load, is_cold))
        ratios = [own / peer for own, peer in zip(rates[DALI], rates[PEER], strict=True)] if PEER in rates else []
        shown = " | ".join(f"{median(found):,.0f}" for found in rates.values())
        ratio = spread(ratios) if ratios else ""
        print(f"| {num_ranks} | {load} | {'cold' if is_cold else 'in memory'} | {shown} | {ratio} |", flush=True)


def images_per_s(images: Images, name: str, num_ranks: int, load: int, is_cold: bool) -> float:
    """Of all ranks together, beside ``load`` processes that compute."""
    context: Any = multiprocessing.get_context("fork")
    start, stop, rates = context.Barrier(num_ranks + 1, timeout=PATIENCE_S), context.Event(), context.Queue()
    places = [Place(images, name, rank, num_ranks, is_cold) for rank in range(num_ranks)]
    ranks = [context.Process(target=read, args=(place, start, stop, rates)) for place in places]
    for rank in ranks:
        rank.start()
    start.wait()  # the loaders are made without other work, which would only take time
    others = [context.Process(target=compute, args=(stop,)) for _ in range(load)]
    for other in others:
        other.start()
    total = sum(rates.get(timeout=PATIENCE_S) for _ in ranks)
    stop.set()
    for process in ranks + others:
        process.join()
    return total


def compute(stop: Event) -> None:
    """Other work: keeps a core busy."""
    number = 0
    while number % 1_000_000 or not stop.is_set():
        number += 1


def read(place: Place, start: Barrier, stop: Event, rates: Any) -> None:
    """In a rank: read epochs for so many seconds, and go on until all ranks are done, so that none has it easy."""
    epoch = place.epoch()
    epoch()
    start.wait()
    begin = time.perf_counter()
    num = until(begin + MEASURED_S, place, epoch)
    rates.put(num / (time.perf_counter() - begin))
    while not stop.is_set():
        epoch()
    rates.close()
    rates.join_thread()
    os._exit(0)


def until(deadline: float, place: Place, epoch: Callable[[], int]) -> int:
    """Images of the epochs that begin before the deadline."""
    num = 0
    while time.perf_counter() < deadline:
        if place.is_cold and place.rank == 0:
            forget(place.images.shards("full"))
        num += epoch()
    return num


def forget(folder: Path) -> None:
    """Have the system drop the files from its memory, as far as nobody uses them."""
    for path in folder.rglob("*.tar"):
        with suppress(OSError):
            file = os.open(path, os.O_RDONLY)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(file)
