"""Shards copied to a disk of the node, once for all processes and jobs on it.

A file has its name when it is whole and its checksum is right, and the manifest is written last, so that a copy which
was interrupted at any moment is never taken for a whole one, and goes on with the files that it lacks.
"""

import fcntl
import logging
import os
import shutil
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from imgnet.config import ConfigError
from imgnet.data.sources.shards import MANIFEST, FileRecord, read_manifest, record_of, write_atomically
from imgnet.runtime import available_cores, expand

_MOST_COPIES_AT_ONCE = 8
_BLOCK = 1 << 18  # read, checked and written while it is in the cache of a core
_BOOT = ".boot"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_GB = 1e9

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Staged:
    """Where shards are read from on this node, and what it took to have them there."""

    root: Path
    num_files_copied: int
    num_bytes_copied: int


def staged_root(root: Path, stage_to: str) -> Path:
    """Where the copy of ``root`` is or will be: the name says whose copy, and of which version.

    Raises:
        ConfigError: there are no whole shards in ``root``, or ``stage_to`` cannot be used.
    """
    try:
        folder = expand(stage_to)
    except ValueError as error:
        raise ConfigError([f"data.stage_to={stage_to}: {error}"]) from None
    read_manifest(root)
    version = zlib.crc32((root / MANIFEST).read_bytes())
    return folder / f"{root.resolve().name}-{version:08x}"


def stage(root: Path, stage_to: str) -> Staged:
    """Copy the shards in ``root`` to ``stage_to``, unless they are there. Waits while another process does it.

    Raises:
        ConfigError: too little space, a shard that is damaged, or a folder that cannot be written to.
    """
    target = staged_root(root, stage_to)
    try:
        target.mkdir(parents=True, exist_ok=True)
        with _alone(target):
            return _stage(root, target)
    except OSError as error:
        raise ConfigError([f"data.stage_to={stage_to}: {error}"]) from None


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """One process of this node at a time. The system releases the lock of a process that dies."""
    with target.with_name(f".{target.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _stage(root: Path, target: Path) -> Staged:
    boot = _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else "unknown"
    same_boot = (target / _BOOT).exists() and (target / _BOOT).read_text() == boot
    # What was written before the node went down may not have reached its disk, whatever the sizes say. To know that
    # costs less than to wait for the disk after every copy.
    if not same_boot:
        (target / MANIFEST).unlink(missing_ok=True)
    missing = [
        (name, file) for name, file in read_manifest(root).files() if not _is_there(target / name, file, same_boot)
    ]
    if missing:
        (target / MANIFEST).unlink(missing_ok=True)
        for name, _ in missing:  # before the boot is noted, after which a file is trusted by its size
            (target / name).unlink(missing_ok=True)
        _check_space(target, sum(file.num_bytes for _, file in missing))
        write_atomically(target / _BOOT, boot.encode(), durable=False)
        _copy_all(root, target, missing)
    if missing or not (target / MANIFEST).exists():
        write_atomically(target / _BOOT, boot.encode(), durable=False)
        write_atomically(target / MANIFEST, (root / MANIFEST).read_bytes(), durable=False)
    return Staged(target, len(missing), sum(file.num_bytes for _, file in missing))


def _is_there(path: Path, file: FileRecord, trusted: bool) -> bool:
    """Whether a file was copied. One that is not trusted is read."""
    if not path.is_file() or path.stat().st_size != file.num_bytes:
        return False
    return trusted or record_of(path) == file


def _check_space(target: Path, needed: int) -> None:
    unfinished = sum(part.stat().st_size for part in target.glob("*/.*.part"))
    free = shutil.disk_usage(target).free + unfinished
    if needed > free:
        line = f"data.stage_to: {target.parent} has {free / _GB:.2f} GB free, and the shards take {needed / _GB:.2f} GB"
        raise ConfigError([f"{line}; make room, name another folder, or leave it out to read them where they are"])


def _copy_all(root: Path, target: Path, files: list[tuple[str, FileRecord]]) -> None:
    size = sum(file.num_bytes for _, file in files) / _GB
    _logger.info("staging %d files, %.2f GB, from %s to %s", len(files), size, root, target)
    pool = ThreadPoolExecutor(min(_MOST_COPIES_AT_ONCE, available_cores()))
    try:
        for _ in pool.map(lambda job: _copy(root / job[0], target / job[0], job[1]), files):
            pass
    finally:
        pool.shutdown(cancel_futures=True)
    _logger.info("staged to %s", target)


def _copy(source: Path, path: Path, file: FileRecord) -> None:
    """Copy a file and check what was read against the manifest."""
    path.parent.mkdir(exist_ok=True)
    unfinished = path.with_name(f".{path.name}.part")
    block, checksum = memoryview(bytearray(_BLOCK)), 0
    with source.open("rb", buffering=0) as reader, unfinished.open("wb", buffering=0) as writer:
        while num := reader.readinto(block):
            checksum = zlib.crc32(block[:num], checksum)
            writer.write(block[:num])
        size = os.fstat(writer.fileno()).st_size
    if (size, checksum) != (file.num_bytes, file.crc32):
        unfinished.unlink()
        raise ConfigError([f"the shard {source} is damaged: it differs from its checksum in {MANIFEST}; copy it anew"])
    unfinished.replace(path)
