"""Where a run starts from: its newest whole checkpoint, found by all workers together."""

import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from imgnet.checkpoint.folder import check_worker
from imgnet.checkpoint.manifest import DamagedError, Manifest, read_manifest
from imgnet.runtime import Runtime

log = logging.getLogger("imgnet")


def newest_whole(folders: list[Path], runtime: Runtime) -> tuple[Path, Manifest] | None:
    """The first of ``folders`` in which every worker's file is whole. Collective.

    Each worker checks its share of the files. What is wrong with a folder that is passed over is logged by who saw it.

    Args:
        folders: rank 0's counts, the newest first.
        runtime: this worker.
    """
    agreed: list[Any] = [folders]
    dist.broadcast_object_list(agreed, src=0)
    for folder in agreed[0]:
        manifest = _checked(folder, runtime)
        whole = torch.tensor(int(manifest is not None), device=runtime.device)
        dist.all_reduce(whole, op=dist.ReduceOp.MIN)
        if whole.item() and manifest is not None:
            return folder, manifest
    return None


def _checked(folder: Path, runtime: Runtime) -> Manifest | None:
    try:
        manifest = read_manifest(folder)
        for rank in range(runtime.rank, manifest.world_size, runtime.world_size):
            check_worker(folder, rank)
    except DamagedError as damage:
        log.warning("checkpoint passed over: %s", damage)
        print(f"checkpoint passed over: {damage}", flush=True)
        return None
    return manifest


def random_state() -> dict[str, Any]:
    """Every random state that a model or a library might draw from on this worker."""
    numpy_state: Any = np.random.get_state(legacy=False)
    state = {
        "python": random.getstate(),
        "numpy": {**numpy_state, "state": {**numpy_state["state"], "key": numpy_state["state"]["key"].tolist()}},
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    """Put back what :func:`random_state` took."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
