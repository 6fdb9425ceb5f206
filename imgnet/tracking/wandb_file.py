"""What wandb wrote to disk, read back: a run's pieces, one for each process that worked on it, and their rows.

A piece ``wandb/[offline-]run-<time>-<id>/run-<id>.wandb`` is a log of protobuf records in blocks of 32 KiB, as LevelDB
writes them; each part of a record has a checksum, its length and its place in the record.
"""

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_HEADER_BYTES = 7
_BLOCK_BYTES = 2**15
_PART = struct.Struct("<IHB")
_COMPLETES = (1, 4)
"""Kinds of parts that end a record: the only one, and the last."""


def pieces(run_dir: Path) -> list[Path]:
    """The folders of a run's pieces, the oldest first."""
    found = [file.parent for file in run_dir.glob("wandb/*run-*/run-*.wandb") if not file.parent.is_symlink()]
    return sorted(found, key=lambda folder: folder.name.removeprefix("offline-"))


def history(piece: Path) -> Iterator[dict[str, Any]]:
    """The rows of a piece, ``_step`` among their values."""
    from wandb.proto import wandb_internal_pb2

    for data in records(piece):
        record = wandb_internal_pb2.Record.FromString(data)  # pyright: ignore[reportAttributeAccessIssue]
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
            yield {"_step": record.history.step.num} | row


def records(piece: Path) -> Iterator[bytes]:
    """The records of a piece as wandb encoded them. What a crash cut short, or damaged, ends them."""
    for file in piece.glob("run-*.wandb"):
        yield from _whole_records(file.read_bytes())


def _whole_records(log: bytes) -> Iterator[bytes]:
    record, at = b"", _HEADER_BYTES
    while at + _PART.size <= len(log):
        left = _BLOCK_BYTES - at % _BLOCK_BYTES
        if left < _PART.size:
            at += left
            continue
        checksum, length, kind = _PART.unpack_from(log, at)
        at += _PART.size
        data = log[at : at + length]
        if zlib.crc32(data, zlib.crc32(bytes([kind]))) != checksum:
            return
        at += length
        record += data
        if kind in _COMPLETES:
            yield record
            record = b""
