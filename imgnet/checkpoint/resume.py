"""Where a run starts from: its newest whole checkpoint, found by all workers together."""

from pathlib import Path
from typing import Any

import torch.distributed as dist

from imgnet.checkpoint.folder import check_worker
from imgnet.checkpoint.manifest import DamagedError, Manifest, read_manifest
from imgnet.runtime import Runtime


def newest_whole(folders: list[Path], runtime: Runtime) -> tuple[tuple[Path, Manifest] | None, list[str]]:
    """The first of ``folders`` in which every worker's file is whole. Collective.

    Each worker checks its share of the files.

    Args:
        folders: rank 0's count, the newest first.
        runtime: this worker.

    Returns:
        The folder with its manifest, if there is one; and a line for each damage in those that were passed over.
    """
    agreed: list[Any] = [folders]
    dist.broadcast_object_list(agreed, src=0)
    passed_over: list[str] = []
    for folder in agreed[0]:
        manifest, damage = _checked(folder, runtime)
        damages: list[Any] = [None] * runtime.world_size
        dist.all_gather_object(damages, damage)
        found = list(dict.fromkeys(line for line in damages if line))
        if not found and manifest is not None:
            return (folder, manifest), passed_over
        passed_over += found
    return None, passed_over


def _checked(folder: Path, runtime: Runtime) -> tuple[Manifest | None, str | None]:
    try:
        manifest = read_manifest(folder)
        for rank in range(runtime.rank, manifest.world_size, runtime.world_size):
            check_worker(folder, rank)
    except DamagedError as damage:
        return None, str(damage)
    return manifest, None
