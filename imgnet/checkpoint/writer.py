"""Checkpoints written behind the training: a step stalls for a copy in memory, a thread does the rest."""

import logging
import shutil
import threading
import time
from pathlib import Path

import torch

from imgnet.checkpoint.folder import write_worker
from imgnet.checkpoint.manifest import Manifest, complete, folder_of, partial_of, read_manifest, steps_of
from imgnet.checkpoint.tree import Spec, Tensors, Tree, pack

log = logging.getLogger("imgnet")

POLL_S = 0.05
PATIENCE_S = 600.0
"""How long rank 0 waits for the files of slower workers before it gives a checkpoint up."""


class Writer:
    """Writes this worker's part of each checkpoint; rank 0 also makes them whole and removes old ones.

    A worker that cannot write warns and goes on training; that checkpoint then never becomes whole, and the one before
    it stays.

    Args:
        checkpoints: folder of the run's checkpoints, on a file system that all workers share.
        rank: this worker.
        keep_last: how many of the newest are kept, beside the best.
    """

    def __init__(self, checkpoints: Path, rank: int, keep_last: int) -> None:
        self._checkpoints = checkpoints
        self._rank = rank
        self._keep_last = keep_last
        self._snapshot: Tensors = {}
        self._thread: threading.Thread | None = None
        self.stall_s = 0.0
        """Seconds that the last :meth:`write` held up the caller."""

    def write(self, state: Tree, manifest: Manifest) -> None:
        """Copy the state, and write it in the background. Waits for the write before it, if that is still going on.

        Args:
            state: nested; ``state["model"]`` is the worker's ``state_dict``.
            manifest: the same on all workers.
        """
        start = time.perf_counter()
        self.wait()
        spec, tensors = pack(state)
        self._copy(tensors)
        self._thread = threading.Thread(target=self._write, args=(spec, manifest), name="checkpoint")
        self._thread.start()
        self.stall_s = time.perf_counter() - start

    def wait(self) -> None:
        """Until the last checkpoint is written; on rank 0, until it is whole or given up."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _copy(self, tensors: Tensors) -> None:
        """Take a snapshot in memory that is kept from one checkpoint to the next."""
        if self._snapshot.keys() != tensors.keys():
            self._snapshot = {}  # an optimizer has state only after its first step
        for name, tensor in tensors.items():
            kept = self._snapshot.get(name)
            if kept is None or kept.stride() != tensor.stride() or kept.dtype != tensor.dtype:
                # The same strides, so that the copy is one run through memory; the file is written without them.
                kept = self._snapshot[name] = torch.empty_like(
                    tensor, device="cpu", pin_memory=tensor.device.type == "cuda"
                )
            kept.copy_(tensor, non_blocking=True)
        if any(tensor.device.type == "cuda" for tensor in tensors.values()):
            torch.cuda.synchronize()

    def _write(self, spec: Spec, manifest: Manifest) -> None:
        folder = folder_of(self._checkpoints, manifest.step)
        partial = partial_of(folder)
        try:
            partial.mkdir(parents=True, exist_ok=True)
            write_worker(partial, self._rank, spec, self._snapshot)
        except OSError as error:
            log.warning("checkpoint of step %d not written: %s; training goes on", manifest.step, error)
            self._give_up(partial)
            return
        if self._rank == 0:
            self._complete(partial, folder, manifest)

    def _give_up(self, partial: Path) -> None:
        try:
            (partial / f"rank_{self._rank}.failed").touch()
        except OSError:
            log.warning("nor could rank %d leave a mark of it; rank 0 will wait for %.0f s", self._rank, PATIENCE_S)
        if self._rank == 0:
            shutil.rmtree(partial, ignore_errors=True)

    def _complete(self, partial: Path, folder: Path, manifest: Manifest) -> None:
        """Wait for every worker's file, name the folder, and remove old ones. Rank 0 alone."""
        try:
            if self._all_there(partial, manifest.world_size):
                complete(partial, folder, manifest)
                self._prune()
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

    def _prune(self) -> None:
        """Keep the newest, and of the older ones the best."""
        whole = steps_of(self._checkpoints)
        accuracy = {folder: read_manifest(folder).metrics.get("val_acc1") for folder in whole}
        best = max(whole, key=lambda folder: accuracy[folder] or 0.0)
        for folder in whole[self._keep_last :]:
            if folder != best:
                shutil.rmtree(folder)
