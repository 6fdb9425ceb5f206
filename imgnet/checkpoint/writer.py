"""Checkpoints written behind the training: a step stalls for a copy in memory, a thread does the rest."""

import logging
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from imgnet.checkpoint.folder import write_worker
from imgnet.checkpoint.manifest import (
    DamagedError,
    Manifest,
    complete,
    folder_of,
    partial_of,
    read_manifest,
    remove_partial,
    steps_of,
)
from imgnet.checkpoint.tree import Spec, Tensors, Tree, pack

log = logging.getLogger("imgnet")

POLL_S = 0.05
PATIENCE_S = 600.0
"""How long rank 0 waits for the files of slower workers before it gives a checkpoint up."""


class Writer:
    """Writes its workers' parts of each checkpoint; the one with rank 0 also makes them whole and removes old ones.

    A worker that cannot write warns and goes on training; that checkpoint then never becomes whole, and the one before
    it stays.

    Args:
        checkpoints: folder of the run's checkpoints, on a file system that all workers share.
        ranks: the workers that this process is, or stands for.
        keep_last: how many of the newest are kept, beside the best.
    """

    def __init__(self, checkpoints: Path, ranks: Sequence[int], keep_last: int) -> None:
        self._checkpoints = checkpoints
        self._ranks = ranks
        self._keep_last = keep_last
        self._snapshots: list[Tensors] = [{} for _ in ranks]
        self._thread: threading.Thread | None = None
        self.stall_s = 0.0
        """Seconds that the last :meth:`write` held up the caller."""

    def write(self, states: Sequence[Tree], manifest: Manifest) -> None:
        """Copy the states, and write them in the background. Waits for the write before it, if that is still going on.

        Args:
            states: of each worker, nested; ``state["model"]`` is its ``state_dict``.
            manifest: the same on all workers.
        """
        start = time.perf_counter()
        self.wait()
        packed = [pack(state) for state in states]
        self._snapshots = [_copied(kept, tensors) for kept, (_, tensors) in zip(self._snapshots, packed, strict=True)]
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        specs = [spec for spec, _ in packed]
        self._thread = threading.Thread(target=self._write, args=(specs, manifest), name="checkpoint")
        self._thread.start()
        self.stall_s = time.perf_counter() - start

    def wait(self) -> None:
        """Until the last checkpoint is written; on rank 0, until it is whole or given up."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self, specs: Sequence[Spec], manifest: Manifest) -> None:
        folder = folder_of(self._checkpoints, manifest.step)
        partial = partial_of(folder)
        if 0 in self._ranks:
            remove_partial(self._checkpoints, before=manifest.step)
        try:
            partial.mkdir(parents=True, exist_ok=True)
            for rank, spec, snapshot in zip(self._ranks, specs, self._snapshots, strict=True):
                write_worker(partial, rank, spec, snapshot)
        except OSError as error:
            log.warning("checkpoint of step %d not written: %s; training goes on", manifest.step, error)
            self._give_up(partial)
            return
        if 0 in self._ranks:
            self._complete(partial, folder, manifest)

    def _give_up(self, partial: Path) -> None:
        try:
            (partial / f"rank_{self._ranks[0]}.failed").touch()
        except OSError:
            log.warning("nor could rank %d leave a mark of it; rank 0 will wait for %.0f s", self._ranks[0], PATIENCE_S)
        if 0 in self._ranks:
            shutil.rmtree(partial, ignore_errors=True)

    def _complete(self, partial: Path, folder: Path, manifest: Manifest) -> None:
        """Wait for every worker's file, name the folder, and remove old ones. Rank 0 alone."""
        try:
            if self._all_there(partial, manifest.world_size):
                complete(partial, folder, manifest)
                self._prune(folder)
                return
            log.warning("checkpoint of step %d given up: not every worker could write", manifest.step)
        except OSError as error:
            log.warning("checkpoint of step %d not made whole: %s; training goes on", manifest.step, error)
        shutil.rmtree(partial, ignore_errors=True)

    def _all_there(self, partial: Path, world_size: int) -> bool:
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            if any(partial.glob("rank_*.failed")):
                return False
            if all((partial / f"rank_{rank}.json").is_file() for rank in range(world_size)):
                return True
            time.sleep(POLL_S)
        return False

    def _prune(self, newest: Path) -> None:
        """Keep the newest, and of the older ones the best.

        Later steps are of a training that this run left: it went on from an earlier checkpoint, or from the beginning
        of an epoch. They would be taken for the newest, now and at the next start.
        """
        for folder in steps_of(self._checkpoints):
            if folder > newest:
                shutil.rmtree(folder)
        accuracy = {folder: metrics.get("val_acc1") or 0.0 for folder, metrics in self._readable()}
        best = max(accuracy, key=accuracy.__getitem__)
        for folder in list(accuracy)[self._keep_last :]:
            if folder != best:
                shutil.rmtree(folder)

    def _readable(self) -> Iterator[tuple[Path, dict[str, float]]]:
        """The whole checkpoints with their metrics, the newest first. One that is damaged is no reason to stop."""
        for folder in steps_of(self._checkpoints):
            try:
                yield folder, read_manifest(folder).metrics
            except DamagedError as damage:
                log.warning("%s", damage)


def _copied(kept: Tensors, tensors: Tensors) -> Tensors:
    """A snapshot on the host, in the memory of the one before. Copies from a GPU may be under way still.

    A state may have other tensors than the one before, and others of the same name: an optimizer has none before its
    first step, and what is under way between workers changes.
    """
    copies: Tensors = {}
    for name, tensor in tensors.items():
        copy = kept.get(name)
        if copy is None or _layout(copy) != _layout(tensor):
            # The same strides, so that the copy is one run through memory; the file is written without them.
            copy = torch.empty_like(tensor, device="cpu", pin_memory=tensor.device.type == "cuda")
        copies[name] = copy.copy_(tensor, non_blocking=True)
    return copies


def _layout(tensor: Tensor) -> tuple[torch.dtype, torch.Size, tuple[int, ...]]:
    return tensor.dtype, tensor.shape, tensor.stride()
