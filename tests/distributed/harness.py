"""Real worker processes with gloo, forked from a server that has imported torch once."""

import multiprocessing
import pickle
import traceback
from collections.abc import Callable
from multiprocessing import connection
from pathlib import Path
from typing import Any

from imgnet.parallel.hang import HangWatch
from imgnet.runtime import Placement, joined, prefer_loopback

TIMEOUT_S = 120
NOBODY_WATCHES = HangWatch(None, lambda *_: None, Placement(0, 1, 0, 1))


def on_workers(
    function: Callable[..., Any],
    world_size: int,
    folder: Path,
    *arguments: Any,
    workers_per_node: int | None = None,
    timeout_s: float = TIMEOUT_S,
    use_gpu: bool = False,
) -> list[Any]:
    """Call ``function(runtime, *arguments)`` on every worker, and return what each returned, by rank.

    Args:
        function: of an importable module.
        world_size: number of workers.
        folder: an empty folder, where the workers meet.
        arguments: what the function gets after its runtime.
        workers_per_node: for the division into nodes that the workers are told.
        timeout_s: how long they may take.
        use_gpu: a GPU for each, and NCCL.
    """
    prefer_loopback()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["imgnet.launch.workers.preload"])
    per_node = workers_per_node or world_size
    pipes, processes = [], []
    for rank in range(world_size):
        receiving, sending = context.Pipe(duplex=False)
        placement = Placement(rank, world_size, rank % per_node, per_node)
        process = context.Process(
            target=_work, args=(sending, placement, use_gpu, folder / "store", function, arguments)
        )
        process.start()
        sending.close()
        pipes.append(receiving)
        processes.append(process)
    try:
        return _collect(pipes, timeout_s)
    finally:
        for process in processes:
            process.kill()
            process.join()


def _work(
    sending: connection.Connection,
    placement: Placement,
    use_gpu: bool,
    store: Path,
    function: Callable[..., Any],
    arguments: tuple,
) -> None:
    try:
        with joined(placement, use_gpu=use_gpu, store_file=store, timeout_min=TIMEOUT_S / 60) as runtime:
            result = function(runtime, *arguments)
        # Plain pickle copies tensors; a connection's own would share memory with a process that is about to end.
        sending.send((pickle.dumps(result), None))
    except BaseException:  # the test shows it
        sending.send((None, traceback.format_exc()))


def _collect(pipes: list[connection.Connection], timeout_s: float) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(pipes):
        waiting = [pipe for rank, pipe in enumerate(pipes) if rank not in results]
        ready = connection.wait(waiting, timeout=timeout_s)
        assert ready, f"ranks {[rank for rank in range(len(pipes)) if rank not in results]} did not answer"
        for pipe in ready:
            rank = pipes.index(pipe)  # type: ignore[arg-type]
            results[rank], error = pipe.recv()  # type: ignore[union-attr]
            if error:
                raise AssertionError(f"rank {rank}:\n{error}")
    return [pickle.loads(results[rank]) for rank in range(len(pipes))]  # noqa: S301  (our own workers wrote it)
