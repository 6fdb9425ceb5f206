"""A worker process, from its first to its last moment: its log, its signals, and what it says when it fails."""

import logging
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import connection
from pathlib import Path

from imgnet.config import RunConfig, SlurmConfig
from imgnet.launch.owner import BEAT_S, is_still_held
from imgnet.launch.slurm.snapshot import PACKAGE
from imgnet.launch.workers.cores import stay_near_gpu
from imgnet.parallel.hang import HangWatch, stack_of
from imgnet.rundir import ExitRecord, finish, write_exit_record
from imgnet.runtime import Placement, joined, notice_came, placement_from_environment
from imgnet.train import run

ENDING_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
STOP_SIGNAL = signal.SIGUSR2
"""Save and end. Slurm sends it before a time limit or a preemption where it is told to; NCCL has SIGUSR1."""
GRACE_S = 20.0
"""How long a worker may save and end after Slurm's SIGTERM; Slurm kills what is left after its own KillWait (30 s)."""


def work(config: RunConfig, run_dir: Path, claim: int, store_file: Path | None, use_gpu: bool, package: Path) -> None:
    """A worker that this package's launcher started. Returns only where the run was carried out.

    Args:
        config: the run.
        run_dir: its directory.
        claim: number of the claim to the directory, without which this worker has no business there.
        store_file: where workers of one node meet; None where the environment says it.
        use_gpu: one GPU for each worker.
        package: the launcher's; another one here, where a snapshot has been deleted since, would be other code.
    """
    if multiprocessing.parent_process() is not None:
        os.setsid()  # a terminal's Ctrl-C reaches the launcher alone, which then ends its workers in order
    placement = placement_from_environment()
    assert placement is not None, "the launcher states a rank"
    logging.captureWarnings(capture=True)
    write_to_log(run_dir, placement.rank)
    in_slurm = isinstance(config.cluster, SlurmConfig)
    stop = watch_signals(run_dir, placement.rank, claim, in_slurm=in_slurm)
    status = 1
    try:
        with exit_record(run_dir, placement.rank, claim):
            _refuse_other_code(package)
            watch = hang_watch(config, placement, give_up_on(run_dir, placement.rank, claim))
            with joined(placement, use_gpu, store_file, meeting=watch) as runtime:
                if use_gpu and in_slurm:
                    stay_near_gpu(runtime.local_rank, runtime.local_world_size)
                run(config, runtime, run_dir, stop, watch)
        status = 0
    except BaseException:  # the record holds it, and the launcher shows it
        logging.getLogger("imgnet").debug("worker failed", exc_info=True)
    finally:
        _flush()
        if status:
            os._exit(status)  # a broken process group can hold up an orderly exit for minutes


class _Terminal(logging.Handler):
    """Standard error as it is when a record comes: a progress bar stands in for it while it is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        print(f"{record.levelname.lower()}: {self.format(record)}", file=sys.stderr, flush=True)


def write_to_log(run_dir: Path, rank: int) -> None:
    """Send this worker's log records to its file and, on other ranks than 0, all that it prints as well.

    Rank 0's warnings are also shown where the run is watched: the file may be on the disk that is full.
    """
    path = run_dir / "logs" / f"rank_{rank}.log"
    handler = logging.StreamHandler(path.open("a", encoding="utf-8"))
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    logging.raiseExceptions = False  # no traceback for each line that a full disk does not take
    if rank == 0:
        terminal = _Terminal(logging.WARNING)
        terminal.addFilter(lambda record: record.levelno < logging.ERROR)  # why a worker fails its launcher says, once
        logging.getLogger("imgnet").addHandler(terminal)
    else:
        sys.stdout.flush()
        sys.stderr.flush()
        for stream in (1, 2):
            os.dup2(handler.stream.fileno(), stream)


def watch_signals(run_dir: Path, rank: int, claim: int, *, in_slurm: bool) -> threading.Event:
    """Act on signals and on the launcher's death at once, from a thread of our own; and on the loss of the directory.

    The main thread may be inside a collective for minutes, where Python runs no handler.

    Args:
        run_dir: of the run.
        rank: of this worker.
        claim: number of the claim to the directory. When there is a higher one, this process ends without a trace.
        in_slurm: whether this is a task of a job that the package submitted. Slurm announces an end by SIGTERM, after
            which the run is saved if there is time; and the job's first process, which outlives the workers, writes
            how the run ended. Elsewhere SIGTERM ends at once, and rank 0's end is the run's.

    Returns:
        An event that SIGUSR2 sets, and in a job SIGTERM: the run is to be saved and ended. Other ends are immediate.
    """
    stop = threading.Event()
    reading, writing = os.pipe2(os.O_NONBLOCK)
    for number in (*ENDING_SIGNALS, STOP_SIGNAL):
        signal.signal(number, lambda _number, _frame: None)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    if in_slurm and notice_came():
        stop.set()
    launcher = multiprocessing.parent_process()
    sentinels = [reading] if launcher is None else [reading, launcher.sentinel]

    saving = (STOP_SIGNAL, signal.SIGTERM) if in_slurm else (STOP_SIGNAL,)
    main = threading.get_ident()

    def save(number: int) -> None:
        stop.set()
        if number == signal.SIGTERM and is_still_held(run_dir, claim):  # killed before it can save, it says no more
            record = ExitRecord(rank, "terminated", time.time(), f"ended by {_name(number)}", stack_of(main))
            write_exit_record(run_dir, record)

    def wait() -> None:
        number = _until_the_end(sentinels, saving, save, lambda: is_still_held(run_dir, claim))
        if is_still_held(run_dir, claim):
            error = f"ended by {_name(number)}" if number else "the launcher was killed"
            write_exit_record(run_dir, ExitRecord(rank, "terminated", time.time(), error, stack_of(main)))
            if rank == 0 and not in_slurm:
                finish(run_dir, "failed", error)  # the launcher, where it lives, knows better and has the last word
        _flush()
        os._exit(128 + number)

    threading.Thread(target=wait, name="signals", daemon=True).start()
    return stop


def _until_the_end(
    sentinels: list[int], saving: Sequence[int], save: Callable[[int], None], is_ours: Callable[[], bool]
) -> int:
    """Wait for what ends this process: the number of a signal, or 0 where the launcher or the directory is lost.

    Args:
        sentinels: a pipe of signals, and the launcher's life.
        saving: signals after which the run is to be saved and ended; after SIGTERM there is :data:`GRACE_S` left.
        save: called with each of them.
        is_ours: whether this worker has any business in the directory.
    """
    end = math.inf
    while is_ours():
        number = _next_signal(sentinels, min(BEAT_S, end - time.monotonic()))
        if number is None and time.monotonic() >= end:
            return signal.SIGTERM
        if number is None or number not in (0, *saving, *ENDING_SIGNALS):
            continue  # a handler of somebody else was called: submitit has one for SIGCONT
        if number in saving:
            save(number)
            end = min(end, time.monotonic() + GRACE_S) if number == signal.SIGTERM else end
        else:
            return number
    return 0


def _name(number: int) -> str:
    return signal.Signals(number).name


def _next_signal(sentinels: list[int], patience_s: float) -> int | None:
    """The number of the next signal; 0 when the launcher is gone; None when nothing happens for so long."""
    ready = connection.wait(sentinels, max(0.0, patience_s))
    if sentinels[0] in ready:
        return os.read(sentinels[0], 1)[0]
    return 0 if ready else None


def give_up_on(run_dir: Path, rank: int, claim: int) -> Callable[[str, str], None]:
    """What a worker does that has waited too long for another one: it says which, and ends."""

    def give_up(error: str, stack: str) -> None:
        logging.getLogger("imgnet").error("%s\n%s", error, stack)
        if is_still_held(run_dir, claim):
            write_exit_record(run_dir, ExitRecord(rank, "waited", time.time(), error, stack))
        _flush()
        os._exit(1)

    return give_up


def hang_watch(config: RunConfig, placement: Placement, give_up: Callable[[str, str], None]) -> HangWatch:
    """What watches over the other workers of a run."""
    return HangWatch(None if config.hang_timeout_min is None else 60 * config.hang_timeout_min, give_up, placement)


@contextmanager
def exit_record(run_dir: Path, rank: int, claim: int) -> Iterator[None]:
    """Write down how a worker ends; what it raises with its traceback, before it is raised further.

    Not in a directory that somebody else owns by now.
    """
    try:
        yield
        write_exit_record(run_dir, ExitRecord(rank, "completed", time.time(), ""))
    except BaseException as error:
        text = "".join(traceback.format_exception(error))
        summary = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
        logging.getLogger("imgnet").error("rank %d failed\n%s", rank, text)
        if is_still_held(run_dir, claim):
            write_exit_record(run_dir, ExitRecord(rank, "raised", time.time(), summary, text))
        raise


def _refuse_other_code(package: Path) -> None:
    if package != PACKAGE:
        raise RuntimeError(f"{package} is gone, the code of this run, and {PACKAGE} is not it")


def _flush() -> None:
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
