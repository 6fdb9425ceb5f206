"""Some steps of a worker, recorded by torch's profiler and written to its run directory."""

import gzip
import json
import logging
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path

import torch
from torch._C._profiler import _ExperimentalConfig
from torch.profiler import ProfilerActivity, profile, schedule

from imgnet.config import ProfileConfig
from imgnet.profile.spans import recording
from imgnet.profile.trace import Worker, times_of, with_lanes
from imgnet.rundir import write_atomically
from imgnet.runtime import Runtime, memory_peak_mb, node_name, quiet_profiler

MB = 2**20

log = logging.getLogger("imgnet")


class Recorder:
    """Records ``config.steps`` steps once in a run, from ``config.start_step`` on, and then takes no time any more.

    A run that goes on behind that step records those after its first, unless its profile is there already.

    Args:
        config: how many steps, and which.
        runtime: this worker.
        folder: where ``rank_<k>.trace.json.gz`` and ``rank_<k>.json`` go.
        done_steps: steps of the run that were made before.
    """

    def __init__(self, config: ProfileConfig, runtime: Runtime, folder: Path, done_steps: int) -> None:
        self._runtime = runtime
        self._folder = folder
        self._summary = folder / f"rank_{runtime.rank}.json"
        self._step = done_steps
        self._num_steps = config.steps
        self._first = max(config.start_step, done_steps + 1)
        is_asked_for = config.steps > 0 and not self._summary.exists()
        self._ready_at = self._first - 1 if is_asked_for else -1
        self._profiler: profile | None = None
        self._open = ExitStack()

    def start(self) -> None:
        """Training begins."""
        if self._step == self._ready_at:
            self._begin()

    def advance(self) -> float:
        """A step was made. Returns the seconds that it took to write the profile, mostly 0."""
        self._step += 1
        if self._step == self._ready_at:
            self._begin()
        elif self._profiler is not None:
            start = time.perf_counter()
            self._profiler.step()
            if self._step == self._first + self._num_steps:
                self._end()
                return time.perf_counter() - start
        return 0.0

    def close(self) -> None:
        """Training has ended. Of a profile that is not whole nothing is written."""
        if self._profiler is not None:
            with suppress(RuntimeError):  # of a device that failed; what ended the run is what must be told
                self._end()
            made = max(0, self._step - self._first)
            log.warning("no profile: the run ended after %d of %d recorded steps", made, self._num_steps)

    def _begin(self) -> None:
        quiet_profiler()
        on_gpu = self._runtime.device.type == "cuda"
        self._open.enter_context(recording())
        self._profiler = profile(
            activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])],
            schedule=schedule(wait=0, warmup=1, active=self._num_steps, repeat=1),
            on_trace_ready=self._write,
            experimental_config=_ExperimentalConfig(profile_all_threads=True),  # some messages start behind the steps
        )
        self._profiler.start()

    def _end(self) -> None:
        assert self._profiler is not None
        self._profiler.stop()
        self._profiler = None
        self._open.close()

    def _write(self, recorded: profile) -> None:
        if self._step < self._first + self._num_steps:
            return  # stopping a profiler writes what it has
        try:
            self._write_files(recorded)
        except Exception as error:  # no profile is worth a run
            log.warning("profile not written: %s: %s; training goes on", type(error).__name__, error)

    def _write_files(self, recorded: profile) -> None:
        memory_peak_mb = self._memory_peak_mb()  # before the trace takes its part
        self._folder.mkdir(exist_ok=True)
        trace = with_lanes(_chrome_trace(recorded), self._runtime.rank)
        packed = gzip.compress(json.dumps(trace).encode(), compresslevel=3)
        write_atomically(self._folder / f"rank_{self._runtime.rank}.trace.json.gz", packed)
        own = {"rank": self._runtime.rank, "node": node_name(), "first_step": self._first}
        worker = Worker(**vars(times_of(trace["traceEvents"])), **own, memory_peak_mb=memory_peak_mb)
        write_atomically(self._summary, json.dumps(asdict(worker), indent=2) + "\n")

    def _memory_peak_mb(self) -> float:
        device = self._runtime.device
        return torch.cuda.max_memory_allocated(device) / MB if device.type == "cuda" else memory_peak_mb()


def _chrome_trace(recorded: profile) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(path))
        return json.loads(path.read_text(encoding="utf-8"))
