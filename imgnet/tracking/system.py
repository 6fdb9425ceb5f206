"""What a worker takes of its machine, written while it trains: ``workers/system_<rank>.jsonl``."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import psutil
import torch

from imgnet.runtime import memory_peak_mb

_MB = 2**20
_PATIENCE_S = 10


class SystemMonitor:
    """A thread that writes a row of this worker now and then, and on rank 0 looks at those of the others.

    ``time`` in seconds since 1970; ``cpu_cores`` that the worker and its processes, if any, kept busy; ``memory_mb``
    that they hold and ``memory_peak_mb``, the most that the worker itself held (2^20 bytes); ``sent_mb_s`` and
    ``received_mb_s`` of all the node's network interfaces; of a GPU ``gpu_percent`` of the time in use,
    ``gpu_memory_mb`` and ``gpu_memory_peak_mb`` of torch.

    Args:
        folder: ``workers`` of the run directory.
        rank: of this worker.
        device: of this worker.
        every_s: seconds between rows.
    """

    def __init__(self, folder: Path, rank: int, device: torch.device, every_s: float) -> None:
        self._folder = folder
        self._file = folder / f"system_{rank}.jsonl"
        self._gathers = rank == 0
        self._device = device
        self._every_s = every_s
        self._process = psutil.Process()
        self._last = self._counters()
        self._began = time.time()
        self._newest: dict[str, dict[str, float]] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="system metrics", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Write a last row, which has the peaks of the whole time."""
        self._over.set()
        self._thread.join(_PATIENCE_S)  # a file system that does not answer holds up no run's end

    def newest(self) -> dict[str, float]:
        """The newest numbers of each worker that were not yet taken, by ``rank_<k>/<name>``. Rank 0 alone."""
        taken, self._newest = self._newest, {}
        return {f"rank_{rank}/{name}": value for rank, row in taken.items() for name, value in row.items()}

    def _watch(self) -> None:
        is_over = False
        while not is_over:
            is_over = self._over.wait(self._every_s)
            with suppress(OSError, psutil.Error):  # a full disk, a process that has just ended
                self._write(self._sample())
                if self._gathers:
                    self._newest = dict(self._gather())

    def _write(self, row: dict[str, float]) -> None:
        self._folder.mkdir(exist_ok=True)
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def _gather(self) -> Iterator[tuple[str, dict[str, float]]]:
        for file in self._folder.glob("system_*.jsonl"):
            with suppress(json.JSONDecodeError):
                row = json.loads(_last_line(file))
                if row.pop("time") >= self._began:
                    yield file.stem.removeprefix("system_"), row

    def _sample(self) -> dict[str, float]:
        then, self._last = self._last, self._counters()
        seconds = self._last["time"] - then["time"]
        per_s = {name: max(0.0, self._last[name] - then[name]) / seconds for name in then if name != "time"}
        memory = sum(process.memory_info().rss for process in self._processes())
        row = {
            "time": time.time(),
            "cpu_cores": per_s["cpu_s"],
            "memory_mb": memory / _MB,
            "memory_peak_mb": memory_peak_mb(),
            "sent_mb_s": per_s["sent"] / _MB,
            "received_mb_s": per_s["received"] / _MB,
        }
        return {name: round(value, 3) for name, value in (row | self._gpu()).items()}

    def _counters(self) -> dict[str, float]:
        times = [process.cpu_times() for process in self._processes()]
        network = psutil.net_io_counters()
        return {
            "time": time.perf_counter(),
            "cpu_s": sum(time.user + time.system for time in times),
            "sent": network.bytes_sent if network else 0,
            "received": network.bytes_recv if network else 0,
        }

    def _processes(self) -> Iterator[Any]:
        """This one and those that it started, as far as they still live."""
        for process in chain([self._process], self._process.children(recursive=True)):
            with suppress(psutil.Error), process.oneshot():
                process.cpu_times()
                yield process

    def _gpu(self) -> dict[str, float]:
        if self._device.type != "cuda":
            return {}
        with suppress(ModuleNotFoundError, RuntimeError):  # no driver's library to ask
            return {"gpu_percent": float(torch.cuda.utilization(self._device))} | self._gpu_memory()
        return self._gpu_memory()

    def _gpu_memory(self) -> dict[str, float]:
        return {
            "gpu_memory_mb": torch.cuda.memory_allocated(self._device) / _MB,
            "gpu_memory_peak_mb": torch.cuda.max_memory_allocated(self._device) / _MB,
        }


def _last_line(file: Path) -> str:
    with file.open("rb") as lines:
        lines.seek(max(0, file.stat().st_size - 4096))
        return lines.read().decode().splitlines()[-1]
