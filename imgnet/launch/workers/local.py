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

from imgnet.config import RunConfig
from imgnet.launch.causes import note_deaths, root_cause
from imgnet.launch.owner import is_still_held
from imgnet.launch.slurm.snapshot import PACKAGE
from imgnet.layout import Layout
from imgnet.runtime import available_cores, prefer_loopback, share_threads

LOOPBACK = "127.0.0.1"
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
AGENT_SIGNALS = (signal.SIGHUP, signal.SIGQUIT)


def run_workers(config: RunConfig, run_dir: Path, layout: Layout, claim: int) -> None:
    """Start the workers of a run on this machine through torch's elastic agent, and wait until all have ended.

    Args:
        config: the run.
        run_dir: its directory.
        layout: one node.
        claim: number of the claim to the directory under which the workers write.

    Raises:
        RunFailed: a worker failed; all others have been ended.
        KeyboardInterrupt: Ctrl-C, or SIGTERM to this process; all workers have been ended.
    """
    prefer_loopback()
    share_threads(max(1, available_cores() // layout.workers_per_node))
    _start_importing()
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from imgnet.launch.workers.worker import work

    with _stopping_in_order(), _quiet(), tempfile.TemporaryDirectory(prefix="imgnet-") as folder:
        settings = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=layout.workers_per_node,
            run_id=run_dir.name,
            rdzv_backend="c10d",
            rdzv_endpoint=str(Path(folder) / "rendezvous"),
            rdzv_configs={"store_type": "file"},
            local_addr=LOOPBACK,
            max_restarts=0,
            start_method="forkserver",  # torch is imported once, not once for each worker
            signals_to_handle=",".join(number.name for number in AGENT_SIGNALS),
        )
        try:
            elastic_launch(settings, work)(config, run_dir, claim, Path(folder) / "store", layout.use_gpu, PACKAGE)
        except ChildFailedError as error:
            if is_still_held(run_dir, claim):
                note_deaths(run_dir, {rank: failure.exitcode for rank, failure in error.failures.items()})
            raise root_cause(run_dir, layout.world_size) from None
        except SignalException as error:
            raise KeyboardInterrupt(error.sigval.name) from None


def _start_importing() -> None:
    """Have the process that workers are forked from import torch while this one does the same."""
    # Slurm may send it to every process of a step: those that do not know it must not die of it.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    multiprocessing.set_forkserver_preload(["__main__", "imgnet.launch.workers.preload"])
    forkserver.ensure_running()


@contextmanager
def _stopping_in_order() -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGUSR2 have the workers save and end; a Ctrl-C after any of them ends them at once."""
    from torch.distributed.elastic.multiprocessing import SignalException

    before = {number: signal.getsignal(number) for number in (*STOP_SIGNALS, *AGENT_SIGNALS)}
    asked: list[int] = []

    def stop(number: int, _frame: object) -> None:
        workers = multiprocessing.active_children()
        # It may come twice, to the process and to its group; only a second Ctrl-C means that it is urgent.
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
