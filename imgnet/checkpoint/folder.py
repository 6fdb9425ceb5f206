"""The files of the workers in a checkpoint: tensors as safetensors, everything else as JSON in their header."""

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from imgnet.checkpoint.manifest import DamagedError, check_size
from imgnet.checkpoint.tree import Tensors, Tree, unpack
from imgnet.rundir import write_atomically

CHUNK_BYTES = 1 << 24


def write_worker(partial: Path, rank: int, spec: Tree, tensors: Tensors) -> int:
    """Write one worker's file and, after it, its size and checksum.

    Memory: only tensors that are not contiguous, such as weights in channels_last, are copied.

    Returns:
        Bytes written.

    Raises:
        OSError: the disk is full, or gone; nothing of this worker is left.
    """
    path = partial / f"rank_{rank}.safetensors"
    packed = {name: tensor.contiguous() for name, tensor in tensors.items()}
    try:
        save_file(packed, path, metadata={"spec": json.dumps(spec)})
        path.chmod(0o644)  # the library makes it private to the user
        # What was written is in memory still: reading it once more is cheaper than a second copy of the state.
        with ThreadPoolExecutor(1) as beside:
            on_disk = beside.submit(_synchronize, path)
            about = {"bytes": path.stat().st_size, "crc32": _checksum(path)}
            on_disk.result()
        write_atomically(partial / f"rank_{rank}.json", json.dumps(about) + "\n")
    except (OSError, SafetensorError) as error:
        path.unlink(missing_ok=True)
        raise error if isinstance(error, OSError) else OSError(str(error)) from None
    return about["bytes"]


def _synchronize(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def check_worker(folder: Path, rank: int) -> None:
    """Compare one worker's file with its checksum.

    Raises:
        DamagedError: the file is lacking, cut short or changed.
    """
    path, noted = folder / f"rank_{rank}.safetensors", check_size(folder, rank)
    try:
        checksum = _checksum(path)
    except OSError as error:
        raise DamagedError(f"{path} cannot be read: {error}") from None
    if checksum != noted["crc32"]:
        raise DamagedError(f"{path} has changed since it was written (its checksum differs)")


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            value = zlib.crc32(chunk, value)
    return value


def read_worker(folder: Path, rank: int) -> Tree:
    """What a worker kept: nested state with tensors on the CPU.

    Raises:
        DamagedError: not a file that :func:`write_worker` wrote.
    """
    path = folder / f"rank_{rank}.safetensors"
    try:
        with safe_open(path, framework="pt") as file:
            spec = json.loads((file.metadata() or {})["spec"])
            return unpack(spec, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118  (not a dict)
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
        raise DamagedError(f"{path} is no worker's state: {error}") from None


def read_average(folder: Path, world_size: int) -> dict[str, torch.Tensor]:
    """The model of a checkpoint: the mean of all workers' parameters and float buffers, rank 0's other buffers.

    Raises:
        DamagedError: a worker's file is not whole.
    """
    mean = {name: value.clone() for name, value in read_worker(folder, 0)["model"].items()}
    for state in _models(folder, range(1, world_size)):
        for name, value in state.items():
            if value.is_floating_point():
                mean[name] += value
    return {name: value / world_size if value.is_floating_point() else value for name, value in mean.items()}


def _models(folder: Path, ranks: range) -> Iterator[Mapping[str, torch.Tensor]]:
    for rank in ranks:
        yield read_worker(folder, rank)["model"]
