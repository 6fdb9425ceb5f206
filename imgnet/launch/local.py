"""Workers of this machine, started and watched by torch's elastic agent. torch is imported when they start."""

import logging
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

from imgnet.config import RunConfig
from imgnet.launch.layout import Layout
from imgnet.rundir import ExitRecord, read_exit_records
from imgnet.runtime import available_cores, prefer_loopback, share_threads

LOOPBACK = "127.0.0.1"
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
AGENT_SIGNALS = (signal.SIGHUP, signal.SIGQUIT)


class RunFailed(RuntimeError):  # noqa: N818  (it names what happened)
    """A run whose workers did not all end well. The text is for the user; ``summary`` is one line of it."""

    def __init__(self, summary: str, details: str = "") -> None:
        super().__init__(f"{summary}\n{details}".rstrip())
        self.summary = summary


def run_workers(config: RunConfig, run_dir: Path, layout: Layout) -> None:
    """Start the workers of a run on this machine and wait until all have ended.

    Raises:
        RunFailed: a worker failed; all others have been ended.
        KeyboardInterrupt: Ctrl-C, or SIGTERM to this process; all workers have been ended.
    """
    prefer_loopback()
    with tempfile.TemporaryDirectory(prefix="imgnet-") as folder:
        meeting = {
            "rdzv_endpoint": str(Path(folder) / "rendezvous"),
            "rdzv_configs": {"store_type": "file"},
            "local_addr": LOOPBACK,
        }
        run_agent(config, run_dir, layout, meeting, Path(folder) / "store")


def run_agent(
    config: RunConfig, run_dir: Path, layout: Layout, meeting: dict[str, Any], store_file: Path | None
) -> None:
    """Start this node's workers through torch's elastic agent and wait until those of all nodes have ended.

    Args:
        config: the run.
        run_dir: its directory.
        layout: the nodes, for each of which one process calls this.
        meeting: where the agents find each other, in the words of torch's ``LaunchConfig``.
        store_file: the file through which workers of one node find each other; None: at the agents' meeting point.

    Raises:
        RunFailed: a worker failed; all others of this node have been ended.
        KeyboardInterrupt: Ctrl-C, or SIGTERM to this process; all workers of this node have been ended.
    """
    share_threads(max(1, available_cores() // layout.workers_per_node))
    _start_importing()
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from imgnet.launch.worker import work

    with _stopping_in_order(), _quiet():
        settings = LaunchConfig(
            min_nodes=layout.num_nodes,
            max_nodes=layout.num_nodes,
            nproc_per_node=layout.workers_per_node,
            run_id=run_dir.name,
            rdzv_backend="c10d",
            max_restarts=0,
            start_method="forkserver",  # torch is imported once, not once for each worker
            signals_to_handle=",".join(number.name for number in AGENT_SIGNALS),
            **meeting,
        )
        try:
            elastic_launch(settings, work)(config, run_dir, store_file, layout.use_gpu)
        except ChildFailedError as error:
            exit_codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
            raise root_cause(run_dir, layout.world_size, exit_codes) from None
        except SignalException as error:
            raise KeyboardInterrupt(error.sigval.name) from None


def _start_importing() -> None:
    """Have the process that workers are forked from import torch while this one does the same."""
    # Slurm may send it to every process of a step: those that do not know it must not die of it.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    multiprocessing.set_forkserver_preload(["__main__", "imgnet.launch.preload"])
    forkserver.ensure_running()


@contextmanager
def _stopping_in_order() -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGUSR2 have the workers save and end; a Ctrl-C after any of them ends them at once."""
    from torch.distributed.elastic.multiprocessing import SignalException

    before = {number: signal.getsignal(number) for number in (*STOP_SIGNALS, *AGENT_SIGNALS)}
    asked: list[int] = []

    def stop(number: int, _frame: object) -> None:
        workers = multiprocessing.active_children()
        # Slurm sends SIGTERM to a task directly and through srun; only a second Ctrl-C means that it is urgent.
        if (asked and number == signal.SIGINT) or not workers:
            raise SignalException(f"got {signal.Signals(number).name}", sigval=signal.SIGTERM)
        asked.append(number)
        if number == signal.SIGINT:
            sys.stderr.write("saving; Ctrl-C again ends at once\n")
        for worker in workers:
            with suppress(ProcessLookupError):
                os.kill(worker.pid or 0, signal.SIGUSR2)

    for number in STOP_SIGNALS:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _quiet() -> Iterator[None]:
    """The agent repeats at length what the exit records say once."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def root_cause(run_dir: Path, world_size: int, exit_codes: dict[int, int]) -> RunFailed:
    """Which worker failed first, and why.

    A worker that dies takes its peers' collectives with it, so that several fail within milliseconds. One that left no
    record at all was killed before it could speak, and the others followed; otherwise the earliest error counts.

    Args:
        run_dir: where the workers left their exit records.
        world_size: number of workers.
        exit_codes: what the agent saw, by rank; negative for a signal. Some of the ranks at least.
    """
    records = read_exit_records(run_dir)
    raised = [record for record in records.values() if record.how == "raised"]
    silent = [rank for rank in range(world_size) if rank not in records]
    records = {rank: record for rank, record in records.items() if record.how != "completed"}
    if silent and (raised or len(silent) < world_size):
        return RunFailed(_without_a_word(silent, exit_codes), f"logs: {run_dir / 'logs'}")
    if raised:
        first = min(raised, key=lambda record: record.time)
        return RunFailed(f"rank {first.rank} failed: {first.error}", f"{first.traceback}logs: {run_dir / 'logs'}")
    return RunFailed(_ended_by_signal(records, exit_codes), f"logs: {run_dir / 'logs'}")


def _without_a_word(silent: list[int], exit_codes: dict[int, int]) -> str:
    ranks = ", ".join(str(rank) for rank in silent)
    signals = {signal.Signals(-code).name for rank, code in exit_codes.items() if rank in silent and code < 0}
    by = f" by {' and '.join(sorted(signals))}" if signals else ""
    return f"rank {ranks} failed: killed{by} without a traceback (by a user, or by the system for want of memory?)"


def _ended_by_signal(records: dict[int, ExitRecord], exit_codes: dict[int, int]) -> str:
    if not records:
        return f"workers ended with {exit_codes} before they wrote a line"
    first = min(records.values(), key=lambda record: record.time)
    return f"rank {first.rank} failed: {first.error}"
